"""dictionary_learning: `ae.pt`, a state dict, beside `config.json` with `trainer.dict_class`.

What a file means is decided by the classes of dictionary-learning 0.1.0, all below:

- `AutoEncoder`: its `from_pretrained` rescales latents to unit rows of the decoder unless told
  `normalize_decoder=False`; here they stay as they are in the file.
- `AutoEncoderTopK`: its threshold is for callers that ask for it.
- `BatchTopKSAE`, `MatryoshkaBatchTopKSAE`: `relu(W (x - b_dec) + b)` where it is above
  `threshold`, one number, negative while it was never set.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae.base import UserError, require
from sae.dictionary import Activation, Dictionary, Gated, JumpReLU, ReLU, TopK, dictionary_of
from sae.dictionary.folding import with_b_dec, without_b_dec
from sae.dictionary.tensors import Layout, check_sizes, load_pickle, tensors_of
from sae.exchange.formats import parts


class _Class(NamedTuple):
    activation: type[Activation]
    names: parts.Names
    subtracts: bool
    """Whether b_dec goes from what is encoded."""
    beside: tuple[str, ...] = ()
    """Tensors that say nothing here."""
    sizes: Layout | None = None


_CONFIG, _WEIGHTS = "config.json", "ae.pt"
_LINEAR = {"encoder.weight": "W_enc.T", "decoder.weight": "W_dec.T"}
_RELU = _LINEAR | {"encoder.bias": "b_enc"}
_GATED = _LINEAR | {"gate_bias": "b_enc", "mag_bias": "b_mag", "r_mag": "r_mag"}
_TOPK = _RELU | {"b_dec": "b_dec"}
_DIRECT = {name: name for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
_THRESHOLD = {"threshold": "threshold"}
_ONE: Layout = {"threshold": ()}
_CLASSES = {
    "AutoEncoder": _Class(ReLU, _RELU | {"bias": "b_dec"}, True),
    "AutoEncoderNew": _Class(ReLU, _RELU | {"decoder.bias": "b_dec"}, False),
    "GatedAutoEncoder": _Class(Gated, _GATED | {"decoder_bias": "b_dec"}, True),
    "AutoEncoderTopK": _Class(TopK, _TOPK, True, ("k", "threshold")),
    "BatchTopKSAE": _Class(JumpReLU, _TOPK | _THRESHOLD, True, ("k",), _ONE),
    "MatryoshkaBatchTopKSAE": _Class(
        JumpReLU, _DIRECT | _THRESHOLD, True, ("k", "group_sizes"), _ONE
    ),
    "JumpReluAutoEncoder": _Class(JumpReLU, _DIRECT | _THRESHOLD, False),
}
_PLACES = {
    "resid_post": "hook_resid_post",
    "attention_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
}
# What its tools hook under these names: the outputs of a block and of modules right inside.
_HOOKED = {
    "resid_post": r"\d+",
    "attention_out": r"\d+\.(self_)?(attn|attention)",
    "mlp_out": r"\d+\.mlp",
}
# Which class writes each activation of ours, and in which order its tensors are.
_WRITTEN: dict[type[Activation], str] = {
    ReLU: "AutoEncoderNew",
    Gated: "GatedAutoEncoder",
    TopK: "AutoEncoderTopK",
    JumpReLU: "JumpReluAutoEncoder",
}
_ORDER = ("b_enc", "b_dec", "W_enc", "W_dec", "b_mag", "r_mag", "threshold")


class DictionaryLearning(parts.Written):
    """The folder of a trainer."""

    name = "dictionary_learning"
    files = (_CONFIG, _WEIGHTS)
    title = "dictionary_learning"
    load = """\
