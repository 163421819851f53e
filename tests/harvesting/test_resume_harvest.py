"""A harvest that is killed, runs out of disk or is damaged, and goes on to the same bytes."""

import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from support.dying import OTHER, harvest_until
from support.files import chunk_files, cut, flip, tree
from support.world import HOOK, harvest_settings, sentences

import sae
from sae.base.errors import UserError
from sae.cache.layout import open_cache
from sae.cache.writer import CacheWriter
from sae.cli import main

CONTEXT = 16


def settings(run: Path, model: Path, text: Path, **others: Any) -> dict[str, Any]:
    """Two hooks, and a last chunk that is not full."""
    asked = {"hook_names": [HOOK, OTHER], "n_tokens": 70 * CONTEXT, "context_size": CONTEXT}
    return harvest_settings(run, model, text) | asked | {"text_workers": 0} | others


def harvest_in_child(given: dict[str, Any]) -> None:
    sae.harvest(**given)


def command_in_child(words: list[str], log: Path) -> None:
    """The command line, with what it says in a file."""
    with log.open("w") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    sys.exit(main(words))


# Killed


@pytest.fixture(scope="module")
def slow_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text that the model waits for: most of what is read came before."""
    texts = sentences(500, seed=9, words=60)
    lines = [json.dumps({"text": t}) for i in range(0, 500, 20) for t in texts[i : i + 20] * 30]
    folder = tmp_path_factory.mktemp("slow")
    (folder / "slow.jsonl").write_text("\n".join(lines))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("text", ["slower than the model", "faster than the model"])
def test_a_harvest_killed_six_times_in_a_row_goes_on_to_the_same_bytes(
    tmp_path,
    tiny_model,
    slow_text,
    processes,
    text,
):
    slow = text.startswith("slower")
    given = settings(tmp_path / "run", tiny_model, slow_text, n_tokens=24_000)
    given |= {"batch_size": 32 if slow else 1}
    sae.harvest(**given | {"run": str(tmp_path / "whole")})
    whole, cache = tmp_path / "whole" / "cache.zarr", tmp_path / "run" / "cache.zarr"
    seed = time.time_ns()
    draw, done, streaming = random.Random(seed), [], 0
    for _ in range(6):
        child = processes.Process(target=harvest_in_child, args=(given,))
        child.start()
        # From the laying out on: the first half of a second is that of any program.
        while child.is_alive() and not cache.exists():
            time.sleep(0.005)
        child.join(draw.uniform(0.15, 0.5))
        os.kill(child.pid, signal.SIGKILL)
        child.join(10)
        done.append(child.exitcode)
        child.close()
        streaming += not CacheWriter(cache).text_complete
    assert done.count(-signal.SIGKILL) > 2, done
    assert not slow or streaming > 1, "the text was complete before the kills"
    sae.harvest(**given)
    assert tree(cache) == tree(whole), f"seed {seed}"
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".partial", ".old")]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_harvest_whose_text_ends_early_dies_inside_any_write_and_goes_on_to_the_same_bytes(
    tmp_path,
    tiny_model,
    tiny_text,
    processes,
    seed,
):
    given = settings(tmp_path / "run", tiny_model, tiny_text, n_tokens=20_000)
    given |= {"hook_names": [HOOK], "dtype": "int8", "compression": "zstd", "context_size": 64}
    whole = sae.harvest(**given | {"run": str(tmp_path / "whole")})
    assert whole.n_sequences < 20_000 // 64
    draw = random.Random(seed)
    for n_writes in (draw.randint(10, 60), draw.randint(1, 40), draw.randint(1, 40)):
        child = processes.Process(target=harvest_until, args=(n_writes, given))
        child.start()
        child.join(60)
        assert child.exitcode in (0, 9)
        child.close()
    sae.harvest(**given)
    assert tree(tmp_path / "run" / "cache.zarr") == tree(tmp_path / "whole" / "cache.zarr")


# A full disk


@pytest.mark.slow
def test_a_disk_that_fills_up_says_what_is_needed_and_the_same_command_finishes(
    tmp_path, small_disk, tiny_model, slow_text, processes
):
    disk, run = small_disk(20 << 20), tmp_path / "disk" / "run"
    given = settings(run, tiny_model, slow_text, n_tokens=12_000, batch_size=1)
    whole = sae.harvest(**given | {"run": str(tmp_path / "whole")})
    words = [f"run={run}", f"model.name={tiny_model}", f"data.name={slow_text}"]
    words += [f"hook_names=[{HOOK},{OTHER}]", "n_tokens=12000", f"context_size={CONTEXT}"]
    words += ["batch_size=1", "text_workers=0"]
    log, cache = tmp_path / "said.txt", run / "cache.zarr"
    child = processes.Process(target=command_in_child, args=(["harvest", *words], log))
    child.start()
    while child.is_alive() and not chunk_files(cache, f"activations/{HOOK}"):
        time.sleep(0.005)
    free = shutil.disk_usage(disk).free
    (disk / "ballast").write_bytes(b"-" * (free - (1 << 20)))
    child.join(60)
    said = log.read_text()
    assert child.exitcode == 2, said
    last = said.strip().splitlines()[-1]
    found = re.search(r"cache\.zarr: the disk is full; ([\d.e-]+) GB are still needed", last)
    assert found, said
    assert "run the same command again" in last
    assert "Traceback" not in said
    assert not list(disk.rglob("*.partial"))
    writer = CacheWriter(cache)
    missing = writer.missing(verify=True)
    assert missing == writer.missing(verify=False), "something half-written is there"
    assert 0 < len(missing) < len(writer.chunks())
    rows = sum(c.stop - c.start for c in missing) * CONTEXT
    # Both hooks are 32 and 64 wide, of two bytes; norms, tokens and documents of four each.
    assert float(found[1]) * 1e9 == pytest.approx(rows * (2 * (32 + 64) + 16), rel=0.02)
    small_disk(40 << 20)
    sae.harvest(**given)
    assert tree(cache) == tree(Path(whole.location))


# Damaged

KINDS = {
    "float16": ["activations", "norms", "moments"],
    "bfloat16": ["activations", "norms", "moments"],
    "int8": ["activations", "norms", "moments", "scales"],
}
CACHES = [("float16", "none"), ("float16", "zstd"), ("bfloat16", "none"), ("int8", "zstd")]
CACHES += [("int8", "none"), ("bfloat16", "zstd")]
HARMS = [cut, Path.unlink, lambda file: file.write_bytes(b"")]


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_text: Path
) -> Callable[[str, str], dict[str, Any]]:
    """The settings of a finished harvest of a dtype and a compression; not to be changed."""
    found: dict[tuple[str, str], dict[str, Any]] = {}

    def make(dtype: str, compression: str) -> dict[str, Any]:
        if (dtype, compression) not in found:
            run = tmp_path_factory.mktemp(f"{dtype}-{compression}")
            given = settings(run, tiny_model, tiny_text, dtype=dtype, compression=compression)
            sae.harvest(**given)
            found[dtype, compression] = given
        return found[dtype, compression]

    return make


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[slice]:
    """The chunks that are computed from here on."""
    seen: list[slice] = []
    original = CacheWriter.write_stored
    monkeypatch.setattr(
        CacheWriter, "write_stored", lambda *a: seen.append(a[1]) or original(*a)
    )
    return seen


def copied(given: dict[str, Any], tmp_path: Path) -> tuple[dict[str, Any], Path, Path]:
    """A copy of a cache: how to harvest it again, where it is, where the original is."""
    whole = Path(given["run"]) / "cache.zarr"
    shutil.copytree(whole, tmp_path / "cache.zarr")
    return given | {"run": str(tmp_path)}, tmp_path / "cache.zarr", whole


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "compression", "harm"),
    [*((*cache, flip) for cache in CACHES), *(("int8", "zstd", harm) for harm in HARMS)],
)
def test_damage_of_any_array_is_repaired_by_computing_that_chunk_alone(
    tmp_path, made, computed, dtype, compression, harm
):
    given, cache, whole = copied(made(dtype, compression), tmp_path)
    expected = tree(whole)
    for kind in KINDS[dtype]:
        computed.clear()
        # The last chunk is not full.
        for i in (1, -1):
            harm(chunk_files(cache, f"{kind}/{OTHER}")[i])
        sae.harvest(**given)
        assert computed == [slice(32, 64), slice(64, 70)], kind
        assert tree(cache) == expected, kind


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tokens", "documents", "held_out", "document_digests"])
@pytest.mark.parametrize("harm", [flip, *HARMS])
def test_damage_of_the_text_is_repaired_by_reading_it_again(
    tmp_path, made, computed, name, harm
):
    given, cache, whole = copied(made("int8", "zstd"), tmp_path)
    computed.clear()
    harm(chunk_files(cache, name)[0])
    sae.harvest(**given)
    assert computed == []
    assert tree(cache) == tree(whole)


@pytest.mark.parametrize("name", [f"statistics/{OTHER}/mean", f"statistics/{HOOK}/variance"])
def test_damaged_statistics_are_reduced_again_without_the_model(tmp_path, made, computed, name):
    given, cache, whole = copied(made("float16", "none"), tmp_path)
    computed.clear()
    flip(chunk_files(cache, name)[0])
    sae.harvest(**given)
    assert computed == []
    assert tree(cache) == tree(whole)


def test_without_verify_what_is_there_is_not_read_and_what_is_not_is_computed(
    tmp_path, made, computed, monkeypatch
):
    given, cache, whole = copied(made("float16", "none"), tmp_path)
    computed.clear()
    given |= {"verify": False}
    flip(chunk_files(cache, f"activations/{HOOK}")[0])
    harmed = tree(cache)
    with monkeypatch.context() as patched:
        for name in ("_whole", "_reads"):
            patched.setattr(CacheWriter, name, lambda *_: pytest.fail("something was read"))
        sae.harvest(**given)
        assert computed == []
        chunk_files(cache, f"norms/{OTHER}")[1].unlink()
        sae.harvest(**given)
    assert computed == [slice(32, 64)]
    assert tree(cache) == harmed
    sae.harvest(**given | {"verify": True})
    assert computed[1:] == [slice(0, 32)]
    assert tree(cache) == tree(whole)


def test_a_damaged_description_is_not_taken_for_right_by_completing_the_cache(tmp_path, made):
    given, cache, _ = copied(made("float16", "none"), tmp_path)
    about = cache / f"norms/{OTHER}/zarr.json"
    about.write_text(about.read_text() + " ")
    chunk_files(cache, f"activations/{HOOK}")[1].unlink()
    with pytest.raises(UserError, match=rf"norms/{OTHER}/zarr\.json is damaged; remove the"):
        sae.harvest(**given | {"verify": False})
    with pytest.raises(UserError, match=r"zarr\.json is damaged; remove the"):
        sae.harvest(**given)


@pytest.mark.parametrize("name", ["tokens", "documents"])
@pytest.mark.parametrize("harm", [flip, Path.unlink])
def test_without_verify_damaged_text_that_is_needed_is_one_sentence_and_no_endless_wait(
    tmp_path, made, name, harm
):
    given, cache, whole = copied(made("float16", "none"), tmp_path)
    harm(chunk_files(cache, name)[0])
    chunk_files(cache, f"activations/{HOOK}")[1].unlink()
    with pytest.raises(UserError, match=r"its text is damaged; run .* with verify=true"):
        sae.harvest(**given | {"verify": False})
    sae.harvest(**given)
    assert tree(cache) == tree(whole)


# What is stored


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "compression"), CACHES)
def test_every_dtype_and_compression_stores_the_same_values(
    made, tiny_model, tiny_text, tmp_path, dtype, compression
):
    cache = open_cache(Path(made(dtype, compression)["run"]) / "cache.zarr")
    exact = sae.harvest(**settings(tmp_path, tiny_model, tiny_text, dtype="float32"))
    np.testing.assert_array_equal(cache.tokens, exact.tokens)
    for hook in (HOOK, OTHER):
        chunks = cache.chunks(hook)
        assert [c.stop for c in chunks] == [32, 64, 70]
        x, y = (torch.cat([c.read(hook, p) for p in chunks]) for c in (exact, cache))
        if dtype == "int8":
            bound = x.abs().amax(-1, keepdim=True) / 254
            assert ((y - x).abs() <= bound * (1 + 1e-5)).all()
            assert ((y - x).abs() > bound * 0.9).any()
        else:
            assert y.dtype == getattr(torch, dtype)
            torch.testing.assert_close(y, x.to(y.dtype), rtol=0, atol=0)
        norms = y.float().norm(dim=-1).numpy()
        np.testing.assert_allclose(cache.norms(hook), norms, rtol=1e-5)
        rows = y.float()[torch.from_numpy(~cache.held_out)].numpy().astype(np.float64)
        rows = rows[cache.text_rows()[~cache.held_out]]
        found = cache.statistics(hook)
        np.testing.assert_allclose(found["mean"], rows.mean(0), rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(found["variance"], rows.var(0), rtol=1e-6)
        group = zarr.open_group(cache.location, mode="r")
        if dtype == "int8":
            stored = group[f"activations/{hook}"][...] * group[f"scales/{hook}"][...][..., None]
            np.testing.assert_array_equal(stored, y.numpy())
    names = [type(c).__name__ for c in group[f"activations/{HOOK}"].metadata.codecs]
    assert ("BloscCodec" in names) == (compression == "zstd")


# Memory

HOOK_IN = "blocks.0.hook_resid_pre"


def harvest_and_measure(given: dict[str, Any], answer: Any) -> None:
    harvest_in_child(given)
    answer.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10)


@pytest.mark.slow
def test_memory_while_harvesting_does_not_grow_with_the_cache(tmp_path, tiny_model, processes):
    texts = sentences(2000, seed=2, words=900)
    text = tmp_path / "long.jsonl"
    text.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    peaks = {}
    for n in (400_000, 2_400_000):
        given = settings(tmp_path / str(n), tiny_model, text, n_tokens=n, context_size=128)
        given |= {"hook_names": [HOOK_IN], "batch_size": 32}
        for again in (False, True):
            answer, send = processes.Pipe()
            child = processes.Process(target=harvest_and_measure, args=(given, send))
            child.start()
            peaks[n, again] = answer.recv()
            child.join()
            # The second time it is completed, after all of it was read.
            cache = tmp_path / str(n) / "cache.zarr"
            chunk_files(cache, f"norms/{HOOK_IN}")[0].unlink()
    # The longer cache's activations are 128 MB more, its tokens and documents 8 MB each.
    for again, bound in ((False, 32), (True, 6)):
        assert peaks[2_400_000, again] - peaks[400_000, again] < bound << 20, peaks
