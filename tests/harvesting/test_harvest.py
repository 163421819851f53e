"""`sae harvest` killed, continued, reused and refused."""

import json
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from support.dying import OTHER, harvest_until
from support.world import HOOK, harvest_settings, save_tiny_model, sentences

import sae
from sae.base.errors import UserError
from sae.cache.layout import open_cache
from sae.cache.writer import CacheWriter
from sae.harvesting import harvest as stage
from sae.harvesting.config import HarvestConfig

CHUNKS, CONTEXT = 50, 16
N_TOKENS = CHUNKS * 32 * CONTEXT


def settings(run: Path, model: Path, text: Path, **others: Any) -> dict[str, Any]:
    """50 chunks at two hooks; one row a forward makes it last some seconds."""
    asked = {"hook_names": [HOOK, OTHER], "n_tokens": N_TOKENS, "context_size": CONTEXT}
    return harvest_settings(run, model, text) | asked | {"batch_size": 1} | others


def small(run: Path, model: Path, text: Path, **others: Any) -> dict[str, Any]:
    return settings(run, model, text, n_tokens=2048, batch_size=16, **others)


@pytest.fixture(scope="module")
def reference(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, long_text: Path
) -> Path:
    """The cache of a harvest that nothing interrupted."""
    run = tmp_path_factory.mktemp("reference")
    sae.harvest(**settings(run, tiny_model, long_text))
    return run / "cache.zarr"


@pytest.fixture(scope="module")
def long_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    lines = [json.dumps({"text": text}) for text in sentences(700, seed=9, words=60)]
    (folder / "long.jsonl").write_text("\n".join(lines))
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def words(run: Path, model: Path, text: Path) -> list[str]:
    return [
        "harvest",
        f"run={run}",
        f"model.name={model}",
        f"data.name={text}",
        f"hook_names=[{HOOK},{OTHER}]",
        f"n_tokens={N_TOKENS}",
        f"context_size={CONTEXT}",
        "batch_size=1",
    ]


def chunks_in(run: Path) -> int:
    """How many chunks the cache has at the first hook; halves of files do not count."""
    return len(list((run / "cache.zarr" / "activations" / HOOK).glob("c.*.0.0")))


@pytest.mark.slow
def test_a_harvest_killed_at_any_instant_goes_on_to_the_same_bytes(
    tmp_path, tiny_model, long_text, reference, start
):
    asked = words(tmp_path, tiny_model, long_text)
    seed = time.time_ns()
    draw = random.Random(seed)
    seen = [0]
    for first in (True, False, False, False):
        goal = seen[-1] + draw.randint(1, 10)
        child = start(*asked)
        # The first is killed while it lays out the cache, the others while they fill it.
        while child.process.is_alive():
            if any(tmp_path.glob("*cache.zarr*")) if first else chunks_in(tmp_path) >= goal:
                break
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.03))
        done = child.kill()
        assert done.returncode == -signal.SIGKILL, f"it ended before it was killed: {done}"
        seen.append(chunks_in(tmp_path))
    assert seen == sorted(seen), f"seed {seed}: chunks were lost: {seen}"
    assert 3 <= seen[-1] < CHUNKS, f"seed {seed}: the kills missed the harvest: {seen}"
    done = start(*asked).ended()
    assert done.returncode == 0, done
    assert "tokens are finished already; the harvest continues" in done.stderr
    assert tree(tmp_path / "cache.zarr") == tree(reference), f"seed {seed}: {seen}"


class Killed(BaseException):
    """Ends a harvest as a kill does: nothing that handles errors sees it."""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_a_harvest_that_dies_inside_any_write_goes_on_to_the_same_bytes(
    tmp_path, tiny_model, tiny_text, processes, seed
):
    sae.harvest(**small(tmp_path / "whole", tiny_model, tiny_text))
    given = small(tmp_path / "run", tiny_model, tiny_text)
    draw = random.Random(seed)
    ends = []
    # About 50 writes lay this cache out, fill and finish it.
    for n_writes in (draw.randint(1, 50), draw.randint(1, 30), draw.randint(1, 30)):
        child = processes.Process(target=harvest_until, args=(n_writes, given))
        child.start()
        child.join(60)
        ends.append(child.exitcode)
        child.close()
    assert ends[0] == 9, ends
    assert set(ends) <= {0, 9}
    sae.harvest(**given)
    assert tree(tmp_path / "run" / "cache.zarr") == tree(tmp_path / "whole" / "cache.zarr")


