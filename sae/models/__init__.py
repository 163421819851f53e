"""The language model under study: loading it, finding its sites, and reading there."""

from sae.models.hooks import find_site, list_sites, locate, measured, read_activations
from sae.models.load import (
    LanguageModel,
    ModelConfig,
    adopted_model,
    load_model,
    load_skeleton,
    load_tokenizer,
    record_without_weights,
    recorded_config,
    recorded_model,
    recorded_name,
    resolve_device,
    wrapped_model,
)
from sae.models.probe import quietly
from sae.models.record import ModelRecord
from sae.models.site import Site

__all__ = [
    "LanguageModel",
    "ModelConfig",
    "ModelRecord",
    "Site",
    "adopted_model",
    "find_site",
    "list_sites",
    "load_model",
    "load_skeleton",
    "load_tokenizer",
    "locate",
    "measured",
    "quietly",
    "read_activations",
    "record_without_weights",
    "recorded_config",
    "recorded_model",
    "recorded_name",
    "resolve_device",
    "wrapped_model",
]
