"""Gemma Scope: `params.npz`, without a configuration.

Latents are `relu(x @ W_enc + b_enc)` where that is above the threshold (2408.05147); nothing is
subtracted or scaled. Model and hook are in the folders' names on the Hub,
`google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82`. The autoencoders of the
embedding read it before the model multiplies it by sqrt(d_in), where no hook is.
"""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np

from sae.base import require
from sae.dictionary import CODER, Dictionary, JumpReLU, ReLU, dictionary_of
from sae.dictionary.tensors import open_npz
from sae.exchange.formats import parts

_WEIGHTS = "params.npz"
_NAMES = {name: name for name in (*CODER, "threshold")}
_RELEASE = re.compile(
    r"gemma-scope-(?P<size>\d+b)-(?P<tuned>pt|it)-(?P<kind>\w+)(?P<below>.*)", re.DOTALL
)
_PLACES = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}


class GemmaScope(parts.Written):
    """A folder with one file of arrays."""

    name = "gemma_scope"
    files = (_WEIGHTS,)
    title = "Gemma Scope's code"
    load = """\
import numpy
weights = numpy.load("{folder}/params.npz")"""
    lost = "metadata; standard becomes jumprelu with thresholds of 0, which is the same"
    activations = (JumpReLU, ReLU)
    limits = (
        ("activation", "its latents have a threshold each"),
        ("skip", "it has no skip connection"),
    )

    def read(self, path: Path) -> Dictionary:
        release = _RELEASE.search(str(path.absolute()))
        below = "" if release is None else release["below"]
        require(
            "embedding" not in Path(below).parts,
            f"{path} reads the embedding before it is multiplied by sqrt(d_in), where no hook "
            "is",
        )
        weights = parts.read_weights(open_npz(path / _WEIGHTS), _NAMES, d_out="d_out")
        metadata = parts.read_metadata(path, {} if release is None else _native(release))
        activation = JumpReLU(weights["threshold"])
        transcodes = release is not None and release["kind"] == "transcoders"
        return dictionary_of(weights, activation, path, metadata, transcoder=transcodes)

    def write(self, dictionary: Dictionary, folder: Path) -> None:
        weights = parts.named_tensors(dictionary, {name: name for name in dictionary.tensors})
        arrays: dict[str, Any] = {name: weight.numpy() for name, weight in weights.items()}
        arrays.setdefault("threshold", np.zeros(dictionary.d_sae, np.float32))
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        parts.write_folder(folder, dictionary, {_WEIGHTS: buffer.getbuffer()})


def _native(release: re.Match[str]) -> dict[str, object]:
    """Model and hook by the repository's name; of a transcoder the model alone."""
    tuned = "-it" if release["tuned"] == "it" else ""
    found: dict[str, object] = {"model_name": f"google/gemma-2-{release['size']}{tuned}"}
    layer = re.search(r"layer_(\d+)", release["below"])
    if layer and release["kind"] in _PLACES:
        found["hook_name"] = f"blocks.{layer[1]}.{_PLACES[release['kind']]}"
    return found
