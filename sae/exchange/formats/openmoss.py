"""OpenMOSS's Language-Model-SAEs (llamascopium): `config.json` beside `sae_weights`.

The weights are `sae_weights.safetensors`, or `.pt` with the tensors under `sae`, and a
`dataset_average_activation_norm.{hook}` each. By `SparseAutoEncoder` of llamascopium 2.0:

- latents are `act(x W_E + b_E)`, with `sparsity_include_decoder_norm` decided by that times the
  norms of W_D's rows;
- jumprelu's threshold is saved as its logarithm;
- `norm_activation: dataset-wise` means that x is first scaled to a mean norm of sqrt(d_model),
  and what is reconstructed scaled back; it is folded here. `inference` means that it has been.

Its own folding leaves a jumprelu's threshold as it was. Such a file is read as it is.

Until June 2025 the tensors were those of linear layers, as Llama Scope R1-Distill's are, and
`apply_decoder_bias_to_pre_encoder` took the decoder's bias from x once it was scaled.

What was written in 2024, Llama Scope first of all, has `hyperparams.json` instead, and linear
layers too. `SparseAutoEncoder.from_config` of November 2024 makes of them, in this order:

- `norm_activation: dataset-wise`: scales for raw activations, from the average norms `in` and
  `out` in `hyperparams.json`;
- `sparsity_include_decoder_norm`: unit rows of the decoder, the encoder times their norms;
- `act_fn: topk` with a `jump_relu_threshold` above 0 becomes jumprelu. This one number for all
  latents was measured after both steps, so neither of them changes it.

SAELens's loader of these files arrives at the same threshold, but leaves out the second step.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from sae.base import UNKNOWN, UserError, require
from sae.dictionary import (
    Activation,
    ConstantNorm,
    Dictionary,
    JumpReLU,
    ReLU,
    TopK,
    dictionary_of,
)
from sae.dictionary.folding import (
    for_raw_activations,
    scaled_by_decoder_norm,
    threshold_before_norm,
    without_b_dec,
)
from sae.dictionary.tensors import (
    TensorFile,
    check_sizes,
    flag,
    from_logarithm,
    load_pickle,
    open_safetensors,
    safetensors_there,
    tensors_of,
)
from sae.exchange.formats import parts

_CONFIG_2024, _CONFIG, _MODEL = "hyperparams.json", "config.json", "lm_config.json"
_WEIGHTS, _PICKLE = "sae_weights.safetensors", "sae_weights.pt"
_FINAL = "checkpoints/final.safetensors"
_DIRECT = {"W_E": "W_enc", "b_E": "b_enc", "W_D": "W_dec", "b_D": "b_dec"}
_LINEAR = {
    "encoder.weight": "W_enc.T",
    "encoder.bias": "b_enc",
    "decoder.weight": "W_dec.T",
    "decoder.bias": "b_dec",
}
_LOG_THRESHOLD = "activation_function.log_jumprelu_threshold"
_LOG_THRESHOLDS = (_LOG_THRESHOLD, "log_jumprelu_threshold")
_NORM = "dataset_average_activation_norm"
_ARCHITECTURES: dict[str, type[Activation]] = {"relu": ReLU, "jumprelu": JumpReLU, "topk": TopK}


class OpenMOSS(parts.Written):
    """A folder of today's, or of 2024's."""

    name = "openmoss"
    files = (_CONFIG_2024, _WEIGHTS, _FINAL, _CONFIG, _MODEL, _WEIGHTS, _PICKLE)
    title = "OpenMOSS's Language-Model-SAEs"
    load = """\
