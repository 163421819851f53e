"""The number of threads is the caller's."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import torch
from sae.core.select import TopK, select

def threads():
    select(torch.rand(8, 4), torch.rand(64, 4), torch.zeros(64), TopK(3))
    return torch.get_num_threads()

asked = torch.get_num_threads()
found = [asked, threads(), threads()]
torch.set_num_threads(2)
print(found, threads())
"""


@pytest.mark.slow
def test_a_kernel_leaves_torchs_number_of_threads_as_it_is():
    given = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "3"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=given, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[1, 1, 1] 2\n"
