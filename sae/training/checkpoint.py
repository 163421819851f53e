"""One checkpoint a run, replaced atomically: what to continue from after an interruption."""

from pathlib import Path
from typing import Any

import torch

from sae.base.errors import UserError
from sae.base.files import atomic_path


def save_checkpoint(path: Path, digest: str, state: dict[str, Any]) -> None:
    """Replace the checkpoint at `path`; the old one is good until the new one is."""
    # Through a file of Python's own: torch's writer hides that the disk is full.
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        torch.save({"digest": digest, "state": state}, file)


def load_checkpoint(path: Path, digest: str) -> dict[str, Any] | None:
    """The state saved at `path` for the configuration `digest`; None if there is none.

    Raises:
        UserError: if the checkpoint is of another configuration or cannot be read.
    """
    if not path.exists():
        return None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        found, state = saved["digest"], saved["state"]
    except Exception as error:
        raise UserError(f"{path} is damaged ({error}); remove it to start anew") from error
    if found != digest:
        raise UserError(
            f"{path} is a checkpoint of another configuration or cache; give this run another "
            "name=... or remove the checkpoint to start anew"
        )
    return dict(state)