@pytest.mark.slow
def test_a_finished_harvest_is_reused_quickly_and_not_touched(
    tmp_path, tiny_model, long_text, reference, monkeypatch
):
    shutil.copytree(reference, tmp_path / "cache.zarr")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    monkeypatch.setattr(stage, "load_model", lambda config: pytest.fail("a model was loaded"))
    began = time.perf_counter()
    cache = sae.harvest(**settings(tmp_path, tiny_model, long_text))
    assert time.perf_counter() - began < 2
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
    assert cache.digest == open_cache(reference).digest


@pytest.mark.slow
def test_two_hooks_in_one_cache_equal_two_caches_of_one_hook(tmp_path, tiny_model, tiny_text):
    both = sae.harvest(**small(tmp_path / "both", tiny_model, tiny_text))
    assert both.hook_names == [HOOK, OTHER]
    assert (both.d_in(HOOK), both.d_in(OTHER)) == (32, 64)
    for i, hook in enumerate(both.hook_names):
        run = tmp_path / str(i)
        sae.harvest(**small(run, tiny_model, tiny_text, hook_names=[hook]))
        for part in (f"activations/{hook}", f"norms/{hook}", f"statistics/{hook}", "tokens"):
            expected = tree(run / "cache.zarr" / part)
            assert expected
            assert tree(Path(both.location) / part) == expected


def test_the_same_harvest_elsewhere_gives_the_same_bytes(tmp_path, tiny_model, tiny_text):
    for name in ("one", "two"):
        sae.harvest(**small(tmp_path / name, tiny_model, tiny_text))
    assert tree(tmp_path / "one" / "cache.zarr") == tree(tmp_path / "two" / "cache.zarr")


def test_an_unfinished_cache_says_so_and_keeps_what_it_has(
    tmp_path, tiny_model, tiny_text, monkeypatch
):
    given = small(tmp_path, tiny_model, tiny_text)
    written: list[slice] = []
    original = CacheWriter.write_stored

    def write(self: CacheWriter, chunk: slice, activations: Any) -> None:
        if len(written) == 2:
            raise Killed
        original(self, chunk, activations)
        written.append(chunk)

    with monkeypatch.context() as patched:
        patched.setattr(CacheWriter, "write_stored", write)
        with pytest.raises(Killed):
            sae.harvest(**given)
    with pytest.raises(UserError, match="not finished; run the same harvest again"):
        open_cache(tmp_path / "cache.zarr")
    array = zarr.open_group(str(tmp_path / "cache.zarr"), mode="r")[f"activations/{HOOK}"]
    assert np.isnan(array[...]).all(axis=(1, 2)).tolist() == [False] * 64 + [True] * 64
    with pytest.raises(UserError, match="another model, text or setting"):
        sae.harvest(**given | {"dtype": "float32"})
    later: list[slice] = []
    monkeypatch.setattr(
        CacheWriter, "write_stored", lambda *a: later.append(a[1]) or original(*a)
    )
    sae.harvest(**given)
    assert [(c.start, c.stop) for c in later] == [(64, 96), (96, 128)]


def test_a_harvest_is_not_continued_with_other_weights(
    tmp_path, tiny_text, tokenizer_folder, monkeypatch
):
    model = save_tiny_model("gpt2", tmp_path / "model", tokenizer_folder)
    given = small(tmp_path / "run", model, tiny_text)
    with monkeypatch.context() as patched:
        patched.setattr(CacheWriter, "finish", raise_killed)
        with pytest.raises(Killed):
            sae.harvest(**given)
    before = tree(tmp_path / "run" / "cache.zarr")
    save_tiny_model("gpt2", tmp_path / "model", tokenizer_folder, seed=1)
    with pytest.raises(UserError, match="begun with other weights"):
        sae.harvest(**given)
    assert tree(tmp_path / "run" / "cache.zarr") == before


