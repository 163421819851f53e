"""dictionary_learning: `ae.pt`, a state dict, beside `config.json` with `trainer.dict_class`.

Linear layers have `encoder.weight` (d_sae, d_in) and `decoder.weight` (d_in, d_sae). By the
classes of dictionary-learning 0.1.0, which decide what a file means:

- `AutoEncoder`: `relu(W (x - bias) + b)`. Its `from_pretrained` rescales latents to unit rows
  of the decoder unless told `normalize_decoder=False`; here they stay as they are in the file.
- `AutoEncoderNew`: `relu(W x + b)`, nothing subtracted.
- `GatedAutoEncoder`: `W (x - decoder_bias)` goes into gate and magnitude.
- `AutoEncoderTopK`: the k largest of `relu(W (x - b_dec) + b)`; its threshold is for callers
  that ask for it.
- `BatchTopKSAE`, `MatryoshkaBatchTopKSAE`: `relu(W (x - b_dec) + b)` where it is above
  `threshold`, one number, negative while it was never set.
- `JumpReluAutoEncoder`: `W_enc` (d_in, d_sae), a threshold each, nothing subtracted.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae.base import UserError, require
from sae.dictionary import Activation, Dictionary, Gated, JumpReLU, ReLU, TopK, dictionary_of
from sae.dictionary.folding import with_b_dec, without_b_dec
from sae.dictionary.tensors import Layout, check_sizes, load_pickle, tensors_of
from sae.exchange.formats.parts import (
    as_json,
    as_pickle,
    layer_of,
    plain,
    read_config,
    read_metadata,
    write_folder,
)

NAME = "dictionary_learning"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "ae.pt"
FILES: tuple[str, ...] = (CONFIG_FILE, WEIGHTS_FILE)
TITLE = "dictionary_learning"
LOAD = """\
from dictionary_learning.utils import load_dictionary
dictionary, config = load_dictionary("{folder}", "cpu")"""
LOST = "metadata, but for model, layer and hook"


class _Class(NamedTuple):
    """What a class of theirs means by its tensors."""

    activation: type[Activation]
    layout: Layout
    b_enc: str
    b_dec: str
    subtracts: bool
    """Whether b_dec goes from what is encoded."""
    beside: tuple[str, ...] = ()
    """Tensors that say nothing here."""


_LATENT, _WIDTH = ("d_sae",), ("d_in",)
_LINEAR = {"encoder.weight": ("d_sae", "d_in"), "decoder.weight": ("d_in", "d_sae")}
_DIRECT = {"W_enc": ("d_in", "d_sae"), "W_dec": ("d_sae", "d_in")}
_RELU = _LINEAR | {"encoder.bias": _LATENT}
_TOPK = _RELU | {"b_dec": _WIDTH}
_GATED = _LINEAR | dict.fromkeys(("gate_bias", "mag_bias", "r_mag"), _LATENT)
_BIASED = _DIRECT | {"b_enc": _LATENT, "b_dec": _WIDTH}
_ONE: Layout = {"threshold": ()}
_CLASSES = {
    "AutoEncoder": _Class(
        ReLU, _RELU | {"bias": _WIDTH}, "encoder.bias", "bias", subtracts=True
    ),
    "AutoEncoderNew": _Class(
        ReLU,
        _RELU | {"decoder.bias": _WIDTH},
        "encoder.bias",
        "decoder.bias",
        subtracts=False,
    ),
    "GatedAutoEncoder": _Class(
        Gated, _GATED | {"decoder_bias": _WIDTH}, "gate_bias", "decoder_bias", subtracts=True
    ),
    "AutoEncoderTopK": _Class(TopK, _TOPK, "encoder.bias", "b_dec", True, ("k", "threshold")),
    "BatchTopKSAE": _Class(JumpReLU, {**_TOPK, **_ONE}, "encoder.bias", "b_dec", True, ("k",)),
    "MatryoshkaBatchTopKSAE": _Class(
        JumpReLU, {**_BIASED, **_ONE}, "b_enc", "b_dec", True, ("k", "group_sizes")
    ),
    "JumpReluAutoEncoder": _Class(
        JumpReLU, _BIASED | {"threshold": _LATENT}, "b_enc", "b_dec", subtracts=False
    ),
}
_PLACES = {
    "resid_post": "hook_resid_post",
    "attention_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
}
# Which class writes each architecture of ours.
_WRITTEN: dict[type[Activation], str] = {
    ReLU: "AutoEncoderNew",
    Gated: "GatedAutoEncoder",
    TopK: "AutoEncoderTopK",
    JumpReLU: "JumpReluAutoEncoder",
}


def recognises(path: Path) -> bool:
    """Whether the weights are there."""
    return (path / WEIGHTS_FILE).is_file()


def read(path: Path) -> Dictionary:
    """The dictionary of a trainer's folder.

    Raises:
        UserError: if a file is missing or broken, the class has no counterpart, or the
            threshold of a batch's top-k was never set.
    """
    config_path = path / CONFIG_FILE
    config = read_config(config_path)
    trainer: Any = config.get("trainer")
    require(isinstance(trainer, dict), f"{config_path}: trainer={trainer}; give an object")
    kind = _class_of(config_path, trainer)
    state = load_pickle(path / WEIGHTS_FILE)
    file = tensors_of(path / WEIGHTS_FILE, state)
    found = file.read(kind.layout, beside=kind.beside)
    weights = _weights(kind, found)
    d_in, d_sae = weights["W_enc"].shape
    check_sizes(config_path, trainer, {"activation_dim": d_in, "dict_size": d_sae})
    native = _native(trainer, config.get("buffer"))
    k = 0
    if "k" in kind.beside:
        k = _checked_k(file.path, state.get("k"), config_path, trainer)
    if kind.layout.get("threshold") == ():
        threshold = float(found["threshold"])
        require(
            threshold >= 0,
            f"{file.path}: threshold={threshold:g} was never set, and what the top-k of a "
            "batch chooses depends on the batch; train past threshold_start_step",
        )
        found["threshold"] = found["threshold"].expand(d_sae).clone()
        native["training_architecture"] = "batchtopk"
    if "group_sizes" in state:
        native["training_architecture"] = "matryoshka_batchtopk"
        native["group_sizes"] = state["group_sizes"].tolist()
    activation = _activation(kind, found, k)
    dictionary = dictionary_of(weights, activation, path, read_metadata(path, native))
    return without_b_dec(dictionary) if kind.subtracts else dictionary


def _class_of(path: Path, trainer: dict[str, Any]) -> _Class:
    name = str(trainer.get("dict_class"))
    require(
        name != "CrossCoder",
        f"{path}: dict_class=CrossCoder reads several hooks at once, and a dictionary here one",
    )
    if name not in _CLASSES:
        known = ", ".join(_CLASSES)
        raise UserError(f"{path}: dict_class={name} is not known; known: {known}")
    return _CLASSES[name]


def _weights(kind: _Class, found: dict[str, Tensor]) -> dict[str, Tensor]:
    linear = "encoder.weight" in found
    return {
        "W_enc": found["encoder.weight"].t() if linear else found["W_enc"],
        "b_enc": found[kind.b_enc],
        "W_dec": found["decoder.weight"].t() if linear else found["W_dec"],
        "b_dec": found[kind.b_dec],
    }


def _activation(kind: _Class, found: dict[str, Tensor], k: int) -> Activation:
    if kind.activation is Gated:
        return Gated(found["mag_bias"], found["r_mag"])
    if kind.activation is JumpReLU:
        return JumpReLU(found["threshold"])
    return TopK(k) if kind.activation is TopK else ReLU()


def _checked_k(path: Path, saved: Any, config_path: Path, trainer: dict[str, Any]) -> int:
    """The k of both files; one of them may leave it out."""
    asked = trainer.get("k")
    if isinstance(saved, Tensor):
        require(
            saved.numel() == 1, f"{path}: k has shape {tuple(saved.shape)}; give one number"
        )
        whole = not (saved.is_floating_point() or saved.is_complex())
        require(whole, f"{path}: k={saved.item()}; give a whole number")
        check_sizes(config_path, trainer, {"k": int(saved)})
        return int(saved)
    if type(asked) is not int:
        raise UserError(f"{config_path}: k={asked}; give a whole number")
    return asked


def _native(trainer: dict[str, Any], buffer: Any) -> dict[str, Any]:
    """Model and hook; a submodule's name is what its owner chose to call it."""
    layer, name = trainer.get("layer"), str(trainer.get("submodule_name"))
    place = re.fullmatch(r"([a-z_]+?)(?:_layer_(\d+))?", name)
    hook_name = None
    if re.match(r"blocks\.\d+\.", name):
        hook_name = name
    elif place and place[1] in _PLACES and place[2] in (None, str(layer)):
        hook_name = f"blocks.{layer}.{_PLACES[place[1]]}"
    return {
        "model_name": trainer.get("lm_name"),
        "hook_name": hook_name,
        "context_size": buffer.get("ctx_len") if isinstance(buffer, dict) else None,
    }


