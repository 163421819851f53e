"""Which class of transformers reads a checkpoint: asked of the classes, not of names."""

import inspect
from typing import Any

import torch
from torch import nn

from sae.base import UserError, require
from sae.models.calls import without_cache
from sae.models.traced import probe_tokens


def predicts_next_token(settings: Any) -> bool:
    """Return whether the checkpoint of a configuration has a head that predicts a next token.

    So its configuration and its class say; `is_causal` asks the loaded model.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    has_decoder = _reads_for_decoder(_headless(settings))
    if not settings.architectures:
        return settings.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not has_decoder
    kind = _named(settings)
    if kind is None:
        # A class that comes with the model.
        own = getattr(settings, "auto_map", None) or {}
        causal = str(own.get("AutoModelForCausalLM", "")).rpartition(".")[2]
        return causal in settings.architectures
    # BERT's family is trained either way, and looks back alone where it is a decoder.
    either_way = settings.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    looks_ahead = either_way and not getattr(settings, "is_decoder", True)
    return (
        kind.can_generate()
        and not _reads_for_decoder(kind)
        and (has_decoder or not looks_ahead)
    )


def class_of(settings: Any, name: str) -> Any:
    """Return the class that loads the checkpoint of a configuration.

    Without their head models that predict no next token are all alike to us, and are loaded so.

    Raises:
        UserError: if it has an encoder and a decoder.
    """
    from transformers import AutoModel, AutoModelForCausalLM

    kind = _named(settings)
    if predicts_next_token(settings):
        usual = _mapped(AutoModelForCausalLM, settings)
        return AutoModelForCausalLM if kind in (None, usual) else kind
    headless = _headless(settings)
    both = settings.is_encoder_decoder if headless is None else _reads_for_decoder(headless)
    if not both:
        return AutoModel
    if kind is None or _reads_for_decoder(kind):
        raise UserError(
            f"model.name={name} has an encoder and a decoder ({settings.model_type}), which "
            f"cannot be read; give a causal model or an encoder{_its_encoder(settings)}"
        )
    return kind


def unusual_name(kind: type) -> str | None:
    """Return the name of a class that `class_of` gives, or None of one of the usual two."""
    return None if kind.__name__.startswith("AutoModel") else kind.__name__


def _named(settings: Any) -> Any:
    """Return the class that config.json names, if transformers has it and it fits."""
    import transformers

    for name in settings.architectures or ():
        kind = getattr(transformers, name, None)
        if isinstance(settings, getattr(kind, "config_class", None) or ()):
            return kind
    return None


def _mapped(auto: Any, settings: Any) -> Any:
    found = auto._model_mapping.get(type(settings), None)
    return found[0] if isinstance(found, tuple) else found


def _headless(settings: Any) -> Any:
    from transformers import AutoModel

    return _mapped(AutoModel, settings)


def _reads_for_decoder(kind: Any) -> bool:
    """Whether a class is given one text for its encoder and another for its decoder."""
    return (
        kind is not None and "decoder_input_ids" in inspect.signature(kind.forward).parameters
    )


def _its_encoder(settings: Any) -> str:
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES

    found = MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES.get(settings.model_type)
    return f", such as what transformers.{found} loads and saves of it" if found else ""


def is_causal(module: nn.Module, name: str) -> bool:
    """Return whether a model gives logits for the next token, which no later token moves.

    A forward pass over a few tokens tells, and another in which the last one is exchanged.

    Raises:
        UserError: if it does not run on text alone, or its logits are no numbers.
    """
    tokens = probe_tokens(module, 6).to(next(module.parameters()).device)
    other = tokens.clone()
    other[0, -1] = tokens[0, 1]
    try:
        with torch.inference_mode():
            outputs = [module(ids, **without_cache(module)) for ids in (tokens, other)]
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"model.name={name} cannot be run on text alone. Its message: {said}"
        ) from error
    first, second = (getattr(output, "logits", None) for output in outputs)
    if first is None or second is None or first.shape[:2] != tokens.shape:
        return False
    require(
        not bool(first.isnan().any()),
        f"model.name={name} gives NaN as logits of a few tokens; its weights may be "
        "damaged, or its activations may be too large for this precision: run it with "
        "model.dtype=float32",
    )
    moved = (first - second)[:, :-1].abs().max()
    # Experts that are given other tokens may round otherwise.
    return bool(moved <= torch.finfo(first.dtype).eps ** (2 / 3) * first.abs().max())
