"""OpenAI's autoencoders of GPT-2 small: one file `{layer}.pt` in a folder `autoencoders`.

`.../gpt2-small/{location}/autoencoders/{layer}.pt` is a state dict: `pre_bias` (d_in,),
`encoder.weight` (d_sae, d_in), `latent_bias` (d_sae,), `decoder.weight` (d_in, d_sae), three
counts of each latent, and `activation` with its settings. By `Autoencoder` of
openai/sparse_autoencoder the latents are `activation(W (x - pre_bias) + latent_bias)`.

Those with `TopK` read each row less its mean over its standard deviation, and multiply what
they reconstruct by that deviation. A `Dictionary` is one map for all rows: they are refused.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sae.base import require
from sae.dictionary import Dictionary, ReLU, dictionary_of
from sae.dictionary.folding import with_b_dec, without_b_dec
from sae.dictionary.tensors import load_pickle, tensors_of
from sae.exchange.formats import qwen_scope
from sae.exchange.formats.parts import (
    as_pickle,
    layer_of,
    plain,
    read_metadata,
    write_folder,
)

NAME = "openai"
FILES: tuple[str, ...] = ("*.pt",)
TITLE = "OpenAI's sparse_autoencoder"
LOAD = """\
import glob, torch
from sparse_autoencoder import Autoencoder
(path,) = glob.glob("{folder}/*.pt")
dictionary = Autoencoder.from_state_dict(torch.load(path))"""
LOST = "metadata, but for the layer in the file's name"

_LAYOUT = {
    "pre_bias": ("d_in",),
    "encoder.weight": ("d_sae", "d_in"),
    "latent_bias": ("d_sae",),
    "decoder.weight": ("d_in", "d_sae"),
}
_COUNTS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
# Which places of GPT-2 the files are named after, in openai/sparse_autoencoder's README.
_PLACES = {
    "mlp_post_act": "mlp.hook_post",
    "resid_delta_attn": "hook_attn_out",
    "resid_post_attn": "hook_resid_mid",
    "resid_delta_mlp": "hook_mlp_out",
    "resid_post_mlp": "hook_resid_post",
}


def recognises(path: Path) -> bool:
    """Whether it is a `.pt` file, or a folder with some that are named after layers."""
    theirs = path.suffix == ".pt" and not path.name.endswith(qwen_scope.SUFFIX)
    return (path.is_file() and theirs) or bool(_files(path))


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*.pt") if path.stem.isdigit()]


def read(path: Path) -> Dictionary:
    """The dictionary of a file, or of the folder with this one file.

    Raises:
        UserError: if the file is missing or broken, or the activation is not ReLU.
    """
    found = [path] if path.is_file() else _files(path)
    require(len(found) == 1, f"{path} holds {len(found)} layers as .pt files; give one of them")
    (file,) = found
    state = load_pickle(file)
    require(
        isinstance(state, Mapping), f"{file} holds no state dict; give the file as it was saved"
    )
    activation = state.get("activation", "ReLU")
    require(
        activation != "TopK",
        f"{file}: activation=TopK reads each row over its own standard deviation, which no "
        "dictionary of raw activations does; only the ones with ReLU can be read",
    )
    require(activation == "ReLU", f"{file}: activation={activation}; only ReLU is known here")
    settings = ("activation", "activation_state_dict")
    tensors = tensors_of(file, {k: v for k, v in state.items() if k not in settings})
    weights = tensors.read(_LAYOUT, beside=_COUNTS)
    named = {
        "W_enc": weights["encoder.weight"].t(),
        "b_enc": weights["latent_bias"],
        "W_dec": weights["decoder.weight"].t(),
        "b_dec": weights["pre_bias"],
    }
    metadata = read_metadata(file.parent, _native(file))
    return without_b_dec(dictionary_of(named, ReLU(), file, metadata))


def _native(file: Path) -> dict[str, Any]:
    """Model and hook, if the file is where OpenAI has it."""
    parts = file.absolute().parts[-4:]
    if len(parts) < 4 or parts[0] != "gpt2-small" or not file.stem.isdigit():
        return {}
    # Later ones say _v4, _v5_32k, ... after the place.
    place = next((hook for name, hook in _PLACES.items() if parts[1].startswith(name)), None)
    hook_name = None if place is None else f"blocks.{file.stem}.{place}"
    return {"model_name": "gpt2", "hook_name": hook_name}


def cannot_hold(dictionary: Dictionary) -> str | None:
    """Why these files have no place for it."""
    if dictionary.is_transcoder:
        return "it reconstructs what it reads"
    if not isinstance(dictionary.activation, ReLU):
        return "of its activations ReLU alone reads raw rows"
    return None


def write(dictionary: Dictionary, folder: Path) -> None:
    """Write `folder`, appearing all at once, with one file named after the layer."""
    weights, d_sae = with_b_dec(dictionary).tensors, dictionary.d_sae
    state = {
        "pre_bias": plain(weights["b_dec"]),
        "encoder.weight": plain(weights["W_enc"].t()),
        "latent_bias": plain(weights["b_enc"]),
        "decoder.weight": plain(weights["W_dec"].t()),
        # As they are before training.
        "stats_last_nonzero": torch.zeros(d_sae, dtype=torch.long),
        "latents_activation_frequency": torch.ones(d_sae),
        "latents_mean_square": torch.zeros(d_sae),
        "activation": "ReLU",
        "activation_state_dict": {},
    }
    write_folder(folder, dictionary, {f"{layer_of(dictionary) or 0}.pt": as_pickle(state)})