def cannot_hold(dictionary: Dictionary) -> str | None:
    """Why none of its classes has a place for it."""
    if dictionary.is_transcoder:
        return "its classes reconstruct what they read"
    if type(dictionary.activation) not in _WRITTEN:
        return "none of its classes has such an activation"
    return None


def write(dictionary: Dictionary, folder: Path) -> None:
    """Write `folder`, appearing all at once."""
    activation = dictionary.activation
    name = _WRITTEN[type(activation)]
    kind = _CLASSES[name]
    weights = (with_b_dec(dictionary) if kind.subtracts else dictionary).tensors
    state: dict[str, Any] = {kind.b_enc: weights["b_enc"], kind.b_dec: weights["b_dec"]}
    if "encoder.weight" in kind.layout:
        state["encoder.weight"] = weights["W_enc"].t()
        state["decoder.weight"] = weights["W_dec"].t()
    else:
        state |= {"W_enc": weights["W_enc"], "W_dec": weights["W_dec"]}
    if name == "GatedAutoEncoder":
        state |= {"mag_bias": weights["b_mag"], "r_mag": weights["r_mag"]}
    if name == "JumpReluAutoEncoder":
        state["threshold"] = weights["threshold"]
    state = {key: plain(value) for key, value in state.items()}
    if isinstance(activation, TopK):
        state["k"] = torch.tensor(activation.k, dtype=torch.int)
        state["threshold"] = torch.tensor(-1.0)
    config = {"trainer": _trainer(dictionary, name), "buffer": _buffer(dictionary)}
    write_folder(
        folder, dictionary, {CONFIG_FILE: as_json(config), WEIGHTS_FILE: as_pickle(state)}
    )


def _trainer(dictionary: Dictionary, name: str) -> dict[str, Any]:
    layer = layer_of(dictionary)
    places = {hook: place for place, hook in _PLACES.items()}
    hook_name = dictionary.hook_name
    place = places.get(hook_name.removeprefix(f"blocks.{layer}."))
    return {
        "dict_class": name,
        "activation_dim": dictionary.d_in,
        "dict_size": dictionary.d_sae,
        **dictionary.activation.numbers,
        "layer": layer,
        "lm_name": dictionary.record.model_name,
        "submodule_name": hook_name if place is None else f"{place}_layer_{layer}",
    }


def _buffer(dictionary: Dictionary) -> dict[str, Any]:
    return {"ctx_len": dictionary.record.context_size, "io": "out"}
