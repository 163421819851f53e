"""A harvest that dies in the middle of a write."""

import itertools
import os
import threading
from pathlib import Path
from typing import Any

import sae

OTHER = "blocks.0.mlp.hook_post"


def harvest_until(n_writes: int, given: dict[str, Any]) -> None:
    """Harvest in this process, which dies in its `n_writes`-th write, half of it written."""
    from zarr.storage import _local

    original, count, lock = _local._put, itertools.count(1), threading.Lock()

    def put(path: Path, value: Any, exclusive: bool = False) -> int:
        with lock:
            if next(count) < n_writes:
                return original(path, value, exclusive)
            raw = bytes(value.as_buffer_like())
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".0123.partial").write_bytes(raw[: len(raw) // 2])
            os._exit(9)

    _local._put = put
    sae.harvest(**given)
