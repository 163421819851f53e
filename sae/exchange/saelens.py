"""The folder that SAELens loads: `cfg.json` beside `sae_weights.safetensors`.

It is our own format as well. What SAELens 6 asks of a writer: `metadata.sae_lens_version`
of at least 6.0.0 (else it drops all metadata), a `dtype`, no tensor that the architecture
does not have, and all scales folded with `normalize_activations: none`.

`architecture` in `cfg.json` names the rule and the kind at once: `jumprelu`,
`jumprelu_transcoder`, `jumprelu_skip_transcoder`, .... The standard rule is left out of
`transcoder` and `skip_transcoder`. SAELens knows all of these but the transcoders of topk
and gated: those are ours alone.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sae.base.errors import UserError, require
from sae.base.files import atomic_path, read_json
from sae.dictionary import ARCHITECTURES, CODER, Dictionary

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
SPARSITY_FILE = "sparsity.safetensors"
_TRANSCODERS_OF_SAELENS = ("standard", "jumprelu")
_NAMES_IN_FILE = {"gated": {"b_enc": "b_gate"}}


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
    transcoder = dictionary.is_transcoder or skip or dictionary.d_out != dictionary.d_in
    return _Kind(dictionary.architecture, transcoder, skip)


def loads_in_saelens(dictionary: Dictionary) -> bool:
    """Whether SAELens has a class for what `save_dictionary` writes."""
    return not _kind_of(dictionary).ours_alone


def save_dictionary(dictionary: Dictionary, folder: Path) -> None:
    """Write `folder`, appearing all at once."""
    kind = _kind_of(dictionary)
    config: dict[str, Any] = {
        "architecture": kind.name,
        "d_in": dictionary.d_in,
        "d_sae": dictionary.d_sae,
        **({"d_out": dictionary.d_out} if kind.transcoder else {}),
        **({} if dictionary.k is None else {"k": dictionary.k}),
        **({"rescale_acts_by_decoder_norm": False} if kind.rule == "topk" else {}),
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.0.0", **dictionary.metadata},
    }
    tensors = {
        in_file: getattr(dictionary, name).detach().float().cpu().contiguous()
        for name, in_file in kind.tensors.items()
    }
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        (temporary / CONFIG_FILE).write_text(
            json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        # As bytes, not by `save_file`, whose errors hide that the disk is full.
        (temporary / WEIGHTS_FILE).write_bytes(save(tensors))


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
    config = read_json(folder / CONFIG_FILE)
    require(isinstance(config, dict), f"{folder / CONFIG_FILE} is no JSON object; damaged?")
    architecture = str(config.get("architecture"))
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
    subtracts = bool(config.get("apply_b_dec_to_input"))
    require(
        not (subtracts and kind.transcoder),
        f"{folder}: apply_b_dec_to_input=true, but a transcoder's b_dec is not of its input",
    )
    k = config.get("k") if kind.rule == "topk" else None
    require(
        kind.rule != "topk" or type(k) is int,
        f"{folder / CONFIG_FILE}: k={k}; a {architecture} dictionary needs a whole number",
    )
    weights = _read_tensors(folder / WEIGHTS_FILE, kind.tensors)
    if subtracts:
        weights |= _without_b_dec(weights)
    if kind.rule == "topk" and config.get("rescale_acts_by_decoder_norm"):
        weights |= _scaled_by_decoder_norm(weights)
    metadata: dict[str, Any] = dict(config.get("metadata", {}))
    return Dictionary(**weights, architecture=kind.rule, k=k, metadata=metadata)


def _without_b_dec(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Biases that take the raw `x` where those of `weights` take `x - b_dec`."""
    shift = weights["b_dec"] @ weights["W_enc"]
    folded = {"b_enc": weights["b_enc"] - shift}
    if "b_mag" in weights:
        folded["b_mag"] = weights["b_mag"] - weights["r_mag"].exp() * shift
    return folded


def _scaled_by_decoder_norm(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of unit decoder rows, whose activations SAELens gets by rescaling.

    It multiplies what goes into top-k by the norms, and divides what comes out by them.
    """
    norms = weights["W_dec"].norm(dim=-1)
    return {
        "W_enc": weights["W_enc"] * norms,
        "b_enc": weights["b_enc"] * norms,
        # A row of zeros stays one: its latent never fires.
        "W_dec": torch.nn.functional.normalize(weights["W_dec"], dim=-1),
    }


def _read_tensors(path: Path, names: dict[str, str]) -> dict[str, Any]:
    """The tensors of a file by our names, float32."""
    require(path.is_file(), f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            missing = set(names.values()) - set(file.keys())
            require(not missing, f"{path} misses {', '.join(sorted(missing))}")
            tensors = {name: file.get_tensor(n).float() for name, n in names.items()}
    except SafetensorError as error:
        raise UserError(f"{path} is damaged: {error}") from error
    for name, tensor in tensors.items():
        require(bool(tensor.isfinite().all()), f"{path}: {names[name]} holds NaN or infinity")
    return tensors
