"""Gemma Scope 2: `config.json` beside `params.safetensors`.

Tensors `w_enc` (d_in, d_sae), `b_enc`, `w_dec` (d_sae, d_out), `b_dec`, `threshold` (d_sae,),
and of a transcoder with an affine connection `affine_skip_connection` (d_in, d_out). Latents
are `relu(x @ w_enc + b_enc)` where that is above the threshold, as in the first Gemma Scope.
The configuration says `architecture: jump_relu`, `model_name`, and for each end a module and
its side: `hf_hook_point_in: model.layers.12.output`.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from sae.base import UNKNOWN, require
from sae.dictionary import Dictionary, JumpReLU, Port, ReLU, dictionary_of
from sae.dictionary.tensors import check_sizes, flag, open_safetensors, safetensors_there
from sae.exchange.formats.parts import (
    as_json,
    hook_of_module,
    plain,
    read_config,
    read_metadata,
    write_folder,
)

NAME = "gemma_scope_2"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "params.safetensors"
FILES: tuple[str, ...] = (CONFIG_FILE, WEIGHTS_FILE)
TITLE = "Gemma Scope 2's code"
LOAD = """\
from safetensors.torch import load_file
weights = load_file("{folder}/params.safetensors")"""
LOST = (
    "metadata, but for model and modules; standard becomes jumprelu with thresholds of 0, "
    "which is the same"
)

_LAYOUT = {
    "w_enc": ("d_in", "d_sae"),
    "b_enc": ("d_sae",),
    "w_dec": ("d_sae", "d_out"),
    "b_dec": ("d_out",),
    "threshold": ("d_sae",),
}
_SKIP = "affine_skip_connection"


def recognises(path: Path) -> bool:
    """Whether the weights are there."""
    return safetensors_there(path / WEIGHTS_FILE)


def read(path: Path) -> Dictionary:
    """The dictionary of a folder.

    Raises:
        UserError: if a file is missing or broken, or it is a crosscoder or of all layers.
    """
    config_path = path / CONFIG_FILE
    config = read_config(config_path)
    architecture = config.get("architecture")
    require(
        architecture == "jump_relu",
        f"{config_path}: architecture={architecture}; only jump_relu is known here",
    )
    kind = str(config.get("type", "sae"))
    require(
        kind in ("sae", "transcoder"),
        f"{config_path}: type={kind}; only sae and transcoder are known here, of one hook each "
        "way",
    )
    affine = flag(config_path, config, "affine_connection")
    layout = _LAYOUT | ({_SKIP: ("d_in", "d_out")} if affine else {})
    found = open_safetensors(path / WEIGHTS_FILE).read(layout)
    d_sae = len(found["b_enc"])
    check_sizes(config_path, config, {"width": d_sae})
    weights = {
        "W_enc": found["w_enc"],
        "b_enc": found["b_enc"],
        "W_dec": found["w_dec"],
        "b_dec": found["b_dec"],
    }
    if affine:
        weights["W_skip"] = found[_SKIP].t()
    metadata = read_metadata(path, _native(config, kind))
    activation = JumpReLU(found["threshold"])
    transcodes = kind == "transcoder"
    return dictionary_of(weights, activation, path, metadata, transcoder=transcodes)


def _native(config: dict[str, Any], kind: str) -> dict[str, Any]:
    model = str(config.get("model_name", ""))
    # Some say gemma-v3-1b-pt without the owner.
    model = model.replace("gemma-v3", "gemma-3")
    if model.startswith("gemma"):
        model = f"google/{model}"
    ends = (config.get("hf_hook_point_in"), config.get("hf_hook_point_out"))
    hook_name, hook_name_out = (_hook(str(end)) for end in ends)
    return {
        "model_name": model or None,
        "hook_name": hook_name,
        "hook_name_out": hook_name_out if kind == "transcoder" else None,
    }


def _hook(end: str) -> str | None:
    """The hook of such as `model.layers.12.output`; there is no name for most inputs."""
    module, _, side = end.rpartition(".")
    hook_name = hook_of_module(module, side)
    return hook_name if side == "output" or hook_name != module else None


def cannot_hold(dictionary: Dictionary) -> str | None:
    """Why it has no place for it."""
    if not isinstance(dictionary.activation, JumpReLU | ReLU):
        return "its latents have a threshold each"
    return None


def write(dictionary: Dictionary, folder: Path) -> None:
    """Write `folder`, appearing all at once."""
    activation = dictionary.activation
    tensors = {
        "w_enc": plain(dictionary.W_enc),
        "b_enc": plain(dictionary.b_enc),
        "w_dec": plain(dictionary.W_dec),
        "b_dec": plain(dictionary.b_dec),
        "threshold": plain(activation.threshold)
        if isinstance(activation, JumpReLU)
        else torch.zeros(dictionary.d_sae),
    }
    if dictionary.W_skip is not None:
        tensors[_SKIP] = plain(dictionary.W_skip.t())
    config = {
        "architecture": "jump_relu",
        "type": "transcoder" if dictionary.is_transcoder else "sae",
        "model_name": dictionary.record.model_name or "",
        "hf_hook_point_in": _end(dictionary.reads[0]),
        "hf_hook_point_out": _end(dictionary.writes[0]),
        "width": dictionary.d_sae,
        "affine_connection": dictionary.W_skip is not None,
    }
    files = {CONFIG_FILE: as_json(config), WEIGHTS_FILE: save(tensors)}
    write_folder(folder, dictionary, files)


def _end(port: Port) -> str:
    """The module and its side; the hook's own name where the module is not known."""
    if port.site is not None:
        return f"{port.site.module}.{port.site.side}"
    return "" if port.hook_name == UNKNOWN else port.hook_name
