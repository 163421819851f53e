"""EleutherAI's sparsify, and its layout on the Hub: a folder for each hookpoint.

`{run}/{hookpoint}/cfg.json` beside `sae.safetensors`, with several seeds
`{hookpoint}/seed{n}/`; `{run}/config.json` names the model. Tensors (latents first):
`encoder.weight` (d_sae, d_in), `encoder.bias`, `W_dec` (d_sae, d_in), `b_dec`, and with
`skip_connection` `W_skip` (d_in, d_in). `SparseCoder.encode` of eai-sparsify 1.3.3: the k
largest of `relu(W (x - b_dec) + b)`, where a transcoder (`transcode`) does not subtract b_dec.

A hookpoint is a module's path below the base model, its output the activation; a transcoder
reads the module's input.
"""

import re
from pathlib import Path
from typing import Any

from safetensors.torch import save

from sae.base import UserError, require
from sae.dictionary import Dictionary, TopK, dictionary_of
from sae.dictionary.folding import with_b_dec, without_b_dec
from sae.dictionary.tensors import check_sizes, flag, open_safetensors, safetensors_there
from sae.exchange.formats.parts import (
    as_json,
    hook_of_module,
    plain,
    read_config,
    read_metadata,
    write_folder,
)

NAME = "sparsify"
CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae.safetensors"
FILES: tuple[str, ...] = (CONFIG_FILE, "../config.json", WEIGHTS_FILE)
TITLE = "sparsify"
LOAD = """\
from sparsify import Sae
dictionary = Sae.load_from_disk("{folder}")"""
LOST = "metadata, but for the hookpoint in the folder's name"

_LAYOUT = {
    "encoder.weight": ("d_sae", "d_in"),
    "encoder.bias": ("d_sae",),
    "W_dec": ("d_sae", "d_in"),
    "b_dec": ("d_in",),
}


def recognises(path: Path) -> bool:
    """Whether the weights are there."""
    return safetensors_there(path / WEIGHTS_FILE)


def read(path: Path) -> Dictionary:
    """The dictionary of a hookpoint's folder.

    Raises:
        UserError: if a file is missing or broken, or `activation` is not topk.
    """
    config_path = path / CONFIG_FILE
    config = read_config(config_path)
    activation = config.get("activation", "topk")
    require(
        activation == "topk",
        f"{config_path}: activation={activation}; only topk is known here, where the k largest "
        "of all latents are active",
    )
    require(
        not flag(config_path, config, "signed"),
        f"{config_path}: signed=true, but activations below zero are not known here",
    )
    k, skip = config.get("k"), flag(config_path, config, "skip_connection")
    if type(k) is not int:
        raise UserError(f"{config_path}: k={k}; give a whole number")
    layout = _LAYOUT | ({"W_skip": ("d_in", "d_in")} if skip else {})
    found = open_safetensors(path / WEIGHTS_FILE).read(layout)
    d_sae, d_in = found["encoder.weight"].shape
    # Zero latents mean: as the factor says.
    factor = config.get("expansion_factor", 32)
    require(type(factor) is int, f"{config_path}: expansion_factor={factor}; give a number")
    latents = config.get("num_latents") or d_in * factor
    check_sizes(
        config_path, {**config, "num_latents": latents}, {"d_in": d_in, "num_latents": d_sae}
    )
    weights = {
        "W_enc": found["encoder.weight"].t(),
        "b_enc": found["encoder.bias"],
        "W_dec": found["W_dec"],
        "b_dec": found["b_dec"],
    }
    transcodes = flag(config_path, config, "transcode")
    if skip:
        weights["W_skip"] = found["W_skip"]
    metadata = read_metadata(path, _native(path, transcodes))
    dictionary = dictionary_of(weights, TopK(k), path, metadata, transcoder=transcodes)
    return dictionary if transcodes else without_b_dec(dictionary)


def _native(path: Path, transcodes: bool) -> dict[str, Any]:
    """Model and hooks, from where the folder is."""
    place = path.resolve()
    if re.fullmatch(r"seed\d+", place.name):
        place = place.parent
    run = place.parent / "config.json"
    found: dict[str, Any] = {
        "model_name": read_config(run).get("model") if run.is_file() else None
    }
    if not re.search(r"\.\d+(\.|$)", place.name):
        return found
    output = hook_of_module(place.name)
    if not transcodes:
        return found | {"hook_name": output, "hf_hook_name": place.name}
    read_from = hook_of_module(place.name, "input")
    known = read_from if read_from != place.name else None
    return found | {"hook_name": known, "hook_name_out": output, "hf_hook_name_out": place.name}


def cannot_hold(dictionary: Dictionary) -> str | None:
    """Why sparsify has no place for it."""
    if not isinstance(dictionary.activation, TopK):
        return "its latents are chosen by top-k alone"
    if dictionary.d_in != dictionary.d_out:
        return "it reads and writes activations of one width"
    return None


def write(dictionary: Dictionary, folder: Path) -> None:
    """Write `folder`, appearing all at once; named as the hookpoint others find the module."""
    transcodes = dictionary.is_transcoder
    skip = dictionary.W_skip
    weights = (dictionary if transcodes else with_b_dec(dictionary)).tensors
    tensors = {
        "encoder.weight": plain(weights["W_enc"].t()),
        "encoder.bias": plain(weights["b_enc"]),
        "W_dec": plain(weights["W_dec"]),
        "b_dec": plain(weights["b_dec"]),
        **({} if skip is None else {"W_skip": plain(skip)}),
    }
    config = {
        "activation": "topk",
        "expansion_factor": 32,
        "normalize_decoder": True,
        "num_latents": dictionary.d_sae,
        **dictionary.activation.numbers,
        "multi_topk": False,
        "skip_connection": skip is not None,
        "transcode": transcodes,
        "d_in": dictionary.d_in,
    }
    write_folder(
        folder, dictionary, {CONFIG_FILE: as_json(config), WEIGHTS_FILE: save(tensors)}
    )


def hookpoint(dictionary: Dictionary) -> str:
    """Return the folder's name: a path below the base model if the hook is a module's output.

    Its tools hook outputs alone, so that anything else keeps the name of its hook.
    """
    site = dictionary.writes[0].site
    if site is None or site.side == "input":
        return dictionary.hook_name_out
    return re.sub(r"^\w+\.(?=(layers|h|encoder)\.)", "", site.module)
