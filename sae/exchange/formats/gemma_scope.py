"""Gemma Scope, the first and the second. The first is `params.npz`, without a configuration.

Latents are `relu(x @ W_enc + b_enc)` where that is above the threshold (2408.05147); nothing is
subtracted or scaled. Model and hook are in the folders' names on the Hub,
`google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82`. The autoencoders of the
embedding read it before the model multiplies it by sqrt(d_in), where no hook is.

Gemma Scope 2 has `config.json` beside `params.safetensors`, with latents like these. For each
end the configuration says a module and its side: `hf_hook_point_in: model.layers.12.output`.
"""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from sae.base import UNKNOWN, require
from sae.dictionary import CODER, Dictionary, JumpReLU, Port, ReLU, dictionary_of
from sae.dictionary.tensors import check_sizes, flag, open_npz, open_safetensors
from sae.exchange.formats import parts

_ARRAYS = "params.npz"
_NAMES = {name: name for name in (*CODER, "threshold")}
_CONFIG, _WEIGHTS = "config.json", "params.safetensors"
_CODER = {"w_enc": "W_enc", "b_enc": "b_enc", "w_dec": "W_dec", "b_dec": "b_dec"}
_THRESHOLD = {"threshold": "threshold"}
_SKIP = {"affine_skip_connection": "W_skip.T"}
_RELEASE = re.compile(
    r"gemma-scope-(?P<size>\d+b)-(?P<tuned>pt|it)-(?P<kind>\w+)(?P<below>.*)", re.DOTALL
)
_PLACES = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}


class GemmaScope(parts.Written):
    """A folder with one file of arrays."""

    name = "gemma_scope"
    files = (_ARRAYS,)
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
            f"{path} reads the embedding before it is multiplied by sqrt(d_in), a place "
            "that has no hook",
        )
        weights = parts.read_weights(open_npz(path / _ARRAYS), _NAMES, d_out="d_out")
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
        parts.write_folder(folder, dictionary, {_ARRAYS: buffer.getbuffer()})


def _native(release: re.Match[str]) -> dict[str, object]:
    """Model and hook by the repository's name; of a transcoder the model alone."""
    tuned = "-it" if release["tuned"] == "it" else ""
    found: dict[str, object] = {"model_name": f"google/gemma-2-{release['size']}{tuned}"}
    layer = re.search(r"layer_(\d+)", release["below"])
    if layer and release["kind"] in _PLACES:
        found["hook_name"] = f"blocks.{layer[1]}.{_PLACES[release['kind']]}"
    return found


class GemmaScope2(parts.Written):
    """A folder with a configuration that names modules."""

    name = "gemma_scope_2"
    files = (_CONFIG, _WEIGHTS)
    title = "Gemma Scope 2's code"
    load = """\
from safetensors.torch import load_file
weights = load_file("{folder}/params.safetensors")"""
    lost = (
        "metadata, but for model and modules; standard becomes jumprelu with thresholds of 0, "
        "which is the same"
    )
    activations = (JumpReLU, ReLU)
    limits = (("activation", "its latents have a threshold each"),)

    def read(self, path: Path) -> Dictionary:
        config_path = path / _CONFIG
        config = parts.read_config(config_path)
        architecture = config.get("architecture")
        require(
            architecture == "jump_relu",
            f"{config_path}: architecture={architecture}; only jump_relu can be read",
        )
        kind = str(config.get("type", "sae"))
        require(
            kind in ("sae", "transcoder"),
            f"{config_path}: type={kind}; only sae and transcoder can be read, with one "
            "hook on each side",
        )
        affine = flag(config_path, config, "affine_connection")
        names = _CODER | _THRESHOLD | (_SKIP if affine else {})
        weights = parts.read_weights(open_safetensors(path / _WEIGHTS), names, d_out="d_out")
        check_sizes(config_path, config, {"width": len(weights["b_enc"])})
        transcodes = kind == "transcoder"
        # Some say gemma-v3-1b-pt without the owner.
        model = str(config.get("model_name", "")).replace("gemma-v3", "gemma-3")
        said = {
            "model_name": (f"google/{model}" if model.startswith("gemma") else model) or None,
            "hook_name": _hook(config.get("hf_hook_point_in")),
            "hook_name_out": _hook(config.get("hf_hook_point_out")) if transcodes else None,
        }
        activation = JumpReLU(weights["threshold"])
        metadata = parts.read_metadata(path, said)
        return dictionary_of(weights, activation, path, metadata, transcoder=transcodes)

    def write(self, dictionary: Dictionary, folder: Path) -> None:
        skip = dictionary.W_skip is not None
        thresholds = _THRESHOLD if isinstance(dictionary.activation, JumpReLU) else {}
        names = _CODER | thresholds | (_SKIP if skip else {})
        zeros = {"threshold": torch.zeros(dictionary.d_sae)}
        config = {
            "architecture": "jump_relu",
            "type": "transcoder" if dictionary.is_transcoder else "sae",
            "model_name": dictionary.record.model_name or "",
            "hf_hook_point_in": _end(dictionary.reads[0]),
            "hf_hook_point_out": _end(dictionary.writes[0]),
            "width": dictionary.d_sae,
            "affine_connection": skip,
        }
        weights = save(zeros | parts.named_tensors(dictionary, names))
        parts.write_folder(
            folder, dictionary, {_CONFIG: parts.as_json(config), _WEIGHTS: weights}
        )


def _hook(end: object) -> str | None:
    """Return the hook of such as `model.layers.12.output`; there is no name for most inputs."""
    module, _, side = str(end).rpartition(".")
    hook_name = parts.hook_of_module(module, side)
    return hook_name if side == "output" or hook_name != module else None


def _end(port: Port) -> str:
    if port.site is not None:
        return f"{port.site.module}.{port.site.side}"
    return "" if port.hook_name == UNKNOWN else port.hook_name
