"""What a training begins with: scales, first rows, and an autoencoder at its first step."""

from dataclasses import dataclass
from typing import Self

import torch

from sae.base import require
from sae.core.scaling import InputScaling
from sae.dictionary import Dictionary, load_dictionary
from sae.models import resolve_device
from sae.rows.shuffle import Rows
from sae.training.config import TrainConfig
from sae.training.loop import Trainer


@dataclass(frozen=True, slots=True)
class Start:
    """What all dictionaries of the same rows begin with."""

    scalings: list[InputScaling]
    """Of the rows to read, and of those to predict where they are others."""
    sample: Rows
    """Scaled."""
    held_out: Rows | None
    """Raw."""

    @classmethod
    def of(cls, sample: Rows, held_out: Rows | None) -> Self:
        """From raw rows."""
        raw = [side.float() for side in sample]
        scalings = list(map(InputScaling.of, raw))
        scaled = (scaling(side) for scaling, side in zip(scalings, raw, strict=True))
        return cls(scalings, tuple(scaled), held_out)


def make_trainer(config: TrainConfig, start: Start) -> Trainer:
    """A trainer at its first step."""
    device = resolve_device(config.device)
    scalings, scaled = start.scalings, start.sample
    require(
        not config.sae.aligned or scaled[0].shape[1] == scaled[-1].shape[1],
        f"sae.aligned=True needs hooks of one width; {config.hook_name} has "
        f"{scaled[0].shape[1]}, {config.hook_name_out} {scaled[-1].shape[1]}",
    )
    generator = torch.Generator().manual_seed(config.seed)
    sae = config.sae.build(scaled[0], generator, *scaled[1:])
    if config.init_from is not None:
        sae.begin_with(_beginning(config), scalings[0], scalings[-1])
    sae.matmul_dtype = _matmul_dtype(config, device)
    on_device = [InputScaling(s.mean.to(device), s.scale) for s in scalings]
    return Trainer(
        sae.to(device),
        on_device[0],
        config.optim,
        lr=config.lr,
        n_steps=config.n_steps,
        dead_window_rows=int(config.dead_feature_window * config.training_tokens),
        output_scaling=on_device[-1],
    )


def _beginning(config: TrainConfig) -> Dictionary:
    """The dictionary whose weights to begin with."""
    found = load_dictionary(str(config.init_from))
    wanted = "an autoencoder" if config.hook_name_out is None else "a transcoder"
    kind = "a transcoder" if found.is_transcoder else "an autoencoder"
    require(
        kind == wanted,
        f"init_from={config.init_from} is {kind}, and {wanted} is to be trained; "
        "hook_name_out=... makes a transcoder",
    )
    return found


def _matmul_dtype(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    narrow = config.matmul_dtype == "bfloat16" or (
        config.matmul_dtype == "auto" and device.type == "cuda"
    )
    return torch.bfloat16 if narrow else None
