"""The folder that SAELens loads: `cfg.json` beside `sae_weights.safetensors`.

It is our own format as well. What SAELens 6 asks of a writer: `metadata.sae_lens_version`
of at least 6.0.0 (else it drops all metadata), a `dtype`, no tensor that the architecture
does not have, and all scales folded with `normalize_activations: none`.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sae.base.errors import UserError, require
from sae.base.files import atomic_path, read_json
from sae.dictionary import Dictionary

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
SPARSITY_FILE = "sparsity.safetensors"
_TENSORS = {"standard": ("W_enc", "b_enc", "W_dec", "b_dec")}


def save_dictionary(dictionary: Dictionary, folder: Path) -> None:
    """Write `folder`, appearing all at once."""
    config = {
        "architecture": dictionary.architecture,
        "d_in": dictionary.d_in,
        "d_sae": dictionary.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.0.0", **dictionary.metadata},
    }
    tensors = {
        name: getattr(dictionary, name).detach().float().cpu().contiguous()
        for name in _TENSORS[dictionary.architecture]
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
        architecture in _TENSORS,
        f"{folder}: architecture {architecture} is not known; known: {', '.join(_TENSORS)}",
    )
    require(
        config.get("normalize_activations", "none") == "none",
        f"{folder}: normalize_activations={config.get('normalize_activations')} is not folded; "
        "fold it in SAELens before saving",
    )
    tensors = _read_tensors(folder / WEIGHTS_FILE, _TENSORS[architecture])
    if config.get("apply_b_dec_to_input"):
        tensors["b_enc"] = tensors["b_enc"] - tensors["b_dec"] @ tensors["W_enc"]
    metadata: dict[str, Any] = dict(config.get("metadata", {}))
    return Dictionary(**tensors, architecture=architecture, metadata=metadata)


def _read_tensors(path: Path, names: tuple[str, ...]) -> dict[str, Tensor]:
    require(path.is_file(), f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            missing = set(names) - set(file.keys())
            require(not missing, f"{path} misses {', '.join(sorted(missing))}")
            tensors = {name: file.get_tensor(name).float() for name in names}
    except SafetensorError as error:
        raise UserError(f"{path} is damaged: {error}") from error
    for name, tensor in tensors.items():
        require(bool(tensor.isfinite().all()), f"{path}: {name} holds NaN or infinity")
    return tensors
