"""Unfinished work of an analysis, kept on disk part by part.

A kill costs one part, and one that is damaged is computed again.
"""

import json
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from sae.base import (
    UserError,
    is_whole,
    read_json,
    remove_unfinished,
    sealed_path,
    write_json,
)

Arrays = dict[str, NDArray[Any]]

_OWNER_FILE = "work.json"
_DTYPES = {"F32": "<f4", "F64": "<f8", "I32": "<i4", "I64": "<i8", "I8": "<i1", "U8": "<u1"}


class ArrayFile:
    """A safetensors file, read array by array or a slice of one, without mapping it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            self._about: dict[str, Any] = json.loads(file.read(length))
        self._start = 8 + length

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Return an array, or its elements from `start` to `stop` along the first axis."""
        about = self._about[name]
        dtype, shape = np.dtype(_DTYPES[about["dtype"]]), about["shape"]
        stop = shape[0] if stop is None else stop
        width = int(np.prod(shape[1:], dtype=np.int64))
        offset = self._start + about["data_offsets"][0] + start * width * dtype.itemsize
        count = (stop - start) * width
        return np.fromfile(self.path, dtype, count, offset=offset).reshape(-1, *shape[1:])

    @property
    def names(self) -> list[str]:
        """The names of the arrays in it."""
        return [name for name in self._about if name != "__metadata__"]

    def length(self, name: str) -> int:
        """Return the length of an array along its first axis."""
        return int(self._about[name]["shape"][0])


class Work:
    """A folder of finished parts. Of other inputs than `owner` says, it starts empty."""

    def __init__(self, folder: Path, owner: str) -> None:
        self.folder = folder
        known = folder / _OWNER_FILE
        if not _is_owned(known, owner):
            shutil.rmtree(folder, ignore_errors=True)
            write_json(known, owner)
        remove_unfinished(folder)

    def has(self, name: str) -> bool:
        """Whether a part is finished, and holds what was written into it."""
        path = self._path(name)
        return path.is_file() and is_whole(path, unknown=False)

    def open(self, name: str) -> ArrayFile:
        """Return a finished part."""
        return ArrayFile(self._path(name))

    def save(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Finish a part."""
        whole = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
        with sealed_path(self._path(name)) as temporary:
            # As bytes, not by `save_file`, whose errors hide that the disk is full.
            temporary.write_bytes(save(whole))

    def once(self, name: str, compute: Callable[[], Mapping[str, NDArray[Any]]]) -> Arrays:
        """Return the arrays of a part, computed if they are not there yet."""
        if not self.has(name):
            self.save(name, compute())
        file = self.open(name)
        return {key: file.read(key) for key in file.names}

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


def _is_owned(path: Path, owner: str) -> bool:
    try:
        return bool(read_json(path) == owner)
    except UserError:
        return False
