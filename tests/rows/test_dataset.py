"""`sae.ActivationDataset`: a cache in a training loop of one's own."""

import itertools
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.world import HOOK, cache_of
from torch import Tensor
from torch.utils.data import DataLoader

import sae
from sae.base.errors import UserError
from sae.cache.layout import ActivationCache, open_cache
from sae.rows.shuffle import select_rows, shuffled_batches

SEQUENCES, CONTEXT = 150, 8
HELD_OUT = np.arange(SEQUENCES) >= 120
POOLS = [1, 32 * CONTEXT * 12 * 2, 2 << 30]


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> ActivationCache:
    """A cache whose row at (sequence, position) holds its number, and at `out` its negative.

    Five chunks; the rows of the last position are loud, those of the first special.
    """
    tokens = np.full((SEQUENCES, CONTEXT), 5, dtype=np.int32)
    tokens[:, 0] = 0
    number = torch.arange(SEQUENCES * CONTEXT).float().reshape(SEQUENCES, CONTEXT)
    x = torch.stack([number + 1, torch.full_like(number, 3000)], dim=-1)
    x[:, -1] *= 100
    path = tmp_path_factory.mktemp("numbered") / "cache.zarr"
    hooks = {"h": x, "out": -number[..., None]}
    return cache_of(path, tokens, HELD_OUT, hooks)


def wanted(held_out: bool = False, loud: bool = False) -> list[int]:
    """Numbers of the rows that are to come, computed without the reader."""
    keep = np.repeat((held_out == HELD_OUT)[:, None], CONTEXT, 1)
    keep[:, 0] = False
    keep[:, -1] &= loud
    return np.flatnonzero(keep).tolist()


def numbers(batches: list[Tensor]) -> list[int]:
    rows = torch.cat(batches)
    return (rows[:, 0] / (rows[:, 1] / 3000)).round().long().sub(1).tolist()


def dataset(cache: Any, **settings: Any) -> sae.ActivationDataset:
    return sae.ActivationDataset(cache, "h", **{"batch_size": 64} | settings)


def loaded(data: sae.ActivationDataset, n_workers: int) -> list[Any]:
    """What a loader gives; its workers are forked, which is quick."""
    context = "fork" if n_workers else None
    return list(DataLoader(data, None, num_workers=n_workers, multiprocessing_context=context))


