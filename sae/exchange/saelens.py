"""The folder that SAELens loads: `cfg.json` beside `sae_weights.safetensors`.

It is our own format as well. What SAELens 6 asks of a writer: `metadata.sae_lens_version`
of at least 6.0.0 (else it drops all metadata), a `dtype`, no tensor that the architecture
does not have, and all scales folded with `normalize_activations: none`.

`architecture` in `cfg.json` names the rule and the kind at once: `jumprelu`,
`jumprelu_transcoder`, `jumprelu_skip_transcoder`, .... The standard rule is left out of
`transcoder` and `skip_transcoder`. SAELens knows all of these but the transcoders of topk
and gated: those are ours alone.

What SAELens wrote before its version 6 is read as version 6 reads it: all keys on one level,
`activation_fn: topk` for the architecture, `b_dec` subtracted unless it says otherwise.

The weights are float32, bfloat16 or float16, as `dtype` says. `dtype: int8` is ours alone, with
scales beside the weights (`sae.exchange.shrink`).
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from sae.base.errors import require
from sae.base.files import atomic_path, read_json
from sae.dictionary import ARCHITECTURES, CODER, Dictionary
from sae.exchange.folding import (
    Weights,
    has_unit_rows,
    scaled_by_decoder_norm,
    without_b_dec,
)
from sae.exchange.metadata import checked_metadata, said_to_be_transcoder
from sae.exchange.shrink import FULL, INT8, dequantized, packed
from sae.exchange.tensors import (
    Layout,
    TensorFile,
    check_sizes,
    flag,
    from_logarithm,
    open_safetensors,
)

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
SPARSITY_FILE = "sparsity.safetensors"
_TRANSCODERS_OF_SAELENS = ("standard", "jumprelu")
# A dictionary of these is a jumprelu one.
_ONLY_IN_TRAINING = ("batchtopk", "matryoshka_batchtopk")
_NAMES_IN_FILE = {"gated": {"b_enc": "b_gate"}}
_METADATA_BEFORE_6 = (
    "model_name",
    "model_class_name",
    "hook_name",
    "hook_head_index",
    "context_size",
    "prepend_bos",
    "dataset_path",
    "neuronpedia_id",
    "sae_lens_training_version",
)


class _Kind(NamedTuple):
    """What an `architecture` of `cfg.json` says."""

    rule: str
    transcoder: bool
    skip: bool

    @property
    def name(self) -> str:
        """The word in `cfg.json`."""
        if not self.transcoder:
            return self.rule
        word = "skip_transcoder" if self.skip else "transcoder"
        return word if self.rule == "standard" else f"{self.rule}_{word}"

    @property
    def ours_alone(self) -> bool:
        """Whether SAELens has no architecture of this name."""
        return self.transcoder and self.rule not in _TRANSCODERS_OF_SAELENS

    @property
    def tensors(self) -> dict[str, str]:
        """Our names of its tensors, and those in the file."""
        fields = [name for name in ARCHITECTURES[self.rule].fields if name != "k"]
        skip = ["W_skip"] if self.skip else []
        renamed = _NAMES_IN_FILE.get(self.rule, {})
        return {name: renamed.get(name, name) for name in (*CODER, *fields, *skip)}

    @property
    def layout(self) -> Layout:
        """Its tensors by their names in the file."""
        d_out = "d_out" if self.transcoder else "d_in"
        shapes = {
            "W_enc": ("d_in", "d_sae"),
            "W_dec": ("d_sae", d_out),
            "b_dec": (d_out,),
            "W_skip": (d_out, "d_in"),
        }
        return {file: shapes.get(name, ("d_sae",)) for name, file in self.tensors.items()}


_KINDS = {
    kind.name: kind
    for kind in (
        _Kind(rule, transcoder, skip)
        for rule in ARCHITECTURES
        for transcoder, skip in ((False, False), (True, False), (True, True))
    )
}


def _kind_of(dictionary: Dictionary) -> _Kind:
    skip = dictionary.W_skip is not None
    return _Kind(dictionary.architecture, dictionary.is_transcoder, skip)


def loads_in_saelens(dictionary: Dictionary, dtype: str = FULL) -> bool:
    """Whether SAELens has a class for what `save_dictionary` writes."""
    return dtype != INT8 and not _kind_of(dictionary).ours_alone


def save_dictionary(dictionary: Dictionary, folder: Path, dtype: str = FULL) -> None:
    """Write `folder`, appearing all at once.

    Args:
        dtype: of the weights in the file, one of `sae.exchange.shrink.DTYPES`.

    Raises:
        UserError: if a weight is beyond what `dtype` can say.
    """
    kind = _kind_of(dictionary)
    stored = packed(dictionary.tensors, dtype)
    config: dict[str, Any] = {
        "architecture": kind.name,
        "d_in": dictionary.d_in,
        "d_sae": dictionary.d_sae,
        **({"d_out": dictionary.d_out} if kind.transcoder else {}),
        **({} if dictionary.k is None else {"k": dictionary.k}),
        **_topk_settings(kind, stored["W_dec"]),
        "dtype": dtype,
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.0.0", **dictionary.metadata},
    }
    tensors = {kind.tensors.get(name, name): tensor for name, tensor in stored.items()}
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        (temporary / CONFIG_FILE).write_text(
            json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        # As bytes, not by `save_file`, whose errors hide that the disk is full.
        (temporary / WEIGHTS_FILE).write_bytes(save(tensors))


def _topk_settings(kind: _Kind, W_dec: Tensor) -> dict[str, bool]:
    """Whether SAELens may fold the norms of the decoder's rows, which top-k does not see."""
    if kind.rule != "topk":
        return {}
    return {"rescale_acts_by_decoder_norm": has_unit_rows(W_dec)}


