"""A full disk is said in a sentence, whoever writes: no death by a signal, no foreign error."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.atlas_samples import context_rows, feature_columns, sample_tables, write_sample
from support.world import HOOK, cache_of, random_dictionary

from sae.analysis.shards import read_text
from sae.analysis.work import Work
from sae.atlas import CONTEXTS, FEATURES
from sae.atlas.table import columns_of
from sae.base import UserError, atomic_path
from sae.base.states import save_state
from sae.dictionary import save_dictionary
from sae.exchange.activations import export_to_hf


def rows() -> tuple:
    columns = feature_columns(
        random.Random(0), [0] * 64, [False] * 64, hostile=False, logits=True
    )
    contexts = [row for f in range(64) for row in context_rows(f, ["a", "b"], [], 1.0)]
    return sample_tables(columns, contexts)


def features(folder: Path) -> None:
    FEATURES.write(folder, columns_of(rows()[0]))


def contexts(folder: Path) -> None:
    table = rows()[1]
    # As many columns as there are in the end: what parquet keeps back fits nowhere either.
    CONTEXTS.write_pieces(folder, [columns_of(table)] * 40)


def part(folder: Path) -> None:
    Work(folder / "work", "x").save("part", {"x": np.arange(50_000)})


def cache(folder: Path):
    tokens = np.ones((400, 64), np.int32)
    x = {HOOK: torch.randn(400, 64, 2)}
    return cache_of(folder / "cache.zarr", tokens, np.arange(400) > 300, x)


WRITERS: dict[str, Callable[[Path], object]] = {
    "features": features,
    "contexts": contexts,
    "pages": lambda folder: write_sample(folder, 64),
    "part of an analysis": part,
    "dictionary": lambda folder: save_dictionary(random_dictionary(d_sae=900), folder / "d"),
    "checkpoint": lambda folder: save_state(folder / "s.pt", {"w": torch.ones(100_000)}),
}


def write_at(place: Path, write: Callable[[Path], object]) -> None:
    with atomic_path(place) as temporary:
        temporary.mkdir()
        write(temporary)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_a_sentence_and_leaves_nothing_behind(writer, small_disk):
    disk = small_disk(16 << 10)
    with pytest.raises(UserError, match="the disk is full; free some space"):
        write_at(disk / "place", WRITERS[writer])
    assert list(disk.iterdir()) == []


def test_a_text_that_finds_no_room_ends_no_process(tmp_path, small_disk):
    found = cache(tmp_path)
    disk = small_disk(64 << 10)
    with pytest.raises(UserError, match="the disk is full"):
        write_at(disk / "place", lambda folder: read_text(found, Work(folder / "work", "x")))


def test_an_export_of_a_cache_that_finds_no_room_is_a_sentence(
    tmp_path, small_disk, monkeypatch
):
    monkeypatch.setenv("SAE_ATLAS_CACHE", str(tmp_path / "own"))
    found = cache(tmp_path)
    disk = small_disk(64 << 10)
    with pytest.raises(UserError, match="GB are free"):
        export_to_hf(found, disk / "out")
    # Whoever else writes there takes the room in the meantime.
    monkeypatch.setattr("sae.exchange.activations.check_free_space", lambda *_: None)
    with pytest.raises(UserError, match="the disk is full"):
        export_to_hf(found, disk / "out")
    assert list(disk.iterdir()) == []


@pytest.mark.slow
def test_an_analysis_on_a_full_disk_says_so_and_goes_on_once_there_is_room(
    tiny_run, tmp_path, small_disk, command
):
    disk = small_disk(1 << 20)
    run = disk / "run"
    shutil.copytree(tiny_run / "dictionaries" / "weak", run / "dictionaries" / "weak")
    (run / "atlas").mkdir()
    words = ["analyze", f"run={run}", f"cache={tiny_run / 'cache.zarr'}"]
    with (disk / "ballast").open("wb") as file:
        file.write(b"-" * (shutil.disk_usage(disk).free - (50 << 10)))
    done = command(*words)
    assert done.returncode == 2, done.stderr
    assert "the disk is full; free some space" in done.stderr.splitlines()[-1]
    small_disk(16 << 20)
    assert command(*words).returncode == 0
    left = sorted(path.name for path in (run / "atlas").iterdir())
    assert left == [".weak.lock", "weak", "weak.yaml"]
