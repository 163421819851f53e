"""Gemma Scope: `params.npz` with `W_enc`, `W_dec`, `b_enc`, `b_dec` and `threshold`.

Latents are `relu(x @ W_enc + b_enc)` where that is above the threshold (2408.05147); nothing is
subtracted or scaled. There is no configuration: model and hook are in the folders' names on the
Hub, `google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82`. The autoencoders of the
embedding read it before the model multiplies it by sqrt(d_in), where no hook is.
"""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np

from sae.base import require
from sae.dictionary import Dictionary, JumpReLU, ReLU, dictionary_of
from sae.dictionary.tensors import open_npz
from sae.exchange.formats.parts import plain, read_metadata, write_folder

NAME = "gemma_scope"
WEIGHTS_FILE = "params.npz"
FILES: tuple[str, ...] = (WEIGHTS_FILE,)
TITLE = "Gemma Scope's code"
LOAD = """\
import numpy
weights = numpy.load("{folder}/params.npz")"""
LOST = "metadata; standard becomes jumprelu with thresholds of 0, which is the same"

_LAYOUT = {
    "W_enc": ("d_in", "d_sae"),
    "b_enc": ("d_sae",),
    "W_dec": ("d_sae", "d_out"),
    "b_dec": ("d_out",),
    "threshold": ("d_sae",),
}
_RELEASE = re.compile(
    r"gemma-scope-(?P<size>\d+b)-(?P<tuned>pt|it)-(?P<kind>\w+)(?P<below>.*)", re.DOTALL
)
_PLACES = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}


def recognises(path: Path) -> bool:
    """Whether the weights are there."""
    return (path / WEIGHTS_FILE).is_file()


def read(path: Path) -> Dictionary:
    """The dictionary of a folder.

    Raises:
        UserError: if the file is missing or broken, or is of the embedding.
    """
    release = _RELEASE.search(str(path.absolute()))
    below = "" if release is None else release["below"]
    require(
        "embedding" not in Path(below).parts,
        f"{path} reads the embedding before it is multiplied by sqrt(d_in), where no hook is",
    )
    weights = open_npz(path / WEIGHTS_FILE).read(_LAYOUT)
    metadata = read_metadata(path, {} if release is None else _native(release))
    activation = JumpReLU(weights["threshold"])
    transcodes = release is not None and release["kind"] == "transcoders"
    return dictionary_of(weights, activation, path, metadata, transcoder=transcodes)


def _native(release: re.Match[str]) -> dict[str, Any]:
    """Model and hook by the repository's name; of a transcoder the model alone."""
    tuned = "-it" if release["tuned"] == "it" else ""
    found = {"model_name": f"google/gemma-2-{release['size']}{tuned}"}
    layer = re.search(r"layer_(\d+)", release["below"])
    if layer and release["kind"] in _PLACES:
        found["hook_name"] = f"blocks.{layer[1]}.{_PLACES[release['kind']]}"
    return found


def cannot_hold(dictionary: Dictionary) -> str | None:
    """Why it has no place for it."""
    if not isinstance(dictionary.activation, JumpReLU | ReLU):
        return "its latents have a threshold each"
    if dictionary.W_skip is not None:
        return "it has no skip connection"
    return None


def write(dictionary: Dictionary, folder: Path) -> None:
    """Write `folder`, appearing all at once."""
    arrays: dict[str, Any] = {
        name: plain(weight).numpy() for name, weight in dictionary.tensors.items()
    }
    arrays.setdefault("threshold", np.zeros(dictionary.d_sae, np.float32))
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_folder(folder, dictionary, {WEIGHTS_FILE: buffer.getbuffer()})