def save_sparsity(density: Tensor, folder: Path) -> None:
    """Add SAELens's `sparsity.safetensors`: log10 of each latent's share of active rows."""
    with atomic_path(folder / SPARSITY_FILE) as temporary:
        temporary.write_bytes(save({"sparsity": torch.log10(density.float().cpu() + 1e-10)}))


def load_dictionary(folder: str | Path) -> Dictionary:
    """Read a dictionary folder, ours or SAELens's.

    Raises:
        UserError: if a file is missing or broken, or the architecture is not known.
    """
    folder = Path(folder)
    require(folder.is_dir(), f"{folder} is no folder; a dictionary is a folder with cfg.json")
    path = folder / CONFIG_FILE
    config = read_json(path)
    require(isinstance(config, dict), f"{path} is no JSON object; damaged?")
    config = _as_version_6(config)
    architecture = str(config.get("architecture"))
    require(
        architecture not in _ONLY_IN_TRAINING,
        f"{folder} is a training checkpoint of {architecture}; save the dictionary in SAELens "
        "with save_inference_model",
    )
    require(
        architecture in _KINDS,
        f"{folder}: architecture {architecture} is not known; known: {', '.join(_KINDS)}",
    )
    kind = _KINDS[architecture]
    require(
        config.get("normalize_activations", "none") == "none",
        f"{folder}: normalize_activations={config.get('normalize_activations')} is not folded; "
        "fold it in SAELens before saving",
    )
    subtracts = flag(path, config, "apply_b_dec_to_input")
    require(
        not (subtracts and kind.transcoder),
        f"{folder}: apply_b_dec_to_input=true, but a transcoder's b_dec is not of its input",
    )
    k = config.get("k") if kind.rule == "topk" else None
    require(
        kind.rule != "topk" or type(k) is int,
        f"{path}: k={k}; a {architecture} dictionary needs a whole number",
    )
    metadata = config.get("metadata", {})
    require(isinstance(metadata, dict), f"{path}: metadata={metadata}; give an object")
    metadata = checked_metadata(path, metadata)
    file = open_safetensors(folder / WEIGHTS_FILE)
    weights = _read(dequantized(file) if config.get("dtype") == INT8 else file, kind)
    (d_in, d_sae), d_out = weights["W_enc"].shape, weights["W_dec"].shape[1]
    check_sizes(path, config, {"d_in": d_in, "d_sae": d_sae, "d_out": d_out})
    if subtracts:
        weights = without_b_dec(weights)
    rescales = flag(path, config, "rescale_acts_by_decoder_norm") and kind.rule == "topk"
    if rescales and not has_unit_rows(weights["W_dec"]):
        # SAELens multiplies what goes into top-k by the norms, and divides what comes out.
        weights = scaled_by_decoder_norm(weights)
    tensors: dict[str, Any] = {**weights}
    found = Dictionary(**tensors, architecture=kind.rule, k=k, metadata=metadata)
    return said_to_be_transcoder(found) if kind.transcoder else found


def _as_version_6(config: dict[str, Any]) -> dict[str, Any]:
    """What SAELens 6 makes of a configuration without its version."""
    if "metadata" in config:
        return config
    old = {"architecture": "standard", "apply_b_dec_to_input": True, **config}
    if "hook_point" in old:
        old.setdefault("hook_name", old["hook_point"])
    activation = old.get("activation_fn") or old.get("activation_fn_str") or "relu"
    require(
        activation in ("relu", "topk"),
        f"activation_fn={activation} is not known; known of SAELens before 6: relu, topk",
    )
    if activation == "topk":
        settings = old.get("activation_fn_kwargs") or {}
        require(
            isinstance(settings, dict),
            f"activation_fn_kwargs={settings}; give an object with k",
        )
        old |= {"architecture": "topk", "k": settings.get("k", old.get("k"))}
    # Before there was a choice of norms it said true or false.
    norms = old.get("normalize_activations") or "none"
    metadata = {name: old[name] for name in _METADATA_BEFORE_6 if name in old}
    return {**old, "normalize_activations": norms, "metadata": metadata}


def _read(file: TensorFile, kind: _Kind) -> Weights:
    """The weights of a file by our names."""
    names, layout = dict(kind.tensors), dict(kind.layout)
    old_threshold = kind.rule == "jumprelu" and "log_threshold" in file.headers
    if old_threshold:
        names["threshold"] = "log_threshold"
        layout["log_threshold"] = layout.pop("threshold")
    # A factor for each latent that SAELens once wrote, as ones; anything else is not known.
    layout["scaling_factor"] = ("d_sae",)
    found = file.read(layout, optional=("scaling_factor",))
    factor = found.get("scaling_factor", torch.ones(1))
    require(
        bool((factor == 1).all()),
        f"{file.path}: scaling_factor is not folded; fold it into W_dec before saving",
    )
    weights = {name: found[in_file] for name, in_file in names.items()}
    if old_threshold:
        weights["threshold"] = from_logarithm(weights["threshold"])
    return weights
