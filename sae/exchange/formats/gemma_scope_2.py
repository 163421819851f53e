"""Gemma Scope 2: `config.json` beside `params.safetensors`.

Latents are those of the first Gemma Scope. For each end the configuration says a module and its
side: `hf_hook_point_in: model.layers.12.output`.
"""

from pathlib import Path

import torch
from safetensors.torch import save

from sae.base import UNKNOWN, require
from sae.dictionary import Dictionary, JumpReLU, Port, ReLU, dictionary_of
from sae.dictionary.tensors import check_sizes, flag, open_safetensors
from sae.exchange.formats import parts

_CONFIG, _WEIGHTS = "config.json", "params.safetensors"
_CODER = {"w_enc": "W_enc", "b_enc": "b_enc", "w_dec": "W_dec", "b_dec": "b_dec"}
_THRESHOLD = {"threshold": "threshold"}
_SKIP = {"affine_skip_connection": "W_skip.T"}


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
            f"{config_path}: architecture={architecture}; only jump_relu is known here",
        )
        kind = str(config.get("type", "sae"))
        require(
            kind in ("sae", "transcoder"),
            f"{config_path}: type={kind}; only sae and transcoder are known here, of one hook "
            "each way",
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
    """The hook of such as `model.layers.12.output`; there is no name for most inputs."""
    module, _, side = str(end).rpartition(".")
    hook_name = parts.hook_of_module(module, side)
    return hook_name if side == "output" or hook_name != module else None


def _end(port: Port) -> str:
    if port.site is not None:
        return f"{port.site.module}.{port.site.side}"
    return "" if port.hook_name == UNKNOWN else port.hook_name
