"""Edit files whose directions are tensors, each of which gets a file of its own beside it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from sae.base import atomic_path
from sae.edits.file import Edits
from sae.edits.library import Library
from sae.run import check_free


def save_edits(edits: Edits, out: Path) -> None:
    """Write an edit file, and beside it a file of each direction, which no edit file holds.

    Raises:
        UserError: if a file is there already.
    """
    check_free(out)
    records = []
    for i, record in enumerate(edits.records):
        if isinstance(record.direction, Tensor):
            number = f"-{i}" if len(edits.records) > 1 else ""
            place = out.with_name(f"{out.stem}-direction{number}.npy")
            check_free(place)
            with atomic_path(place) as temporary, temporary.open("wb") as file:
                np.save(file, record.direction.numpy())
            record = replace(record, direction=str(place))
            record = replace(record, digest=Library().digest(record))
        records.append(record)
    replace(edits, records=tuple(records)).save(out)