def raise_killed(*_: Any) -> None:
    raise Killed


@pytest.mark.parametrize(
    "other", [{"n_tokens": 4096}, {"context_size": 32}, {"hook_names": [HOOK]}]
)
def test_a_cache_of_something_else_is_left_as_it_is(tmp_path, tiny_model, tiny_text, other):
    given = small(tmp_path, tiny_model, tiny_text)
    sae.harvest(**given)
    before = tree(tmp_path)
    with pytest.raises(UserError, match=r"another model, text or setting; choose another run"):
        sae.harvest(**given | other)
    assert tree(tmp_path) == before


def test_where_and_how_fast_it_runs_is_no_part_of_the_content(tmp_path, tiny_model, tiny_text):
    given = small(tmp_path, tiny_model, tiny_text)
    sae.harvest(**given)
    shutil.move(tmp_path / "cache.zarr", tmp_path / "elsewhere" / "cache.zarr")
    before = tree(tmp_path / "elsewhere")
    model = sae.ModelConfig(name=str(tiny_model), device="cpu")
    sae.harvest(**given | {"run": str(tmp_path / "elsewhere"), "batch_size": 5, "model": model})
    assert tree(tmp_path / "elsewhere") == before


def test_something_else_at_the_place_of_the_cache_is_refused(tmp_path, tiny_model, tiny_text):
    (tmp_path / "cache.zarr").mkdir()
    (tmp_path / "cache.zarr" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="holds something that is not an activation cache"):
        sae.harvest(**small(tmp_path, tiny_model, tiny_text))
    assert (tmp_path / "cache.zarr" / "mine.txt").read_text() == "keep"


def test_a_wrong_hook_or_length_is_refused_before_weights_are_loaded(
    tmp_path, tiny_model, tiny_text, monkeypatch
):
    monkeypatch.setattr(stage, "load_model", lambda config: pytest.fail("a model was loaded"))
    with pytest.raises(UserError, match="layer 9 is out of range"):
        sae.harvest(
            **small(tmp_path, tiny_model, tiny_text, hook_names=["blocks.9.hook_resid_post"])
        )
    with pytest.raises(UserError, match="longer than the model's 128 positions"):
        sae.harvest(**small(tmp_path, tiny_model, tiny_text, context_size=129))
    assert not (tmp_path / "cache.zarr").exists()


def test_impossible_settings_are_refused_in_one_sentence():
    for wrong, sentence in (
        ({"hook_names": []}, "hook_names is empty"),
        ({"hook_names": [HOOK, HOOK]}, f"holds {HOOK} twice"),
        ({"context_size": 1}, "context_size=1; give 2 or more"),
        ({"n_tokens": 100}, "n_tokens=100 is less than two sequences"),
        ({"dtype": "int4"}, "dtype=int4 is unknown; choose one of float16"),
        ({"compression": "gzip"}, "compression=gzip is unknown; choose one of none, zstd"),
        ({"text_workers": -1}, "text_workers=-1 is negative"),
        ({"batch_size": 0}, "batch_size=0; give 1 or more"),
    ):
        with pytest.raises(UserError, match=sentence) as caught:
            HarvestConfig(**wrong)
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_what_is_written_is_kept(
    tmp_path, tiny_model, tiny_text, monkeypatch
):
    import errno

    given = small(tmp_path, tiny_model, tiny_text)
    left = 5
    original = stage.to_stored

    def to_stored(x: torch.Tensor, dtype: str) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(x, dtype)

    with monkeypatch.context() as patched:
        patched.setattr(stage, "to_stored", to_stored)
        with pytest.raises(UserError, match=r"disk is full.*run the same command again"):
            sae.harvest(**given)
    sae.harvest(**given)
    sae.harvest(**given | {"run": str(tmp_path / "whole")})
    assert tree(tmp_path / "cache.zarr") == tree(tmp_path / "whole" / "cache.zarr")
