"""Files of torch's that hold the state of something that goes on after a kill."""

import re
from pathlib import Path
from typing import Any, BinaryIO

from sae.base.sums import sealed_path


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Replace the file at `path`; the old one is good until the new one is.

    What the new one holds is noted, so that `is_whole` can tell it.

    Raises:
        UserError: if the system refuses to write.
    """
    import torch

    with sealed_path(path) as temporary, temporary.open("wb") as file:
        writer = _Writer(file)
        try:
            torch.save(state, writer)  # type: ignore[arg-type]
        except RuntimeError as error:
            raise (writer.refusal or error) from error


class _Writer:
    """A file for torch's writer, which hides why the system refused to write."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.refusal: OSError | None = None

    def write(self, content: bytes) -> int:
        try:
            return self._file.write(content)
        except OSError as error:
            self.refusal = error
            raise

    def flush(self) -> None:
        self._file.flush()


def steps_saved(folder: Path) -> list[int]:
    """Return steps of which there are checkpoints in `folder`, rising."""
    found = (re.fullmatch(r"step_(\d+)\.pt", path.name) for path in folder.glob("step_*.pt"))
    return sorted(int(name[1]) for name in found if name)
