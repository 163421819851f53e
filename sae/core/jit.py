"""How kernels are compiled by numba, and when compiled code is forgotten."""

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from numba import njit

T = TypeVar("T")

# Never with `fastmath`: code that was just compiled and the same code from numba's cache then
# round differently (docs/log.md), and a resumed training ends in other bits.
compiled = njit(cache=True, nogil=True)
"""Compiles a kernel, or a part of one."""
parallel = njit(parallel=True, cache=True, nogil=True)
"""Compiles a kernel whose `prange` loops are shared out among threads."""


def in_threads(work: Callable[[int, int], T], n: int, part: int) -> list[T]:
    """Return `work(first, last)` of all parts of a range, in as many threads as torch uses.

    For kernels that are too large to be compiled with `parallel` in a reasonable time.
    """
    firsts = range(0, n, part)
    workers = min(torch.get_num_threads(), len(firsts))
    if workers <= 1:
        return [work(first, min(first + part, n)) for first in firsts]
    with ThreadPoolExecutor(workers) as pool:
        # Errors are raised here.
        return list(pool.map(lambda first: work(first, min(first + part, n)), firsts))


def _cache() -> Path:
    """Return where numba keeps what is compiled of the files beside this one."""
    return Path(njit(cache=True)(in_threads).stats.cache_path)


def _forget_stale(here: Path, cache: Path) -> None:
    """Remove compiled code in `cache` that is older than the source of any kernel in `here`.

    Numba compares it with the file of the kernel alone, and not with those of its parts.
    """
    newest = max(source.stat().st_mtime for source in here.glob("*.py"))
    # Where nothing can be removed, nothing was changed either.
    with contextlib.suppress(OSError):
        for index in cache.glob("*.nbi"):
            if index.stat().st_mtime < newest:
                index.unlink(missing_ok=True)


_forget_stale(Path(__file__).parent, _cache())