from llamascopium import SparseDictionary
dictionary = SparseDictionary.from_pretrained("{folder}")"""
    lost = "metadata, but for model and hooks; thresholds are rounded by their logarithm"
    activations = tuple(_ARCHITECTURES.values())
    limits = (
        ("activation", "its latents are chosen by relu, jumprelu or top-k"),
        ("width", "it reads and writes activations of one width"),
        ("skip", "it has no skip connection"),
    )

    def recognises(self, path: Path) -> bool:
        weights = safetensors_there(path / _WEIGHTS) or (path / _PICKLE).is_file()
        return (weights and (path / _CONFIG).is_file()) or _is_of_2024(path)

    def read(self, path: Path) -> Dictionary:
        of_2024 = _is_of_2024(path)
        config_path = path / (_CONFIG_2024 if of_2024 else _CONFIG)
        config = parts.read_config(config_path)
        require(
            not flag(config_path, config, "use_glu_encoder"),
            f"{config_path}: use_glu_encoder=true, but an encoder must be a single product "
            "with x",
        )
        model, hooks = path / _MODEL, [config.get(f"hook_point_{end}") for end in ("in", "out")]
        native = {
            "model_name": parts.read_config(model).get("model_name")
            if model.is_file()
            else None,
            "hook_name": hooks[0],
            "hook_name_out": hooks[1] if hooks[1] != hooks[0] else None,
        }
        read = _read_2024 if of_2024 else _read
        return read(path, config_path, config, parts.read_metadata(path, native))

    def write(self, dictionary: Dictionary, folder: Path) -> None:
        tensors, activation = parts.named_tensors(dictionary, _DIRECT), dictionary.activation
        if isinstance(activation, JumpReLU):
            # A threshold of 0 or less does what the smallest one does: relu comes first.
            threshold = parts.named_tensors(dictionary, {"threshold": "threshold"})["threshold"]
            positive = threshold.clamp(min=torch.finfo(torch.float32).tiny)
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
        model = parts.as_json({"model_name": dictionary.record.model_name or ""})
        files = {_CONFIG: parts.as_json(config), _MODEL: model, _WEIGHTS: save(tensors)}
        parts.write_folder(folder, dictionary, files)


def _is_of_2024(path: Path) -> bool:
    return (path / _CONFIG_2024).is_file() and not (path / _CONFIG).is_file()


def _read(
    path: Path, config_path: Path, config: dict[str, Any], metadata: Mapping[str, object]
) -> Dictionary:
    """Return what `config.json` says.

    Where the decoder's norms decide in top-k, activations come times these norms, and the rows
    of the decoder over them.
    """
    kind = config.get("sae_type", "sae")
    require(
        kind == "sae",
        f"{config_path}: sae_type={kind}; only sae can be read, with one hook on each side",
    )
    norms_known = ("dataset-wise", "inference", "token-wise")
    norm = _norm(config_path, config, "dataset-wise", norms_known)
    act_fn = str(config.get("act_fn", "relu")).lower()
    known = ", ".join(_ARCHITECTURES)
    require(
        act_fn in _ARCHITECTURES,
        f"{config_path}: act_fn={act_fn} depends on the batch or is unknown; known: {known}",
    )
    file = _open(path)
    linear = "encoder.weight" in file.headers
    names = dict(_LINEAR if linear else _DIRECT)
    if _ARCHITECTURES[act_fn] is JumpReLU:
        there = [name for name in _LOG_THRESHOLDS if name in file.headers]
        names[there[0] if there else _LOG_THRESHOLD] = "log_threshold"
    norms = tuple(name for name in file.headers if name.startswith(f"{_NORM}."))
    weights = _weights(file, names, config_path, config, norms)
    d_in, d_sae = weights["W_enc"].shape
    activation: Activation = ReLU()
    if act_fn == "topk":
        activation = _top_k(config_path, config)
    elif act_fn == "jumprelu":
        activation = JumpReLU(from_logarithm(weights["log_threshold"]))
    check_sizes(config_path, config, {"d_model": d_in})
    factor = config.get("expansion_factor")
    require(
        factor is None
        or (isinstance(factor, int | float) and abs(factor * d_in - d_sae) < 0.5),
        f"{config_path}: expansion_factor={factor} with d_model={d_in}, but the weights "
        f"have {d_sae} latents",
    )
    found = dictionary_of(weights, activation, path, metadata)
    if flag(config_path, config, "apply_decoder_bias_to_pre_encoder"):
        found = without_b_dec(found)
    if flag(config_path, config, "sparsity_include_decoder_norm", default=True):
        found = _decided_without_norms(found)
    if norm == "dataset-wise":
        scales = [_scale(file, config, key) for key in ("hook_point_in", "hook_point_out")]
        found = for_raw_activations(found, *(math.sqrt(d_in) / scale for scale in scales))
    if norm == "token-wise":
        require(
            not found.is_transcoder,
            f"{config_path}: norm_activation=token-wise, but the output of a transcoder has "
            "a norm of its own, which no file holds",
        )
        found = found.normalised(ConstantNorm())
    return found


def _read_2024(
    path: Path, config_path: Path, config: dict[str, Any], metadata: Mapping[str, object]
) -> Dictionary:
    threshold = config.get("jump_relu_threshold", 0.0)
    if not isinstance(threshold, int | float) or not 0 <= threshold < math.inf:
        raise UserError(
            f"{config_path}: jump_relu_threshold={threshold}; give a number from 0 on"
        )
    act_fn = str(config.get("act_fn", "relu")).lower()
    if act_fn == "topk" and threshold > 0:
        act_fn = "jumprelu"
    known = ", ".join(_ARCHITECTURES)
    require(
        act_fn in _ARCHITECTURES, f"{config_path}: act_fn={act_fn} is unknown; known: {known}"
    )
    there = [path / name for name in (_WEIGHTS, _FINAL) if (path / name).is_file()]
    file = open_safetensors(there[0] if there else path / _FINAL)
    weights = _weights(file, _LINEAR, config_path, config)
    d_in, d_sae = weights["W_enc"].shape
    check_sizes(config_path, config, {"d_model": d_in, "d_sae": d_sae})
    activation = _top_k(config_path, config) if act_fn == "topk" else ReLU()
    found = dictionary_of(weights, activation, path, metadata)
    norm = _norm(config_path, config, "token-wise", ("dataset-wise", "inference", "none"))
    if norm == "dataset-wise":
        norms: Any = config.get(_NORM)
        require(
            isinstance(norms, dict),
            f"{config_path}: {_NORM}={norms}; give an object with in and out",
        )
        for end in ("in", "out"):
            size = norms.get(end)
            require(
                isinstance(size, int | float) and 0 < size < math.inf,
                f"{config_path}: {_NORM} of {end} is {size}; give a norm above 0",
            )
        scales = [math.sqrt(d_in) / norms[end] for end in ("in", "out")]
        found = for_raw_activations(found, *scales)
    if flag(config_path, config, "apply_decoder_bias_to_pre_encoder", default=True):
        found = without_b_dec(found)
    if flag(config_path, config, "sparsity_include_decoder_norm", default=True):
        found = scaled_by_decoder_norm(found)
    if act_fn == "jumprelu":
        # One number for all latents, compared with activations as its own loader scales them.
        return replace(found, activation=JumpReLU(torch.full((d_sae,), float(threshold))))
    return found


def _norm(
    path: Path, config: Mapping[str, object], default: str, known: tuple[str, ...]
) -> str:
    """How activations are scaled, where a dictionary of raw ones can do the same."""
    norm = config.get("norm_activation", default)
    require(
        norm in known,
        f"{path}: norm_activation={norm} is not known for a dictionary of this kind; known: "
        f"{', '.join(known)}",
    )
    return str(norm)


def _top_k(path: Path, config: Mapping[str, object]) -> TopK:
    k = config.get("top_k")
    if type(k) is not int:
        raise UserError(f"{path}: top_k={k}; give a number")
    return TopK(k)


def _open(path: Path) -> TensorFile:
    if safetensors_there(path / _WEIGHTS):
        return open_safetensors(path / _WEIGHTS)
    pickle = path / _PICKLE
    saved = load_pickle(pickle)
    require(isinstance(saved, dict) and "sae" in saved, f"{pickle} has no weights under sae")
    return tensors_of(pickle, saved["sae"])


def _weights(
    file: TensorFile,
    names: parts.Names,
    path: Path,
    config: Mapping[str, object],
    beside: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    """Return the tensors by our names; zeros for the decoder's bias if there is none."""
    if flag(path, config, "use_decoder_bias", default=True):
        return parts.read_weights(file, names, beside=beside)
    names = {theirs: ours for theirs, ours in names.items() if ours != "b_dec"}
    found = parts.read_weights(file, names, beside=beside)
    return found | {"b_dec": torch.zeros(len(found["W_enc"]))}


