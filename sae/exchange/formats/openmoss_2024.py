"""What OpenMOSS wrote in 2024, Llama Scope first of all: `hyperparams.json` and the weights.

The weights are `checkpoints/final.safetensors` or `sae_weights.safetensors`, by the names of
linear layers: `encoder.weight` (d_sae, d_in), `encoder.bias`, `decoder.weight` (d_in, d_sae),
`decoder.bias`. `SparseAutoEncoder.from_config` of OpenMOSS/Language-Model-SAEs as of November
2024 makes of them, in this order:

- `norm_activation: dataset-wise`: scales for raw activations, from the average norms `in` and
  `out` in `hyperparams.json`;
- `sparsity_include_decoder_norm`: unit rows of the decoder, the encoder times their norms;
- `act_fn: topk` with a `jump_relu_threshold` above 0 becomes jumprelu. This one number for all
  latents was measured after both steps, so neither of them changes it.

SAELens's loader of these files arrives at the same threshold, but leaves out the second step.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sae.base import UserError, require
from sae.dictionary import Activation, Dictionary, JumpReLU, ReLU, TopK, dictionary_of
from sae.dictionary.folding import (
    for_raw_activations,
    scaled_by_decoder_norm,
    without_b_dec,
)
from sae.dictionary.tensors import check_sizes, flag, open_safetensors
from sae.exchange.formats.parts import read_config, read_metadata

CONFIG_FILE = "hyperparams.json"
MODEL_FILE = "lm_config.json"
WEIGHTS_FILES = ("sae_weights.safetensors", "checkpoints/final.safetensors")

_LAYOUT = {
    "encoder.weight": ("d_sae", "d_in"),
    "encoder.bias": ("d_sae",),
    "decoder.weight": ("d_in", "d_sae"),
    "decoder.bias": ("d_in",),
}


def read(path: Path) -> Dictionary:
    """The dictionary of a folder with `hyperparams.json`.

    Raises:
        UserError: if a file is missing or broken, or its activation or norm has no counterpart.
    """
    config_path = path / CONFIG_FILE
    config = read_config(config_path)
    architecture, threshold = _architecture(config_path, config)
    there = [path / name for name in WEIGHTS_FILES if (path / name).is_file()]
    layout: dict[str, tuple[str, ...]] = dict(_LAYOUT)
    bias = flag(config_path, config, "use_decoder_bias", default=True)
    if not bias:
        del layout["decoder.bias"]
    found = open_safetensors(there[0] if there else path / WEIGHTS_FILES[-1]).read(layout)
    d_sae, d_in = found["encoder.weight"].shape
    check_sizes(config_path, config, {"d_model": d_in, "d_sae": d_sae})
    weights = {
        "W_enc": found["encoder.weight"].t(),
        "b_enc": found["encoder.bias"],
        "W_dec": found["decoder.weight"].t(),
        "b_dec": found["decoder.bias"] if bias else torch.zeros(d_in),
    }
    activation: Activation = ReLU()
    if architecture == "topk":
        activation = top_k(config_path, config)
    metadata = read_metadata(path, model_and_hooks(path, config))
    loaded = _as_loaded(config_path, config, dictionary_of(weights, activation, path, metadata))
    if architecture == "jumprelu":
        # One number for all latents, compared with activations as its own loader scales them.
        return replace(loaded, activation=JumpReLU(torch.full((d_sae,), threshold)))
    return loaded


def _architecture(path: Path, config: dict[str, Any]) -> tuple[str, float]:
    """Our name of its activation, and the threshold."""
    require(
        not flag(path, config, "use_glu_encoder"),
        f"{path}: use_glu_encoder=true, but an encoder here is one product with x",
    )
    threshold = config.get("jump_relu_threshold", 0.0)
    if not isinstance(threshold, int | float) or not 0 <= threshold < math.inf:
        raise UserError(f"{path}: jump_relu_threshold={threshold}; give a number from 0 on")
    activation = str(config.get("act_fn", "relu")).lower()
    if activation == "topk" and threshold > 0:
        activation = "jumprelu"
    known = {"relu": "standard", "jumprelu": "jumprelu", "topk": "topk"}
    if activation not in known:
        raise UserError(f"{path}: act_fn={activation} is unknown; known: {', '.join(known)}")
    return known[activation], float(threshold)


def top_k(path: Path, config: dict[str, Any]) -> TopK:
    """The activation that the configuration `path` gives a k for.

    Raises:
        UserError: if that is no whole number.
    """
    k = config.get("top_k")
    if type(k) is not int:
        raise UserError(f"{path}: top_k={k}; give a number")
    return TopK(k)


def _as_loaded(path: Path, config: dict[str, Any], found: Dictionary) -> Dictionary:
    """What its own loader makes of the weights, for raw activations."""
    norm = config.get("norm_activation", "token-wise")
    require(
        norm in ("dataset-wise", "inference", "none"),
        f"{path}: norm_activation={norm} scales each row by its own norm, which no dictionary "
        "of raw activations does; known: dataset-wise, inference, none",
    )
    if norm == "dataset-wise":
        norms: Any = config.get("dataset_average_activation_norm")
        require(
            isinstance(norms, dict),
            f"{path}: dataset_average_activation_norm={norms}; give an object with in and out",
        )
        scales = [_scale(path, norms, end, found.d_out) for end in ("in", "out")]
        found = for_raw_activations(found, *scales)
    if flag(path, config, "apply_decoder_bias_to_pre_encoder", default=True):
        found = without_b_dec(found)
    if flag(path, config, "sparsity_include_decoder_norm", default=True):
        found = scaled_by_decoder_norm(found)
    return found


def _scale(path: Path, norms: dict[str, Any], end: str, d_in: int) -> float:
    """What brings activations at an end to a mean norm of sqrt(d_in)."""
    norm = norms.get(end)
    if not isinstance(norm, int | float) or not 0 < norm < math.inf:
        raise UserError(
            f"{path}: dataset_average_activation_norm of {end} is {norm}; give a norm above 0"
        )
    return math.sqrt(d_in) / norm


def model_and_hooks(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """What the configurations of both layouts say of where a dictionary belongs."""
    model = path / MODEL_FILE
    read_from, output = config.get("hook_point_in"), config.get("hook_point_out")
    return {
        "model_name": read_config(model).get("model_name") if model.is_file() else None,
        "hook_name": read_from,
        "hook_name_out": output if output != read_from else None,
    }
