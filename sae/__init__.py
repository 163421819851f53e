"""Sparse autoencoders, from text to steering: harvest, train, eval, analyze, steer, export.

Every stage is a command (`sae train ...`) and a call (`sae.train(...)`) with the same keys.
Names are imported when they are first used, so `import sae` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae.api import (
        analyze,
        demo,
        eval,
        export,
        harvest,
        import_,
        load,
        save,
        serve,
        steer,
        sweep,
        train,
    )
    from sae.architectures import (
        BatchTopKConfig,
        GatedConfig,
        JumpReLUConfig,
        MatryoshkaConfig,
        PAnnealConfig,
        StandardConfig,
        TopKConfig,
    )
    from sae.cache.layout import ActivationCache, open_cache
    from sae.commands.harvest import HarvestConfig
    from sae.commands.train import TrainConfig
    from sae.dictionary import Dictionary
    from sae.models.load import ModelConfig
    from sae.rows.dataset import ActivationDataset
    from sae.text.source import DataConfig
    from sae.training.checkpoint import CheckpointConfig
    from sae.training.loggers import LoggerConfig
    from sae.training.optim import OptimConfig
    from sae.training.plan import SweepConfig

_HOMES = {
    "ActivationCache": "sae.cache.layout",
    "ActivationDataset": "sae.rows.dataset",
    "CheckpointConfig": "sae.training.checkpoint",
    "DataConfig": "sae.text.source",
    "Dictionary": "sae.dictionary",
    "HarvestConfig": "sae.commands.harvest",
    "LoggerConfig": "sae.training.loggers",
    "ModelConfig": "sae.models.load",
    "OptimConfig": "sae.training.optim",
    "SweepConfig": "sae.training.plan",
    "TrainConfig": "sae.commands.train",
    "StandardConfig": "sae.architectures",
    "BatchTopKConfig": "sae.architectures",
    "GatedConfig": "sae.architectures",
    "JumpReLUConfig": "sae.architectures",
    "MatryoshkaConfig": "sae.architectures",
    "PAnnealConfig": "sae.architectures",
    "TopKConfig": "sae.architectures",
    "analyze": "sae.api",
    "demo": "sae.api",
    "eval": "sae.api",
    "export": "sae.api",
    "harvest": "sae.api",
    "import_": "sae.api",
    "load": "sae.api",
    "open_cache": "sae.cache.layout",
    "save": "sae.api",
    "serve": "sae.api",
    "steer": "sae.api",
    "sweep": "sae.api",
    "train": "sae.api",
}

__all__ = [
    "ActivationCache",
    "ActivationDataset",
    "BatchTopKConfig",
    "CheckpointConfig",
    "DataConfig",
    "Dictionary",
    "GatedConfig",
    "HarvestConfig",
    "JumpReLUConfig",
    "LoggerConfig",
    "MatryoshkaConfig",
    "ModelConfig",
    "OptimConfig",
    "PAnnealConfig",
    "StandardConfig",
    "SweepConfig",
    "TopKConfig",
    "TrainConfig",
    "analyze",
    "demo",
    "eval",
    "export",
    "harvest",
    "import_",
    "load",
    "open_cache",
    "save",
    "serve",
    "steer",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sae' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
