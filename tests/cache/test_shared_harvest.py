"""Several processes at one cache: together as `torchrun` starts them, or against each other."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.files import chunk_files, flip, tree
from support.world import HOOK, harvest_settings

import sae
from sae.base.errors import UserError
from sae.cache import store

pytestmark = pytest.mark.slow

N_TOKENS = 12_000


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_text: Path
) -> dict[str, bytes]:
    """The cache of one process: its text ends early."""
    run = tmp_path_factory.mktemp("whole")
    sae.harvest(**settings(run, tiny_model, tiny_text))
    return tree(run / "cache.zarr")


def settings(run: Path, model: Path, text: Path, **others: Any) -> dict[str, Any]:
    given = harvest_settings(run, model, text) | {"n_tokens": N_TOKENS, "batch_size": 1}
    return given | {"text_workers": 0} | others


def pair() -> list[dict[str, str]]:
    """What `torchrun` tells each of two processes of the other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    job = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [job | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]


def harvest_in_child(given: dict[str, Any], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    sae.harvest(**given)


def in_pairs(processes: Any, given: dict[str, Any]) -> None:
    children = [
        processes.Process(target=harvest_in_child, args=(given, told)) for told in pair()
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]


def words(run: Path, model: Path, text: Path, *others: str) -> list[str]:
    """The same, as words of the command line."""
    given = [f"run={run}", f"model.name={model}", f"data.name={text}", f"hook_names=[{HOOK}]"]
    given += [f"n_tokens={N_TOKENS}", "context_size=32", "batch_size=1", "text_workers=0"]
    return ["harvest", *given, *others]


def together(script: Path, *given: str) -> tuple[int, str]:
    """Exit status of `torchrun`, and what both of its processes said."""
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *run, str(script), *given],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode, done.stdout


COUNTED = """
import os, sys
from sae.cache.writer import CacheWriter
from sae.cli import main

original = CacheWriter.write_stored
def write(self, chunk, x):
    # A file for each process: on one pipe their lines would run into each other.
    with open(f"{__file__}.{os.environ['RANK']}", "a") as file:
        print(chunk.start // 32, file=file)
    original(self, chunk, x)

CacheWriter.write_stored = write
sys.exit(main())
"""


@pytest.mark.slow
def test_two_processes_share_the_chunks_give_the_bytes_of_one_and_repair_them(
    tmp_path, tiny_model, tiny_text, whole, processes
):
    (tmp_path / "counted.py").write_text(COUNTED)
    run = tmp_path / "run"
    status, said = together(tmp_path / "counted.py", *words(run, tiny_model, tiny_text))
    assert status == 0, said
    cache = run / "cache.zarr"
    wrote = [
        (rank, i)
        for rank in (0, 1)
        for i in (tmp_path / f"counted.py.{rank}").read_text().split()
    ]
    chunks = range(len(chunk_files(cache, f"activations/{HOOK}")))
    assert {(int(i), rank) for rank, i in wrote} == {(i, i % 2) for i in chunks}
    assert len(wrote) == len(chunks)
    assert tree(cache) == whole
    # One chunk of either process, and the text.
    given = settings(run, tiny_model, tiny_text)
    flip(chunk_files(cache, f"activations/{HOOK}")[2])
    chunk_files(cache, f"norms/{HOOK}")[3].unlink()
    flip(chunk_files(cache, "tokens")[0])
    in_pairs(processes, given)
    assert tree(cache) == whole
    before = {p: p.stat().st_mtime_ns for p in cache.rglob("*")}
    in_pairs(processes, given)
    assert {p: p.stat().st_mtime_ns for p in cache.rglob("*")} == before


def test_what_is_wrong_is_said_once_and_the_other_process_ends_with_a_sentence(
    tmp_path, tiny_model, tiny_text, start
):
    asked = words(tmp_path, tiny_model, tiny_text, "context_size=999")
    both = [start(*asked, **told) for told in pair()]
    first, other = (one.ended() for one in both)
    assert first.returncode != 0 != other.returncode
    assert "longer than the model's 128 positions" in last_line(first)
    assert "another process of this job has ended; its own message says why" in last_line(other)
    assert "Traceback" not in first.stderr + other.stderr


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    line = done.stderr.splitlines()[-1]
    assert line.startswith("sae harvest: ")
    return line


def started(processes: Any, given: dict[str, Any]) -> Any:
    """A harvest in another process, stopped when it has begun to fill its cache."""
    child = processes.Process(target=harvest_in_child, args=(given, {}))
    child.start()
    while child.is_alive() and not (Path(given["run"]) / "cache.zarr").exists():
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGSTOP)
    return child


@pytest.mark.slow
def test_two_at_once_the_second_is_refused_and_the_first_finishes(
    tmp_path, tiny_model, tiny_text, whole, processes
):
    given = settings(tmp_path, tiny_model, tiny_text)
    first = started(processes, given)
    with pytest.raises(UserError) as caught:
        sae.harvest(**given)
    os.kill(first.pid, signal.SIGCONT)
    refused = str(caught.value)
    assert f"another process (process {first.pid} on " in refused
    assert "is writing to this cache; wait for it, or choose another run=" in refused
    assert "\n" not in refused
    first.join(60)
    assert first.exitcode == 0
    assert tree(tmp_path / "cache.zarr") == whole


def test_the_lock_of_a_killed_process_is_free_and_what_it_left_is_swept(
    tmp_path, tiny_model, tiny_text, whole, processes
):
    cache, given = tmp_path / "cache.zarr", settings(tmp_path, tiny_model, tiny_text)
    # With a process that tokenises, which must not hold the lock either.
    child = started(processes, given | {"text_workers": 1})
    with pytest.raises(UserError, match=f"process {child.pid} on"), store.only_writer(cache):
        pass
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    with store.only_writer(cache):
        pass
    for left in (".cache.zarr.0123abcd.partial", ".cache.zarr.0123abcd.old"):
        shutil.copytree(cache, tmp_path / left)
    (tmp_path / ".cache.zarr.mine").write_text("keep")
    sae.harvest(**given)
    assert tree(cache) == whole
    left = {p.name for p in tmp_path.iterdir()}
    own = {"cache.zarr", ".cache.zarr.lock", "harvest.json", "cache.yaml"}
    assert left == {*own, ".cache.zarr.mine"}
