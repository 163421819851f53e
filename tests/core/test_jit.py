"""Compiled kernels: which are kept on disk, and how threads share work."""

import os
import threading
import time
from pathlib import Path

import pytest
import torch

from sae.core import jit, vectors

pytestmark = pytest.mark.usefixtures("two_threads")


def test_compiled_code_older_than_a_kernels_source_is_forgotten(tmp_path):
    sources, compiled = tmp_path / "core", tmp_path / "cache"
    sources.mkdir()
    compiled.mkdir()
    (sources / "kernel.py").touch()
    (sources / "part.py").touch()
    old, new, other = (compiled / name for name in ("old.nbi", "new.nbi", "kernel.cpython.pyc"))
    for file in (old, new, other):
        file.touch()
    now = time.time()
    for file, age in (
        (sources / "kernel.py", 100), (sources / "part.py", 50),
        (old, 70), (new, 30), (other, 90),
    ):  # fmt: skip
        os.utime(file, (now - age, now - age))
    jit._forget_stale(sources, compiled)
    assert sorted(file.name for file in compiled.iterdir()) == ["kernel.cpython.pyc", "new.nbi"]
    jit._forget_stale(sources, tmp_path / "nothing here")


def test_what_is_forgotten_is_where_the_kernels_are_kept():
    assert jit._cache() == Path(vectors.dot.stats.cache_path)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("n", "part"), [(0, 4), (1, 4), (4, 4), (5, 4), (1000, 7)])
def test_threads_do_every_part_once(threads, n, part):
    torch.set_num_threads(threads)
    done, lock = [], threading.Lock()

    def work(first, last):
        assert 0 < last - first <= part
        with lock:
            done.extend(range(first, last))

    jit.in_threads(work, n, part)
    assert sorted(done) == list(range(n))


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_in_a_thread_is_raised(threads):
    torch.set_num_threads(threads)

    def work(first, last):
        if first <= 12 < last:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        jit.in_threads(work, 20, 3)
    jit.in_threads(work, 12, 3)
