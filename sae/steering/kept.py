"""What a killed comparison had found, so that it is not found again."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sae.base import UserError, read_json, write_json
from sae.steering.study import Studied
from sae.steering.trial import Trial


class Kept:
    """A folder with a file for each feature. Of other settings than `owner` it starts empty.

    Nothing is written before there is something to keep.
    """

    def __init__(self, folder: Path, owner: str) -> None:
        self.folder, self.owner, self.whose = folder, owner, folder / "owner.json"

    def once(self, feature: int, compute: Callable[[], Studied]) -> Studied:
        """Return what is kept of a feature, or find it and keep it."""
        path = self.folder / f"{feature}.json"
        is_own = _read(self.whose) == self.owner
        found = _read(path) if is_own else None
        if found is None:
            studied = compute()
            if not is_own:
                shutil.rmtree(self.folder, ignore_errors=True)
                write_json(self.whose, self.owner)
            write_json(path, _to_json(studied))
            return studied
        trials = [
            Trial(
                one["arm"],
                one["strength"],
                one["operating"],
                {name: _numbers(values) for name, values in one["figures"].items()},
            )
            for one in found["trials"]
        ]
        return Studied(trials, found["about"])


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except UserError:
        # Missing or damaged: then it is found again.
        return None


def _to_json(studied: Studied) -> dict[str, Any]:
    trials = [
        {
            "arm": trial.arm,
            "strength": trial.strength,
            "operating": trial.operating,
            # JSON has no word for what is no number.
            "figures": {
                name: [None if math.isnan(value) else value for value in values.tolist()]
                for name, values in trial.figures.items()
            },
        }
        for trial in studied.trials
    ]
    return {"trials": trials, "about": studied.about}


def _numbers(values: list[float | None]) -> torch.Tensor:
    return torch.tensor([torch.nan if value is None else value for value in values])
