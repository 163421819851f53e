"""Autoencoders that can be trained, one file each; this module is their registry."""

from sae.architectures.base import ArchitectureConfig, TrainableSAE, TrainingStep
from sae.architectures.batch_topk import BatchTopKConfig
from sae.architectures.gated import GatedConfig
from sae.architectures.jumprelu import JumpReLUConfig
from sae.architectures.matryoshka import MatryoshkaConfig
from sae.architectures.p_anneal import PAnnealConfig
from sae.architectures.standard import StandardConfig
from sae.architectures.topk import TopKConfig

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
    )
}

__all__ = [
    "ARCHITECTURES",
    "ArchitectureConfig",
    "BatchTopKConfig",
    "GatedConfig",
    "JumpReLUConfig",
    "MatryoshkaConfig",
    "PAnnealConfig",
    "StandardConfig",
    "TopKConfig",
    "TrainableSAE",
    "TrainingStep",
]
