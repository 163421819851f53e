"""Rows of a cache: which are read, in which order, and from where a resumed run goes on."""

import time
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from support.world import HOOK, cache_of
from torch import Tensor

from sae.base.errors import UserError
from sae.cache.layout import ActivationCache, open_cache
from sae.rows.shuffle import (
    Rows,
    RowSelection,
    rows_in_order,
    select_rows,
    shuffled_batches,
)

SEQUENCES, CONTEXT = 150, 8
LOUD = [(3, 5), (40, 1), (149, 7)]
HELD_OUT = np.arange(SEQUENCES) >= 120


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> ActivationCache:
    """A cache whose row at (sequence, position) points at its own angle, so none are alike.

    Five chunks, the last one short and, like most of the one before, held out. Every
    norm is 1, but for three that are 50. A second hook, `out`, holds the rows' numbers, so its
    norms are as unlike as can be.
    """
    draw = np.random.default_rng(0)
    tokens = draw.integers(2, 90, (SEQUENCES, CONTEXT), dtype=np.int32)
    tokens[:, 0] = 0
    tokens[::7, 3] = 1
    angle = torch.arange(SEQUENCES * CONTEXT).reshape(SEQUENCES, CONTEXT) / 400
    x = torch.stack([angle.cos(), angle.sin(), torch.zeros_like(angle)], dim=-1)
    for place in LOUD:
        tokens[place] = 50
        x[place] *= 50
    number = torch.arange(SEQUENCES * CONTEXT).float().reshape(SEQUENCES, CONTEXT)
    out = torch.stack([number, -number], dim=-1)
    path = tmp_path_factory.mktemp("numbered") / "cache.zarr"
    return cache_of(path, tokens, HELD_OUT, {"h": x, "out": out}, special=(0, 1))


def training(
    cache: ActivationCache, multiple: float | None = 10.0, hooks: tuple[str, ...] = ("h",)
) -> RowSelection:
    return select_rows(cache, *hooks, held_out=False, max_norm_multiple=multiple)


def alone(batches: Iterable[Rows]) -> list[Tensor]:
    """The rows of batches of one hook."""
    return [x for (x,) in batches]


def numbers(rows: Tensor) -> list[int]:
    """Which rows of the numbered cache these are."""
    angle = torch.atan2(rows[:, 1].double(), rows[:, 0].double()) % (2 * torch.pi)
    return (angle * 400).round().long().tolist()


def chosen(held_out: bool, loud: bool = False) -> list[int]:
    """The numbers of the rows that are text, computed without the reader."""
    draw = np.random.default_rng(0)
    special = draw.integers(2, 90, (SEQUENCES, CONTEXT)) < 0
    special[:, 0] = special[::7, 3] = True
    for place in LOUD:
        special[place] = not loud
    keep = ~special & (held_out == HELD_OUT)[:, None]
    return np.flatnonzero(keep).tolist()


POOLS = [1, 32 * CONTEXT * 12 * 2, 2 << 30]


def test_the_numbers_identify_rows(numbered):
    assert 2 * np.pi * 400 > SEQUENCES * CONTEXT
    x = torch.cat([numbered.read("h", c) for c in numbered.chunks("h")]).reshape(-1, 3)
    assert numbers(x) == list(range(SEQUENCES * CONTEXT))
    assert len(numbered.chunks("h")) == 5


@pytest.mark.parametrize("held_out", [False, True])
def test_the_selection_is_text_of_one_side_without_sinks(numbered, held_out):
    selection = select_rows(numbered, "h", held_out=held_out)
    assert np.flatnonzero(selection.keep).tolist() == chosen(held_out)
    assert selection.n_rows == len(chosen(held_out))


def test_rows_above_the_multiple_of_the_median_norm_are_left_out_and_no_others(numbered):
    for multiple, loud in ((None, True), (60.0, True), (49.0, False), (1.5, False)):
        selection = training(numbered, multiple)
        assert np.flatnonzero(selection.keep).tolist() == chosen(False, loud=loud), multiple
    assert len(chosen(False, loud=True)) == len(chosen(False)) + 2


