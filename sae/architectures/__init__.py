"""Autoencoders that can be trained, one file each; this module is their registry."""

from sae.architectures.base import ArchitectureConfig, TrainableSAE, TrainingStep
from sae.architectures.standard import StandardConfig, StandardSAE

ARCHITECTURES: dict[str, type[ArchitectureConfig]] = {"standard": StandardConfig}

__all__ = [
    "ARCHITECTURES",
    "ArchitectureConfig",
    "StandardConfig",
    "StandardSAE",
    "TrainableSAE",
    "TrainingStep",
]