@pytest.mark.parametrize("pool_bytes", POOLS)
@pytest.mark.parametrize("size", [1, 64, 500, 100_000])
def test_an_epoch_holds_every_row_once_the_last_smaller_batch_included(
    numbered, pool_bytes, size
):
    data = dataset(numbered, batch_size=size, pool_bytes=pool_bytes)
    batches = list(data)
    rows = wanted()
    assert [len(b) for b in batches[:-1]] == [size] * (
        len(rows) // size - (len(rows) % size == 0)
    )
    assert len(batches) == len(data) == -(-len(rows) // size)
    assert sorted(numbers(batches)) == rows
    assert numbers(batches) != rows


@pytest.mark.slow
@pytest.mark.parametrize("pool_bytes", POOLS)
@pytest.mark.parametrize("n_workers", [0, 1, 2])
def test_workers_split_the_rows_so_that_each_still_comes_once_an_epoch(
    numbered, n_workers, pool_bytes
):
    # 12 batches an epoch less one: an odd number, so that epochs begin with either worker.
    data = dataset(numbered, batch_size=67, epochs=3, pool_bytes=pool_bytes)
    assert data.batches_an_epoch % 2
    batches = loaded(data, n_workers)
    assert len(batches) == len(data) == 3 * data.batches_an_epoch
    n = data.batches_an_epoch
    epochs = [numbers(batches[i * n : (i + 1) * n]) for i in range(3)]
    assert all(sorted(epoch) == wanted() for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert {len(b) for i, b in enumerate(batches) if (i + 1) % n} == {67}


@pytest.mark.parametrize("n_workers", [3, 5, 11, 30])
def test_any_number_of_workers_gets_all_rows(numbered, monkeypatch, n_workers):
    # Without processes: a loader warns of more workers than there are cores.
    data = dataset(numbered, batch_size=67, epochs=2, skip=4)
    found = []
    for i in range(n_workers):
        info = type("Info", (), {"id": i, "num_workers": n_workers})
        monkeypatch.setattr("sae.rows.dataset.get_worker_info", lambda info=info: info)
        found.append(list(data))
    # As a loader takes them, one from each in turn.
    turns = itertools.zip_longest(*found)
    batches = [batch for turn in turns for batch in turn if batch is not None]
    assert len(batches) == len(data)
    assert sorted(numbers(batches[data.batches_an_epoch - 4 :])) == wanted()


def test_workers_read_different_chunks(numbered, monkeypatch):
    reads: list[int] = []
    original = ActivationCache.read
    monkeypatch.setattr(
        ActivationCache, "read", lambda *a: reads.append(a[2].start) or original(*a)
    )
    each = []
    for i in range(2):
        info = type("Info", (), {"id": i, "num_workers": 2})
        monkeypatch.setattr("sae.rows.dataset.get_worker_info", lambda info=info: info)
        reads.clear()
        list(dataset(numbered))
        each.append(set(reads))
    # Four chunks hold training rows; one of them may be split.
    assert each[0] | each[1] == {0, 32, 64, 96}
    assert len(each[0] & each[1]) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("n_workers", [0, 2])
@pytest.mark.parametrize("skip", [1, 2, 7, 11, 12, 25, 33, 40])
def test_what_is_skipped_leaves_the_rest_as_it_was(numbered, n_workers, skip):
    whole = loaded(dataset(numbered, batch_size=67, epochs=3), n_workers)
    data = dataset(numbered, batch_size=67, epochs=3, skip=skip)
    rest = loaded(data, n_workers)
    assert len(rest) == len(data) == max(0, len(whole) - skip)
    assert all(torch.equal(a, b) for a, b in zip(rest, whole[skip:], strict=True))


@pytest.mark.parametrize("pool_bytes", POOLS)
def test_the_order_is_that_of_training_as_long_as_batches_are_whole(numbered, pool_bytes):
    selection = select_rows(numbered, "h", held_out=False)
    theirs = shuffled_batches(selection, 64, seed=3, pool_bytes=pool_bytes)
    ours = list(dataset(numbered, seed=3, pool_bytes=pool_bytes))
    for batch in ours[:-1]:
        assert torch.equal(batch, *next(theirs))
    assert torch.equal(ours[-1], next(theirs)[0][: len(ours[-1])])


def test_the_order_depends_on_the_seed(numbered):
    first = numbers(list(dataset(numbered, seed=1)))
    torch.manual_seed(99)
    assert numbers(list(dataset(numbered, seed=1))) == first
    assert numbers(list(dataset(numbered, seed=2))) != first


def test_every_iteration_gives_the_same_batches(numbered):
    data = dataset(numbered)
    assert numbers(list(data)) == numbers(list(data))


def test_the_held_out_side_and_loud_rows_can_be_asked_for(numbered):
    held_out = dataset(numbered, held_out=True)
    assert sorted(numbers(list(held_out))) == wanted(held_out=True)
    loud = dataset(numbered, max_norm_multiple=None)
    assert sorted(numbers(list(loud))) == wanted(loud=True)
    assert loud.n_rows == len(wanted(loud=True)) > dataset(numbered).n_rows


@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_second_hook_gives_pairs_of_the_same_rows(numbered, n_workers):
    pairs = loaded(dataset(numbered, hook_name_out="out"), n_workers)
    x, y = map(list, zip(*pairs, strict=True))
    assert torch.cat(y).shape == (len(wanted()), 1)
    assert numbers(x) == (-torch.cat(y)[:, 0]).long().tolist()
    assert sorted(numbers(x)) == wanted()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_batches_are_float32_whatever_is_stored(tmp_path, dtype):
    x = torch.randn(40, 4, 3, generator=torch.Generator().manual_seed(0))
    tokens = np.ones((40, 4), dtype=np.int32)
    cache = cache_of(tmp_path / "c.zarr", tokens, np.arange(40) >= 30, {"h": x}, dtype=dtype)
    (batch,) = sae.ActivationDataset(cache, batch_size=1000, max_norm_multiple=None)
    stored = torch.cat([cache.read("h", chunk) for chunk in cache.chunks("h")])[:30]
    assert batch.dtype == torch.float32
    rows = Counter(row.tobytes() for row in stored.float().reshape(-1, 3).numpy())
    assert Counter(row.tobytes() for row in batch.numpy()) == rows


def test_it_is_pickled_without_the_opened_cache_and_with_what_it_found(numbered):
    data = dataset(open_cache(numbered.location), seed=4)
    again = pickle.loads(pickle.dumps(data))
    assert numbers(list(again)) == numbers(list(data))
    assert b"zarr.core" not in pickle.dumps(data)


@pytest.mark.slow
def test_spawned_workers_open_the_cache_for_themselves(numbered, tmp_path):
    # A script of its own: what is spawned imports the main module again.
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, sae\n"
        "from torch.utils.data import DataLoader\n"
        "if __name__ == '__main__':\n"
        "    data = sae.ActivationDataset(sys.argv[1], 'h', batch_size=64)\n"
        "    loader = DataLoader(\n"
        "        data, batch_size=None, num_workers=2, multiprocessing_context='spawn'\n"
        "    )\n"
        "    assert len(loader) == len(data)\n"
        "    print(sum(len(batch) for batch in loader))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), numbered.location],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert int(done.stdout) == len(wanted())


def test_a_loader_that_was_asked_for_its_length_does_not_warn(numbered):
    loader = DataLoader(
        dataset(numbered, epochs=3), None, num_workers=2, multiprocessing_context="fork"
    )
    assert len(loader) == len(list(loader))


def test_a_small_model_learns_from_it(tiny_run: Path):
    data = sae.ActivationDataset(tiny_run / "cache.zarr", batch_size=256, epochs=3)
    assert data.hook_name == HOOK
    model = torch.nn.Linear(32, 32)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for x in DataLoader(data, batch_size=None):
        loss = (model(x) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"batch_size": 0}, "batch_size=0; give 1 or more"),
        ({"epochs": 0}, "epochs=0; give 1 or more"),
        ({"skip": -1}, "skip=-1; give 0 or more"),
        ({"seed": -1}, "seed=-1; give 0 or more"),
        ({"max_norm_multiple": 0.0}, "has no rows at h with held_out=False"),
        ({"hook_name_out": "oot"}, "hook_name=oot is not in .*; nearest: out"),
    ],
)
def test_an_impossible_value_is_refused_at_once(numbered, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        dataset(numbered, **settings)


def test_a_cache_of_several_hooks_wants_one_named(numbered):
    with pytest.raises(UserError, match="holds 2 hooks; choose one"):
        sae.ActivationDataset(numbered, batch_size=8)


def test_damaged_activations_are_refused_when_they_are_read(numbered, tmp_path):
    import shutil

    shutil.copytree(numbered.location, tmp_path / "cache.zarr")
    file = tmp_path / "cache.zarr" / "activations" / "h" / "c.1.0.0"
    raw = bytearray(file.read_bytes())
    raw[9] ^= 1
    file.write_bytes(raw)
    data = dataset(tmp_path / "cache.zarr")
    with pytest.raises(UserError, match="activations/h is damaged in sequences 32 to 63"):
        list(data)
