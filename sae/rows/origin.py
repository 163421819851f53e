"""Whether the activations of a cache are those that a dictionary was trained on."""

import numpy as np

from sae.base import UNKNOWN, require
from sae.cache.layout import ActivationCache
from sae.dictionary import Dictionary


def check_same_origin(name: str, dictionary: Dictionary, cache: ActivationCache) -> None:
    """Refuse a dictionary and a cache of different models, weights, hooks or widths."""
    model, recorded = cache.model, dictionary.record.model
    # Weights that are the same tell more than a name: an export has no path of this disk in it.
    same = recorded is not None and recorded.weight_digest == model.weight_digest != UNKNOWN
    require(
        same or dictionary.model_name == model.hub_id,
        f"{name} was trained on {dictionary.model_name}, but {cache.location} belongs to "
        f"{model.hub_id}",
    )
    trained_on = recorded or model
    require(
        trained_on.weight_digest in (UNKNOWN, model.weight_digest),
        f"{name} was trained on other weights of {dictionary.model_name} (digest "
        f"{trained_on.weight_digest}) than {cache.location} is of ({model.weight_digest})",
    )
    hook_name, out = cache.hook(dictionary.hook_name), dictionary.hook_name_out
    require(
        out in cache.hook_names,
        f"{name} predicts {out} from {hook_name}, but {out} is not in {cache.location}; "
        f"harvest both with hook_names=[{hook_name},{out}]",
    )
    for width, found, hook in (
        ("d_in", dictionary.d_in, hook_name),
        ("d_out", dictionary.d_out, out),
    ):
        held = cache.d_in(hook)
        require(
            found == held,
            f"{name} has {width}={found}, but {cache.location} holds rows of width {held}",
        )


def check_same_text(first: ActivationCache, second: ActivationCache) -> None:
    """Refuse two caches that are not of the same tokens, some held out alike."""
    require(
        first.tokens.shape == second.tokens.shape
        and np.array_equal(first.tokens, second.tokens)
        and np.array_equal(first.held_out, second.held_out),
        f"{second.location} holds other tokens than {first.location}; make it with the same "
        "settings, except for the weights of the model",
    )


def check_held_out(name: str, dictionary: Dictionary, cache: ActivationCache) -> None:
    """Refuse a cache whose held-out text a dictionary was trained on in part.

    Documents are held out by their digest, so a cache that holds out a larger share than the
    training did also holds out some of the documents that were trained on.
    """
    fraction, text = cache.text.held_out_fraction, dictionary.record.text
    trained = None if text is None else text.held_out_fraction
    if fraction is None or trained is None:
        return
    require(
        fraction <= trained,
        f"{cache.location} holds out {fraction:g} of the documents, but {name} was trained "
        f"with {trained:g} held out, so it has seen some of them; harvest with "
        f"data.held_out_fraction={trained:g}",
    )