@pytest.mark.parametrize("pool_bytes", POOLS)
def test_an_epoch_holds_every_selected_row_exactly_once(numbered, pool_bytes):
    selection = training(numbered)
    n = selection.n_rows
    batches = shuffled_batches(selection, 1, seed=3, pool_bytes=pool_bytes)
    rows = numbers(torch.cat(alone(islice(batches, 3 * n))))
    epochs = [rows[i * n : (i + 1) * n] for i in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == chosen(False)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != chosen(False)


@pytest.mark.parametrize("pool_bytes", POOLS)
@pytest.mark.parametrize("size", [7, 64, 500])
def test_batches_of_any_size_cut_the_same_order(numbered, pool_bytes, size):
    selection = training(numbered)
    n = 2 * selection.n_rows // size * size
    one = shuffled_batches(selection, 1, seed=3, pool_bytes=pool_bytes)
    some = shuffled_batches(selection, size, seed=3, pool_bytes=pool_bytes)
    many = alone(islice(some, n // size))
    assert {len(batch) for batch in many} == {size}
    assert torch.equal(torch.cat(many), torch.cat(alone(islice(one, n))))


@pytest.mark.parametrize("pool_bytes", POOLS)
def test_the_order_depends_on_the_seed_alone(numbered, pool_bytes):
    def order(seed: int) -> list[int]:
        batches = shuffled_batches(training(numbered), 50, seed=seed, pool_bytes=pool_bytes)
        return numbers(torch.cat(alone(islice(batches, 30))))

    first = order(1)
    torch.manual_seed(99)
    assert order(1) == first
    assert order(2) != first


def test_the_default_pool_mixes_rows_of_all_chunks(numbered):
    (batch,) = next(shuffled_batches(training(numbered), 200, seed=0))
    assert {row // (32 * CONTEXT) for row in numbers(batch)} == {0, 1, 2, 3}


@pytest.mark.slow
@pytest.mark.parametrize("pool_bytes", POOLS)
@pytest.mark.parametrize("size", [37, 128])
def test_skipping_gives_what_reading_and_dropping_gives(numbered, pool_bytes, size):
    selection = training(numbered)

    def batches(skip: int = 0) -> Any:
        return shuffled_batches(selection, size, seed=5, skip=skip, pool_bytes=pool_bytes)

    # Past the third epoch, so that pools and epochs end inside batches.
    n = 3 * selection.n_rows // size + 4
    read = list(islice(batches(), n + 3))
    for skip in range(n):
        for (ours,), (theirs,) in zip(batches(skip), read[skip : skip + 3], strict=False):
            assert torch.equal(ours, theirs), skip


def test_what_is_skipped_is_not_read(numbered, monkeypatch):
    reads = []
    original = ActivationCache.read
    monkeypatch.setattr(
        ActivationCache, "read", lambda *a: reads.append(a[2].start) or original(*a)
    )
    selection = training(numbered)
    next(shuffled_batches(selection, 10, seed=5, skip=1000, pool_bytes=1))
    # The chunk that is needed, one more to fill the batch, and one that is read ahead.
    assert 1 <= len(reads) <= 3


def test_a_batch_larger_than_the_selection_is_refused_at_once(numbered):
    selection = training(numbered)
    shuffled_batches(selection, selection.n_rows, seed=0)
    with pytest.raises(UserError, match=f"has {selection.n_rows} rows to train on"):
        shuffled_batches(selection, selection.n_rows + 1, seed=0)


def test_rows_in_order_are_all_rows_in_order(numbered):
    assert numbers(torch.cat(alone(rows_in_order(training(numbered))))) == chosen(False)


@pytest.mark.parametrize("limit", [1, 2, 3, 10, 99, 400, 700, 10_000])
def test_a_limit_gives_evenly_spread_rows_and_no_more_than_that(numbered, limit):
    rows = chosen(False)
    found = numbers(torch.cat(alone(rows_in_order(training(numbered), limit=limit))))
    assert min(limit, len(rows)) / 2 <= len(found) <= limit
    assert found == rows[:: -(-len(rows) // limit)]


@pytest.mark.parametrize("limit", [None, 1, 99, 700])
def test_pairs_in_order_are_todays_rows_beside_the_same_rows_of_the_other_hook(numbered, limit):
    pairs = list(rows_in_order(training(numbered, hooks=("h", "out")), limit))
    x, y = (torch.cat(side) for side in zip(*pairs, strict=True))
    assert torch.equal(x, torch.cat(alone(rows_in_order(training(numbered), limit))))
    assert y.shape == (len(x), 2)
    assert y[:, 0].tolist() == numbers(x)


@pytest.mark.parametrize("pool_bytes", POOLS)
@pytest.mark.parametrize("skip", [0, 5])
def test_shuffled_pairs_are_the_same_rows_of_both_hooks(numbered, pool_bytes, skip):
    selection = training(numbered, hooks=("h", "out"))
    n = 3 * selection.n_rows // 37
    pairs = shuffled_batches(selection, 37, seed=5, skip=skip, pool_bytes=pool_bytes)
    found = list(islice(pairs, n))
    assert {(x.shape, y.shape) for x, y in found} == {((37, 3), (37, 2))}
    rows = [row for x, _ in found for row in numbers(x)]
    assert [row for _, y in found for row in y[:, 0].tolist()] == rows
    assert set(rows) == set(chosen(False))


def test_pairs_come_in_the_order_in_which_one_hook_is_read(numbered):
    both, one = training(numbered, hooks=("h", "out")), training(numbered)
    pairs = shuffled_batches(both, 64, seed=2, skip=3)
    singles = shuffled_batches(one, 64, seed=2, skip=3)
    for (x, _), (expected,) in islice(zip(pairs, singles, strict=True), 30):
        assert torch.equal(x, expected)


@pytest.mark.slow
@pytest.mark.parametrize(("hooks", "chunks"), [(("h",), 4), (("h", "out"), 2)])
def test_a_pool_counts_the_bytes_of_every_hook_that_it_holds(
    numbered, monkeypatch, hooks, chunks
):
    reads: list[str] = []
    original = ActivationCache.read
    monkeypatch.setattr(ActivationCache, "read", lambda *a: reads.append(a[1]) or original(*a))
    selection = training(numbered, hooks=hooks)
    largest = max(int(selection.keep[c].sum()) for c in numbered.chunks("h"))
    most = 0
    for seed in range(10):
        reads.clear()
        batches = shuffled_batches(selection, 1, seed=seed, pool_bytes=4 * largest * 3 * 4)
        next(batches)
        # One pool is there, and threads read the next.
        time.sleep(0.05)
        assert reads.count("out") == (reads.count("h") if "out" in hooks else 0)
        most = max(most, reads.count("h"))
    assert most == chunks


def test_an_output_hook_that_the_cache_does_not_hold_is_refused_at_once(numbered):
    with pytest.raises(UserError, match=r"hook_name=oot is not in .*; nearest: out"):
        training(numbered, hooks=("h", "oot"))


def test_a_lost_chunk_of_norms_is_refused_and_not_taken_for_sinks(numbered, tmp_path):
    import shutil

    shutil.copytree(numbered.location, tmp_path / "cache.zarr")
    (tmp_path / "cache.zarr" / "norms" / "h" / "c.1.0").unlink()
    with pytest.raises(UserError, match="norms/h is missing or damaged"):
        training(open_cache(tmp_path / "cache.zarr"))


def test_training_batches_of_a_harvest_hold_its_training_rows_and_nothing_else(tiny_run: Path):
    group = zarr.open_group(str(tiny_run / "cache.zarr"), mode="r")
    tokens, held_out = group["tokens"][...], group["held_out"][...]
    x = group[f"activations/{HOOK}"][...]
    text = ~np.isin(tokens, [0, 1])
    norms = np.linalg.norm(x.astype(np.float64), axis=2)
    loud = norms > 10 * np.median(norms[text & ~held_out[:, None]])
    keep = text & ~loud & ~held_out[:, None]
    expected = Counter(row.tobytes() for row in x[keep])
    never = {row.tobytes() for row in x[~keep]} - set(expected)
    assert len(never) > 100
    selection = select_rows(open_cache(tiny_run / "cache.zarr"), HOOK, held_out=False)
    batches = shuffled_batches(selection, 1, seed=0)
    epoch = torch.cat(alone(islice(batches, selection.n_rows))).numpy()
    assert Counter(row.tobytes() for row in epoch) == expected
