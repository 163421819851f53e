"""OpenMOSS's Language-Model-SAEs (llamascopium): `config.json` beside `sae_weights`.

The weights are `sae_weights.safetensors`, or `.pt` with the tensors under `sae`: `W_E` (d_in,
d_sae), `b_E`, `W_D` (d_sae, d_in), `b_D`, `activation_function.log_jumprelu_threshold`, and a
`dataset_average_activation_norm.{hook}` each. By `SparseAutoEncoder` of llamascopium 2.0:

- latents are `act(x W_E + b_E)`, with `sparsity_include_decoder_norm` decided by that times the
  norms of W_D's rows;
- jumprelu's threshold is saved as its logarithm;
- `norm_activation: dataset-wise` means that x is first scaled to a mean norm of sqrt(d_model),
  and what is reconstructed scaled back; it is folded here. `inference` means that it has been.

Its own folding leaves a jumprelu's threshold as it was. Such a file is read as it is.

Until June 2025 the tensors were those of linear layers: `encoder.weight` (d_sae, d_in),
`encoder.bias`, `decoder.weight` (d_in, d_sae), `decoder.bias`, and until April that year
`log_jumprelu_threshold` without the module before it. Llama Scope R1-Distill is of these.
Until that June, too, `apply_decoder_bias_to_pre_encoder` took the decoder's bias from x once it
was scaled. What OpenMOSS wrote in 2024 is read by `sae.exchange.formats.openmoss_2024`.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from sae.base import UNKNOWN, UserError, require
from sae.dictionary import Activation, Dictionary, JumpReLU, ReLU, TopK, dictionary_of
from sae.dictionary.folding import (
    for_raw_activations,
    scaled_by_decoder_norm,
    threshold_before_norm,
    without_b_dec,
)
from sae.dictionary.tensors import (
    Layout,
    TensorFile,
    check_sizes,
    flag,
    from_logarithm,
    load_pickle,
    open_safetensors,
    safetensors_there,
    tensors_of,
)
from sae.exchange.formats import openmoss_2024
from sae.exchange.formats.openmoss_2024 import MODEL_FILE, model_and_hooks
from sae.exchange.formats.parts import (
    as_json,
    plain,
    read_config,
    read_metadata,
    write_folder,
)

NAME = "openmoss"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "sae_weights.safetensors"
PICKLE_FILE = "sae_weights.pt"
FILES: tuple[str, ...] = (
    openmoss_2024.CONFIG_FILE,
    *openmoss_2024.WEIGHTS_FILES,
    CONFIG_FILE,
    MODEL_FILE,
    WEIGHTS_FILE,
    PICKLE_FILE,
)
TITLE = "OpenMOSS's Language-Model-SAEs"
LOAD = """\
from llamascopium import SparseDictionary
dictionary = SparseDictionary.from_pretrained("{folder}")"""
LOST = "metadata, but for model and hooks; thresholds are rounded by their logarithm"

_LATENT, _WIDTH = ("d_sae",), ("d_in",)
_DIRECT: Layout = {"W_E": ("d_in", "d_sae"), "b_E": _LATENT, "W_D": ("d_sae", "d_in")}
_LINEAR: Layout = {
    "encoder.weight": ("d_sae", "d_in"),
    "encoder.bias": _LATENT,
    "decoder.weight": ("d_in", "d_sae"),
}
_LOG_THRESHOLD = "activation_function.log_jumprelu_threshold"
_LOG_THRESHOLDS = (_LOG_THRESHOLD, "log_jumprelu_threshold")
_NORM = "dataset_average_activation_norm."
_ARCHITECTURES: dict[str, type[Activation]] = {"relu": ReLU, "jumprelu": JumpReLU, "topk": TopK}


def recognises(path: Path) -> bool:
    """Whether configuration and weights are there, or the configuration of 2024."""
    weights = safetensors_there(path / WEIGHTS_FILE) or (path / PICKLE_FILE).is_file()
    return (weights and (path / CONFIG_FILE).is_file()) or _is_of_2024(path)


def _is_of_2024(path: Path) -> bool:
    return (path / openmoss_2024.CONFIG_FILE).is_file() and not (path / CONFIG_FILE).is_file()


def read(path: Path) -> Dictionary:
    """The dictionary of a folder.

    Where the decoder's norms decide in top-k, activations come times these norms, and the rows
    of the decoder over them.

    Raises:
        UserError: if a file is missing or broken, or its kind, activation or norm has no
            counterpart.
    """
    if _is_of_2024(path):
        return openmoss_2024.read(path)
    config_path = path / CONFIG_FILE
    config = read_config(config_path)
    architecture = _architecture(config_path, config)
    file = _open(path)
    bias = flag(config_path, config, "use_decoder_bias", default=True)
    weights, activation = _weights(file, config_path, config, architecture, bias=bias)
    d_in, d_sae = weights["W_enc"].shape
    check_sizes(config_path, config, {"d_model": d_in})
    factor = config.get("expansion_factor")
    require(
        factor is None
        or (isinstance(factor, int | float) and abs(factor * d_in - d_sae) < 0.5),
        f"{config_path}: expansion_factor={factor} of d_model={d_in}, but the weights have "
        f"{d_sae} latents",
    )
    metadata = read_metadata(path, model_and_hooks(path, config))
    found = dictionary_of(weights, activation, path, metadata)
    if flag(config_path, config, "apply_decoder_bias_to_pre_encoder"):
        found = without_b_dec(found)
    if flag(config_path, config, "sparsity_include_decoder_norm", default=True):
        found = _decided_without_norms(found)
    if config.get("norm_activation", "dataset-wise") == "dataset-wise":
        scales = [
            _scale(file, config, key, d_in) for key in ("hook_point_in", "hook_point_out")
        ]
        found = for_raw_activations(found, *scales)
    return found


def _architecture(path: Path, config: dict[str, Any]) -> type[Activation]:
    """Its activation, where the rest of it is what a dictionary can be."""
    kind = config.get("sae_type", "sae")
    require(
        kind == "sae", f"{path}: sae_type={kind}; only sae is known here, of one hook each way"
    )
    require(
        not flag(path, config, "use_glu_encoder"),
        f"{path}: use_glu_encoder=true, but an encoder here is one product with x",
    )
    norm = config.get("norm_activation", "dataset-wise")
    require(
        norm in ("dataset-wise", "inference"),
        f"{path}: norm_activation={norm} scales each row by its own norm, which no dictionary "
        "of raw activations does; known: dataset-wise, inference",
    )
    activation = str(config.get("act_fn", "relu")).lower()
    if activation not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise UserError(
            f"{path}: act_fn={activation} chooses by the batch or is unknown; known: {known}"
        )
    return _ARCHITECTURES[activation]


def _open(path: Path) -> TensorFile:
    if safetensors_there(path / WEIGHTS_FILE):
        return open_safetensors(path / WEIGHTS_FILE)
    pickle = path / PICKLE_FILE
    saved = load_pickle(pickle)
    require(isinstance(saved, dict) and "sae" in saved, f"{pickle} has no weights under sae")
    return tensors_of(pickle, saved["sae"])


def _weights(
    file: TensorFile,
    path: Path,
    config: dict[str, Any],
    architecture: type[Activation],
    *,
    bias: bool,
) -> tuple[dict[str, Tensor], Activation]:
    """What the file holds, of either layout, by our names and in our shapes."""
    linear = "encoder.weight" in file.headers
    layout = dict(_LINEAR if linear else _DIRECT)
    b_dec = "decoder.bias" if linear else "b_D"
    if bias:
        layout[b_dec] = _WIDTH
    thresholds = [name for name in _LOG_THRESHOLDS if name in file.headers]
    log_threshold = thresholds[0] if thresholds else _LOG_THRESHOLD
    if architecture is JumpReLU:
        layout[log_threshold] = _LATENT
    norms = tuple(name for name in file.headers if name.startswith(_NORM))
    found = file.read(layout, beside=norms)
    weights = {
        "W_enc": found["encoder.weight"].t() if linear else found["W_E"],
        "b_enc": found["encoder.bias" if linear else "b_E"],
        "W_dec": found["decoder.weight"].t() if linear else found["W_D"],
    }
    d_in = len(weights["W_enc"])
    weights["b_dec"] = found[b_dec] if bias else torch.zeros(d_in)
    if architecture is JumpReLU:
        return weights, JumpReLU(from_logarithm(found[log_threshold]))
    return weights, openmoss_2024.top_k(path, config) if architecture is TopK else ReLU()


def _decided_without_norms(found: Dictionary) -> Dictionary:
    """A dictionary that needs no norms to decide; a plain relu never needed them."""
    activation, norms = found.activation, found.W_dec.norm(dim=-1)
    if isinstance(activation, JumpReLU):
        threshold = threshold_before_norm(activation.threshold, found.W_dec)
        return replace(found, activation=JumpReLU(threshold))
    if isinstance(activation, TopK) and not torch.allclose(norms, torch.ones_like(norms)):
        return scaled_by_decoder_norm(found)
    return found


def _scale(file: TensorFile, config: dict[str, Any], key: str, d_in: int) -> float:
    """What brings activations of a hook to a mean norm of sqrt(d_in)."""
    # Without an output it is the input.
    name = f"{_NORM}{config.get(key) or config.get('hook_point_in')}"
    header = file.headers.get(name)
    require(
        header is not None,
        f"{file.path} misses {name}, which norm_activation=dataset-wise needs",
    )
    assert header is not None
    require(
        header.floating and math.prod(header.shape) == 1,
        f"{file.path}: {name} has shape {header.shape}; give one number",
    )
    norm = float(file.get(name))
    require(0 < norm < math.inf, f"{file.path}: {name}={norm:g}; give a norm above 0")
    return math.sqrt(d_in) / norm


def cannot_hold(dictionary: Dictionary) -> str | None:
    """Why it has no place for it."""
    if type(dictionary.activation) not in _ARCHITECTURES.values():
        return "its latents are chosen by relu, jumprelu or top-k"
    if dictionary.d_in != dictionary.d_out:
        return "it reads and writes activations of one width"
    if dictionary.W_skip is not None:
        return "it has no skip connection"
    return None


def write(dictionary: Dictionary, folder: Path) -> None:
    """Write `folder`, appearing all at once."""
    tensors = {
        "W_E": plain(dictionary.W_enc),
        "b_E": plain(dictionary.b_enc),
        "W_D": plain(dictionary.W_dec),
        "b_D": plain(dictionary.b_dec),
    }
    activation = dictionary.activation
    if isinstance(activation, JumpReLU):
        # A threshold of 0 or less does what the smallest one does: relu comes first.
        positive = plain(activation.threshold).clamp(min=torch.finfo(torch.float32).tiny)
        tensors[_LOG_THRESHOLD] = positive.log()
    names = {ours: theirs for theirs, ours in _ARCHITECTURES.items()}
    hooks = ["" if name == UNKNOWN else name for name in dictionary.hook_names]
    config = {
        "sae_type": "sae",
        "d_model": dictionary.d_in,
        "expansion_factor": _factor(dictionary.d_in, dictionary.d_sae),
        "use_decoder_bias": True,
        "act_fn": names[type(activation)],
        "norm_activation": "inference",
        "sparsity_include_decoder_norm": False,
        "hook_point_in": hooks[0],
        "hook_point_out": hooks[1],
        "use_glu_encoder": False,
        **({"top_k": activation.k} if isinstance(activation, TopK) else {}),
        "dtype": "torch.float32",
        "device": "cpu",
    }
    model = {"model_name": dictionary.record.model_name or ""}
    files = {
        CONFIG_FILE: as_json(config),
        MODEL_FILE: as_json(model),
        WEIGHTS_FILE: save(tensors),
    }
    write_folder(folder, dictionary, files)


def _factor(d_in: int, d_sae: int) -> float:
    """What times d_in is d_sae, or hardly more: its own loader takes the whole part."""
    factor = d_sae / d_in
    return factor if int(factor * d_in) == d_sae else math.nextafter(factor, math.inf)
