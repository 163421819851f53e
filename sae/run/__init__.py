"""The folder of a run, and how an artefact is made once and then found again."""

from sae.run.clock import Clock
from sae.run.layout import RANDOM_MODEL_CACHE, RUN_CACHE, Measured, Run, cache_location
from sae.run.making import (
    Artefact,
    PathArtefact,
    check_free,
    held,
    lock_of,
    make,
    make_together,
    missing,
    new_folder,
)
from sae.run.settings import keep_settings, settings_file

__all__ = [
    "RANDOM_MODEL_CACHE",
    "RUN_CACHE",
    "Artefact",
    "Clock",
    "Measured",
    "PathArtefact",
    "Run",
    "cache_location",
    "check_free",
    "held",
    "keep_settings",
    "lock_of",
    "make",
    "make_together",
    "missing",
    "new_folder",
    "settings_file",
]
