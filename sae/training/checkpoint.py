"""Checkpoints of one training: written whole, a few kept, and refused where they do not fit."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sae.base import UserError, is_whole, require, require_at_least, say
from sae.base.states import save_state, steps_saved
from sae.dictionary.record import upgraded_identity


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """When a training is saved, and how much of it is kept."""

    every_seconds: float = 30.0
    """Seconds between two checkpoints. The interval becomes longer if saving would take more
    than 2% of the time."""
    keep_last: int = 1
    """Number of the newest checkpoints to keep."""
    keep_every_steps: int | None = None
    """Number of steps between two checkpoints that are kept for good. By default no checkpoint
    is."""

    def __post_init__(self) -> None:
        require(
            self.every_seconds >= 0,
            f"checkpoint.every_seconds={self.every_seconds} is negative; give 0 or more",
        )
        require_at_least(self, of="checkpoint.", keep_last=1, keep_every_steps=1)


class Checkpoint(NamedTuple):
    """A state, and of what training it is."""

    path: Path
    identity: dict[str, Any]
    """What decides the weights, by dotted key."""
    state: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoints in one folder, `step_0000001200.pt` and so on."""

    folder: Path
    config: CheckpointConfig

    def due(self, step: int) -> bool:
        """Whether one is to be made at this very step, whatever the time is."""
        every = self.config.keep_every_steps
        return every is not None and step % every == 0

    def save(self, step: int, identity: Mapping[str, object], state: dict[str, Any]) -> None:
        """Write one; older ones go when it is there, and stay if the disk is full."""
        save_state(self._path(step), {"identity": dict(identity), "state": state})
        kept = [s for s in steps_saved(self.folder) if not self.due(s)]
        for old in kept[: -self.config.keep_last]:
            self._path(old).unlink(missing_ok=True)

    def newest(self) -> Checkpoint | None:
        """Return the one to go on from, if there is any.

        One that is damaged goes if there is a whole one before it.

        Raises:
            UserError: if all that are there are damaged.
        """
        steps = steps_saved(self.folder)
        damaged: list[Path] = []
        for step in reversed(steps):
            try:
                found = _read(self._path(step))
            except UserError as error:
                say(f"train: {error}")
                damaged.append(self._path(step))
                continue
            for path in damaged:
                path.unlink()
            return found
        if damaged:
            raise UserError(
                f"{damaged[0]} is damaged, and there is no complete checkpoint beside it; "
                "remove it to begin again"
            )
        return None

    def _path(self, step: int) -> Path:
        return self.folder / f"step_{step:010d}.pt"


def _read(path: Path) -> Checkpoint:
    """Read a checkpoint, if it is as it was written.

    Raises:
        UserError: if it is not.
    """
    try:
        if not is_whole(path):
            raise ValueError("it does not hold what was written into it")
        # Mapped: eight dictionaries would otherwise be in memory twice for a moment.
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        identity = upgraded_identity(saved["identity"])
        return Checkpoint(path, identity, dict(saved["state"]))
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is damaged ({first})") from error
