"""How kernels are compiled by numba, and when compiled code is forgotten."""

import contextlib
from pathlib import Path

from numba import njit

# Never with `fastmath`: code that was just compiled and the same code from numba's cache then
# round differently (docs/log.md), and a resumed training ends in other bits.
compiled = njit(cache=True, nogil=True)
"""Compiles a kernel, or a part of one."""
parallel = njit(parallel=True, cache=True, nogil=True)
"""Compiles a kernel whose `prange` loops are shared out among threads."""


def _forget_stale() -> None:
    """Remove compiled code that is older than the source of any kernel.

    Numba compares it with the file of the kernel alone, and not with those of its parts.
    """
    here = Path(__file__).parent
    newest = max(source.stat().st_mtime for source in here.glob("*.py"))
    # Where nothing can be removed, nothing was changed either.
    with contextlib.suppress(OSError):
        for index in (here / "__pycache__").glob("*.nbi"):
            if index.stat().st_mtime < newest:
                index.unlink(missing_ok=True)


_forget_stale()
