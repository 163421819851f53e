"""The folder that SAELens loads: `cfg.json` beside `sae_weights.safetensors`.

It is our own format as well. What SAELens 6 asks of a writer: `metadata.sae_lens_version`
of at least 6.0.0 (else it drops all metadata), a `dtype`, no tensor that the architecture
does not have, and all scales folded. `normalize_activations` says what is done to each row by
itself, or none.

`architecture` in `cfg.json` names the activation and the kind at once: `jumprelu`,
`jumprelu_transcoder`, `jumprelu_skip_transcoder`, .... The standard activation is left out
of `transcoder` and `skip_transcoder`. SAELens knows all of these but the transcoders of topk
and gated: those are ours alone.

What SAELens wrote before its version 6 is read as version 6 reads it: all keys on one level,
`activation_fn: topk` for the architecture, `b_dec` subtracted unless it says otherwise.

The weights are float32, bfloat16 or float16, as `dtype` says. `dtype: int8` is ours alone, with
scales beside the weights (`sae.dictionary.storage`).
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from sae.base import UserError, atomic_path, check_whole, read_object, require, seal
from sae.dictionary.activations import ACTIVATIONS, Activation, JumpReLU, ReLU, TopK
from sae.dictionary.dictionary import CODER, SHAPES, Dictionary
from sae.dictionary.folding import (
    has_unit_rows,
    scaled_by_decoder_norm,
    with_input_scale,
    without_b_dec,
)
from sae.dictionary.metadata import dictionary_of, metadata_of
from sae.dictionary.normalisation import NORMALISATIONS, Normalisation
from sae.dictionary.record import Record
from sae.dictionary.storage import FULL, INT8, dequantized, packed
from sae.dictionary.tensors import (
    TensorFile,
    check_sizes,
    flag,
    from_logarithm,
    open_safetensors,
)

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
SPARSITY_FILE = "sparsity.safetensors"
_ANEW = "run the same sae train, import or export again, which makes it anew"
# A dictionary of these is a jumprelu one.
_ONLY_IN_TRAINING = ("batchtopk", "matryoshka_batchtopk")
# Where a configuration has the number that all rows are multiplied by.
_FACTORS = {
    "expected_average_only_in": "norm_scaling_factor",
    "constant_scalar_rescale": "activation_normalization_factor",
}
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

    activation: type[Activation]
    transcoder: bool
    skip: bool

    @property
    def name(self) -> str:
        """The word in `cfg.json`."""
        if not self.transcoder:
            return self.activation.name
        word = "skip_transcoder" if self.skip else "transcoder"
        return word if self.activation is ReLU else f"{self.activation.name}_{word}"

    @property
    def names_in_file(self) -> dict[str, str]:
        """The names of its tensors in the file, by ours."""
        skip = ["W_skip"] if self.skip else []
        renamed = self.activation.names_in_file
        names = (*CODER, *self.activation.tensor_names(), *skip)
        return {name: renamed.get(name, name) for name in names}


def loads_in_saelens(dictionary: Dictionary, dtype: str = FULL) -> bool:
    """Return whether SAELens has a class for what `save_dictionary` writes."""
    activation = dictionary.activation
    transcoder = dictionary.is_transcoder
    known = activation.transcodes_in_saelens if transcoder else activation.in_saelens
    return known and dtype != INT8


def save_dictionary(dictionary: Dictionary, folder: Path, dtype: str = FULL) -> None:
    """Write `folder`, appearing all at once.

    Args:
        dtype: type of the weights in the file, one of `sae.dictionary.storage.DTYPES`.

    Raises:
        UserError: if a weight is beyond what `dtype` can say.
    """
    with atomic_path(folder) as temporary:
        write_files(dictionary, temporary, dtype)


def write_files(dictionary: Dictionary, folder: Path, dtype: str = FULL) -> None:
    """Make `folder` and write the two files of a dictionary into it, and their digests.

    Raises:
        UserError: if a weight is beyond what `dtype` can say.
    """
    activation, transcoder = dictionary.activation, dictionary.is_transcoder
    kind = _Kind(type(activation), transcoder, dictionary.W_skip is not None)
    (read_as, undone) = (port.normalisation for port in dictionary.ports)
    require(
        undone == (None if transcoder else read_as),
        "a normalisation that is undone in the reconstruction cannot be written for a "
        "dictionary that writes elsewhere than it reads; make it with Dictionary.normalised",
    )
    stored = packed(dictionary.tensors, dtype, activation.never)
    config: dict[str, object] = {
        "architecture": kind.name,
        "d_in": dictionary.d_in,
        "d_sae": dictionary.d_sae,
    }
    if transcoder:
        config["d_out"] = dictionary.d_out
    config |= activation.numbers
    if isinstance(activation, TopK):
        # Whether SAELens may fold the norms of the decoder's rows, which top-k does not see.
        config["rescale_acts_by_decoder_norm"] = has_unit_rows(stored["W_dec"])
    config |= {
        "dtype": dtype,
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": read_as.name if read_as else "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.0.0", **metadata_of(dictionary)},
    }
    names = kind.names_in_file
    folder.mkdir()
    (folder / CONFIG_FILE).write_text(
        json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    # As bytes, not by `save_file`, whose errors hide that the disk is full.
    (folder / WEIGHTS_FILE).write_bytes(
        save({names.get(name, name): t for name, t in stored.items()})
    )
    seal(folder)


def save_sparsity(density: Float[Tensor, " d_sae"], folder: Path) -> None:
    """Add SAELens's `sparsity.safetensors`: log10 of each latent's share of active rows."""
    with atomic_path(folder / SPARSITY_FILE) as temporary:
        temporary.write_bytes(save({"sparsity": torch.log10(density.float().cpu() + 1e-10)}))


def read_record(folder: Path) -> Record:
    """Read where a dictionary comes from, without its weights.

    Raises:
        UserError: if the file is missing or damaged.
    """
    path = folder / CONFIG_FILE
    return Record.from_json(str(path), _metadata_in(path, _read_config(path)))


def load_dictionary(folder: str | Path) -> Dictionary:
    """Read a dictionary folder, ours or SAELens's.

    Raises:
        UserError: if a file is missing, damaged or not as it was written, or the architecture
            is not known.
    """
    folder = Path(folder)
    require(
        folder.is_dir(), f"{folder} is not a folder; a dictionary is a folder with cfg.json"
    )
    path = folder / CONFIG_FILE
    config = _as_version_6(_read_config(path))
    kind = _kind_in(folder, config)
    normalisation, factor = _normalisation_in(path, config)
    subtracts = flag(path, config, "apply_b_dec_to_input")
    require(
        not (subtracts and kind.transcoder),
        f"{folder}: apply_b_dec_to_input=true, but the b_dec of a transcoder does not "
        "belong to its input",
    )
    numbers = kind.activation.read_numbers(path, config)
    metadata = _metadata_in(path, config)
    # What is wrong with our own record is said before the weights are read.
    Record.from_json(str(path), metadata)
    check_whole(folder / WEIGHTS_FILE, _ANEW)
    file = open_safetensors(folder / WEIGHTS_FILE)
    weights = _read(dequantized(file) if config.get("dtype") == INT8 else file, kind)
    (d_in, d_sae), d_out = weights["W_enc"].shape, weights["W_dec"].shape[1]
    check_sizes(path, config, {"d_in": d_in, "d_sae": d_sae, "d_out": d_out})
    activation = kind.activation(
        **{name: weights[name] for name in kind.activation.tensor_names()}, **numbers
    )
    found = dictionary_of(weights, activation, path, metadata, transcoder=kind.transcoder)
    if subtracts:
        found = without_b_dec(found)
    if factor is not None:
        require(
            not kind.transcoder,
            f"{path}: normalize_activations={config['normalize_activations']}, but nothing "
            "says how the output of the transcoder is scaled",
        )
        found = with_input_scale(found, factor)
    found = found.normalised(normalisation)
    rescales = flag(path, config, "rescale_acts_by_decoder_norm")
    if rescales and isinstance(activation, TopK) and not has_unit_rows(found.W_dec):
        # SAELens multiplies what goes into top-k by the norms, and divides what comes out.
        found = scaled_by_decoder_norm(found)
    return found


def _read_config(path: Path) -> dict[str, object]:
    check_whole(path, _ANEW)
    return dict(read_object(path, "give the file as it was saved").values)


def _metadata_in(path: Path, config: Mapping[str, object]) -> dict[str, object]:
    metadata = config.get("metadata", {})
    if not isinstance(metadata, dict):
        raise UserError(f"{path}: metadata={metadata}; give an object")
    return metadata


def _kind_in(folder: Path, config: Mapping[str, object]) -> _Kind:
    architecture = str(config.get("architecture"))
    kinds = {
        kind.name: kind
        for activation in ACTIVATIONS.values()
        for transcoder, skip in ((False, False), (True, False), (True, True))
        for kind in [_Kind(activation, transcoder, skip)]
    }
    require(
        architecture not in _ONLY_IN_TRAINING,
        f"{folder} is a training checkpoint of {architecture}; save the dictionary in SAELens "
        "with save_inference_model",
    )
    require(
        architecture in kinds,
        f"{folder}: architecture {architecture} is not known; known: {', '.join(kinds)}",
    )
    return kinds[architecture]


def _normalisation_in(
    path: Path, config: Mapping[str, object]
) -> tuple[Normalisation | None, float | None]:
    """Return what is done to each row, and the factor of all rows, whichever there is.

    Raises:
        UserError: if the factor is nowhere in the file, or what is done is not known.
    """
    name = str(config.get("normalize_activations") or "none")
    if name == "none" or name in NORMALISATIONS:
        return NORMALISATIONS.get(name), None
    require(
        name != "covariance_whitening",
        f"{path}: normalize_activations={name} occurs only in checkpoints of a training; "
        "save the dictionary in SAELens with save_inference_model, which folds it",
    )
    known = ", ".join([*NORMALISATIONS, *_FACTORS])
    require(
        name in _FACTORS,
        f"{path}: normalize_activations={name} is not known; known: none, {known}",
    )
    key = _FACTORS[name]
    factor = config.get(key)
    if not isinstance(factor, int | float) or not 0 < factor < math.inf:
        raise UserError(
            f"{path}: normalize_activations={name} multiplies all rows by one number, and "
            f"{key}={factor}; write that number into the file as {key} (SAELens takes the root "
            "of d_in over the mean norm of the activations)"
        )
    return None, float(factor)


def _as_version_6(config: dict[str, object]) -> dict[str, object]:
    """Return what SAELens 6 makes of a configuration without its version."""
    if "metadata" in config:
        return config
    old = {"architecture": "standard", "apply_b_dec_to_input": True, **config}
    if "hook_point" in old:
        old.setdefault("hook_name", old["hook_point"])
    activation = old.get("activation_fn") or old.get("activation_fn_str") or "relu"
    require(
        activation in ("relu", "topk"),
        f"activation_fn={activation} is not known; for files of SAELens before version 6, "
        "relu and topk are",
    )
    if activation == "topk":
        settings = old.get("activation_fn_kwargs") or {}
        if not isinstance(settings, dict):
            raise UserError(f"activation_fn_kwargs={settings}; give an object with k")
        old |= {"architecture": "topk", "k": settings.get("k", old.get("k"))}
    # Before there was a choice of norms it said true or false.
    norms = old.get("normalize_activations") or "none"
    if norms is True:
        norms = "expected_average_only_in"
    metadata = {name: old[name] for name in _METADATA_BEFORE_6 if name in old}
    return {**old, "normalize_activations": norms, "metadata": metadata}


def _read(file: TensorFile, kind: _Kind) -> dict[str, Tensor]:
    """Return the weights of a file by our names."""
    names = kind.names_in_file
    old_threshold = kind.activation is JumpReLU and "log_threshold" in file.headers
    if old_threshold:
        names["threshold"] = "log_threshold"
    same = {} if kind.transcoder else {"d_out": "d_in"}
    layout = {
        in_file: tuple(same.get(size, size) for size in SHAPES.get(name, ("d_sae",)))
        for name, in_file in names.items()
    }
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