def _decided_without_norms(found: Dictionary) -> Dictionary:
    """Return a dictionary that needs no norms to decide; a plain relu never needed them."""
    activation, norms = found.activation, found.W_dec.norm(dim=-1)
    if isinstance(activation, JumpReLU):
        threshold = threshold_before_norm(activation.threshold, found.W_dec)
        return replace(found, activation=JumpReLU(threshold))
    if isinstance(activation, TopK) and not torch.allclose(norms, torch.ones_like(norms)):
        return scaled_by_decoder_norm(found)
    return found


def _scale(file: TensorFile, config: Mapping[str, object], key: str) -> float:
    """Return the mean norm of activations at a hook; without an output it is the input."""
    name = f"{_NORM}.{config.get(key) or config.get('hook_point_in')}"
    header = file.headers.get(name)
    if header is None:
        raise UserError(f"{file.path} lacks {name}, which norm_activation=dataset-wise needs")
    require(
        header.floating and math.prod(header.shape) == 1,
        f"{file.path}: {name} has shape {header.shape}; give one number",
    )
    norm = float(file.get(name))
    require(0 < norm < math.inf, f"{file.path}: {name}={norm:g}; give a norm above 0")
    return norm


def _factor(d_in: int, d_sae: int) -> float:
    """Return what times d_in is d_sae, or hardly more: its own loader takes the whole part."""
    factor = d_sae / d_in
    return factor if int(factor * d_in) == d_sae else math.nextafter(factor, math.inf)