from dictionary_learning.utils import load_dictionary
dictionary, config = load_dictionary("{folder}", "cpu")"""
    lost = "metadata, but for model, layer and hook"
    activations = _WRITTEN
    limits = (
        ("transcoder", "its classes reconstruct what they read"),
        ("activation", "none of its classes has such an activation"),
    )

    def read(self, path: Path) -> Dictionary:
        config_path = path / _CONFIG
        config = parts.read_config(config_path)
        trainer: Any = config.get("trainer")
        require(isinstance(trainer, dict), f"{config_path}: trainer={trainer}; give an object")
        kind = _class_of(config_path, trainer)
        state = load_pickle(path / _WEIGHTS)
        file = tensors_of(path / _WEIGHTS, state)
        weights = parts.read_weights(file, kind.names, sizes=kind.sizes, beside=kind.beside)
        d_in, d_sae = weights["W_enc"].shape
        check_sizes(config_path, trainer, {"activation_dim": d_in, "dict_size": d_sae})
        native = _native(trainer, config.get("buffer"))
        numbers = {}
        if "k" in kind.beside:
            k = _checked_k(file.path, state.get("k"), config_path, trainer)
            numbers = {"k": k} if kind.activation is TopK else {}
        if kind.sizes:
            threshold = float(weights["threshold"])
            require(
                threshold >= 0,
                f"{file.path}: threshold={threshold:g} was never set, so what is active "
                "would depend on the batch; train past threshold_start_step",
            )
            weights["threshold"] = weights["threshold"].expand(d_sae).clone()
            native["training_architecture"] = "batchtopk"
        if "group_sizes" in state:
            native["training_architecture"] = "matryoshka_batchtopk"
            native["group_sizes"] = state["group_sizes"].tolist()
        own = {name: weights[name] for name in kind.activation.tensor_names()}
        activation = kind.activation(**own, **numbers)
        found = dictionary_of(weights, activation, path, parts.read_metadata(path, native))
        return without_b_dec(found) if kind.subtracts else found

    def write(self, dictionary: Dictionary, folder: Path) -> None:
        activation = dictionary.activation
        name = _WRITTEN[type(activation)]
        kind = _CLASSES[name]
        names = sorted(kind.names.items(), key=lambda i: _ORDER.index(i[1].removesuffix(".T")))
        folded = with_b_dec(dictionary) if kind.subtracts else dictionary
        state = parts.named_tensors(folded, dict(names))
        if isinstance(activation, TopK):
            state["k"] = torch.tensor(activation.k, dtype=torch.int)
            state["threshold"] = torch.tensor(-1.0)
        buffer = {"ctx_len": dictionary.record.context_size, "io": "out"}
        config = parts.as_json({"trainer": _trainer(dictionary, name), "buffer": buffer})
        parts.write_folder(
            folder, dictionary, {_CONFIG: config, _WEIGHTS: parts.as_pickle(state)}
        )


def _class_of(path: Path, trainer: Mapping[str, object]) -> _Class:
    name = str(trainer.get("dict_class"))
    require(
        name != "CrossCoder",
        f"{path}: dict_class=CrossCoder reads several hooks at once, but a dictionary reads "
        "only one",
    )
    known = ", ".join(_CLASSES)
    require(name in _CLASSES, f"{path}: dict_class={name} is not known; known: {known}")
    return _CLASSES[name]


def _checked_k(path: Path, saved: object, config_path: Path, trainer: dict[str, Any]) -> int:
    """Return the k of both files; one of them may leave it out."""
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


def _native(trainer: Mapping[str, object], buffer: object) -> dict[str, object]:
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


def _trainer(dictionary: Dictionary, name: str) -> dict[str, object]:
    layer, hook_name = parts.layer_of(dictionary), dictionary.hook_name
    submodule, site = hook_name, dictionary.reads[0].site
    for place, hook in _PLACES.items():
        # Some families norm what the module returns before it is added.
        theirs = site is None or re.search(rf"(^|\.){_HOOKED[place]}$", site.path)
        if theirs and hook_name == f"blocks.{layer}.{hook}":
            submodule = f"{place}_layer_{layer}"
    return {
        "dict_class": name,
        "activation_dim": dictionary.d_in,
        "dict_size": dictionary.d_sae,
        **dictionary.activation.numbers,
        "layer": layer,
        "lm_name": dictionary.record.model_name,
        "submodule_name": submodule,
    }
