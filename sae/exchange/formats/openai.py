"""OpenAI's autoencoders of GPT-2 small: one file `{layer}.pt` in a folder `autoencoders`.

`.../gpt2-small/{location}/autoencoders/{layer}.pt` is a state dict, with counts of each latent
and `activation` with its settings. By `Autoencoder` of openai/sparse_autoencoder the latents
are `activation(W (x - pre_bias) + latent_bias)`. Those with `TopK`, and these alone, read each
row less its mean over its standard deviation (`LayerNorm`), and undo it afterwards.
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from sae.base import UserError, require
from sae.dictionary import Activation, Dictionary, LayerNorm, ReLU, TopK, dictionary_of
from sae.dictionary.folding import with_b_dec, without_b_dec
from sae.dictionary.tensors import load_pickle, tensors_of
from sae.exchange.formats import parts, qwen_scope

_NAMES = {
    "pre_bias": "b_dec",
    "encoder.weight": "W_enc.T",
    "latent_bias": "b_enc",
    "decoder.weight": "W_dec.T",
}
_SETTINGS = {"activation": "ReLU", "activation_state_dict": None}
_COUNTS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
# Which places of GPT-2 the files are named after, in openai/sparse_autoencoder's README.
_PLACES = {
    "mlp_post_act": "mlp.hook_post",
    "resid_delta_attn": "hook_attn_out",
    "resid_post_attn": "hook_resid_mid",
    "resid_delta_mlp": "hook_mlp_out",
    "resid_post_mlp": "hook_resid_post",
}


class OpenAI(parts.Written):
    """A file, or the folder with this one file, which is named after the layer."""

    name = "openai"
    files = ("*.pt",)
    title = "OpenAI's sparse_autoencoder"
    load = """\
import glob, torch
from sparse_autoencoder import Autoencoder
(path,) = glob.glob("{folder}/*.pt")
dictionary = Autoencoder.from_state_dict(torch.load(path))"""
    lost = "metadata, but for the layer in the file's name"
    activations = (ReLU, TopK)
    limits = (
        ("transcoder", "it reconstructs what it reads"),
        ("activation", "it has ReLU and TopK alone"),
    )

    def cannot_normalise(self, dictionary: Dictionary) -> str | None:
        if isinstance(dictionary.activation, TopK):
            fits = dictionary.reads[0].normalisation == LayerNorm()
            return None if fits else "with TopK it reads each row over its standard deviation"
        return super().cannot_normalise(dictionary)

    def recognises(self, path: Path) -> bool:
        theirs = path.suffix == ".pt" and not path.name.endswith(qwen_scope.SUFFIX)
        return (path.is_file() and theirs) or bool(_files(path))

    def read(self, path: Path) -> Dictionary:
        found = [path] if path.is_file() else _files(path)
        require(
            len(found) == 1, f"{path} holds {len(found)} layers as .pt files; give one of them"
        )
        (file,) = found
        state = load_pickle(file)
        require(
            isinstance(state, Mapping),
            f"{file} holds no state dict; give the file as it was saved",
        )
        activation = _activation(file, state)
        tensors = tensors_of(file, {k: v for k, v in state.items() if k not in _SETTINGS})
        weights = parts.read_weights(tensors, _NAMES, beside=_COUNTS)
        metadata = parts.read_metadata(file.parent, _native(file))
        read = without_b_dec(dictionary_of(weights, activation, file, metadata))
        return read.normalised(LayerNorm() if isinstance(activation, TopK) else None)

    def write(self, dictionary: Dictionary, folder: Path) -> None:
        d_sae, activation = dictionary.d_sae, dictionary.activation
        name, settings = "ReLU", dict[str, object]()
        if isinstance(activation, TopK):
            name, settings = "TopK", {"k": activation.k, "postact_fn": "ReLU"}
        state = {
            **parts.named_tensors(with_b_dec(dictionary), _NAMES),
            # As they are before training.
            "stats_last_nonzero": torch.zeros(d_sae, dtype=torch.long),
            "latents_activation_frequency": torch.ones(d_sae),
            "latents_mean_square": torch.zeros(d_sae),
            "activation": name,
            "activation_state_dict": settings,
        }
        file = f"{parts.layer_of(dictionary) or 0}.pt"
        parts.write_folder(folder, dictionary, {file: parts.as_pickle(state)})


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*.pt") if path.stem.isdigit()]


def _activation(file: Path, state: Mapping[str, object]) -> Activation:
    """Return the activation that a state dict names."""
    name, settings = (state.get(key, usual) for key, usual in _SETTINGS.items())
    require(
        name in ("ReLU", "TopK"),
        f"{file}: activation={name}; only ReLU and TopK can be read",
    )
    if name == "ReLU":
        return ReLU()
    k = settings.get("k") if isinstance(settings, Mapping) else None
    after = settings.get("postact_fn") if isinstance(settings, Mapping) else None
    if type(k) is not int or after != "ReLU":
        raise UserError(
            f"{file}: activation=TopK with k={k} and postact_fn={after}; give a whole number "
            "and ReLU"
        )
    return TopK(k)


def _native(file: Path) -> dict[str, object]:
    parts = file.absolute().parts[-4:]
    if len(parts) < 4 or parts[0] != "gpt2-small" or not file.stem.isdigit():
        return {}
    # Later ones say _v4, _v5_32k, ... after the place.
    place = next((hook for name, hook in _PLACES.items() if parts[1].startswith(name)), None)
    hook_name = None if place is None else f"blocks.{file.stem}.{place}"
    return {"model_name": "gpt2", "hook_name": hook_name}
