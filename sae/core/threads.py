"""On how many threads the kernels that numba compiles run."""

import numba
import torch


def use_threads() -> int:
    """Let numba use as many threads as torch does; returns how many.

    Numba starts its threads at the first call, and tells OpenMP how many they are, which torch
    shares. So torch is told again what it was told before.
    """
    asked = torch.get_num_threads()
    n: int = min(asked, numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(n)
    if torch.get_num_threads() != asked:
        torch.set_num_threads(asked)
    return n
