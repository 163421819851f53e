"""Autoencoders that can be trained, a family of recipes each file; this is their registry."""

from sae.architectures.base import ArchitectureConfig, TrainableSAE, TrainingStep
from sae.architectures.jumprelu import JumpReLUConfig
from sae.architectures.nested import (
    HierarchicalTopKConfig,
    MatryoshkaConfig,
    OrderedTopKConfig,
)
from sae.architectures.penalised import GatedConfig, PAnnealConfig, StandardConfig
from sae.architectures.topk import BatchTopKConfig, TopKConfig

ARCHITECTURES: dict[str, type[ArchitectureConfig]] = {
    config.architecture: config
    for config in (
        StandardConfig,
        GatedConfig,
        TopKConfig,
        BatchTopKConfig,
        JumpReLUConfig,
        MatryoshkaConfig,
        PAnnealConfig,
        HierarchicalTopKConfig,
        OrderedTopKConfig,
    )
}

__all__ = [
    "ARCHITECTURES",
    "ArchitectureConfig",
    "BatchTopKConfig",
    "GatedConfig",
    "HierarchicalTopKConfig",
    "JumpReLUConfig",
    "MatryoshkaConfig",
    "OrderedTopKConfig",
    "PAnnealConfig",
    "StandardConfig",
    "TopKConfig",
    "TrainableSAE",
    "TrainingStep",
]
