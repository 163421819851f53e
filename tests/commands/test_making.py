"""How artefacts are made once: what killed processes left goes, whoever comes next."""

import shutil
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from support.world import HOOK, cache_of, harvest_settings

import sae
from sae.base import UserError, only_process
from sae.base import assets as asset_module
from sae.base.assets import made_once
from sae.run import make


def litter(place: Path) -> list[Path]:
    """What a killed process leaves beside what it wrote: whole folders, and files."""
    found = [place.with_name(f".{place.name}.0123abc{i}.{k}") for i, k in enumerate(KINDS)]
    for path, kind in zip(found, KINDS, strict=True):
        if kind == "old":
            path.mkdir(parents=True)
            (path / "large").write_bytes(b"-" * 1000)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"-" * 1000)
    return found


KINDS = ("partial", "old")


def made(place: Path, **others: Path) -> bool:
    return make(place, place.exists, lambda path: path.mkdir(), command="test", **others)


@pytest.mark.parametrize("there", [True, False])
def test_what_killed_processes_left_goes_also_where_there_is_nothing_to_do(tmp_path, there):
    place, work = tmp_path / "place", tmp_path / ".place.work"
    if there:
        made(place)
    left = litter(place)[: 1 if not there else 2]
    if not there:
        shutil.rmtree(tmp_path / ".place.0123abc1.old")
    (work / "parts").mkdir(parents=True)
    other = litter(tmp_path / "other")
    assert made(place, work=work) is not there
    assert not [path for path in (*left, work) if path.exists()]
    assert all(path.exists() for path in other)


def test_work_stays_until_what_it_is_for_is_made(tmp_path):
    work = tmp_path / "work"
    work.mkdir()

    def fail(_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        make(tmp_path / "place", lambda: False, fail, command="test", work=work)
    assert work.exists()


def test_nothing_is_taken_from_a_process_that_is_at_work_and_reuse_does_not_wait(tmp_path):
    place = tmp_path / "place"
    made(place)
    left = litter(place)
    with only_process(tmp_path / ".place.lock", UserError):
        assert not made(place)
        assert all(path.exists() for path in left)
    assert not made(place)
    assert not any(path.exists() for path in left)


def test_where_nothing_can_be_written_what_is_there_is_still_reused(tmp_path, monkeypatch):
    place = tmp_path / "place"
    made(place)
    left = litter(place)
    monkeypatch.setattr("os.access", lambda *_: False)
    assert not made(place)
    assert all(path.exists() for path in left)


def test_a_reused_cache_and_dictionary_are_tidied_up_too(
    tiny_run, tiny_model, tiny_text, tmp_path
):
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    state = run / "training" / "weak" / ".step_0000000001.pt.0123abcd.partial"
    half = run / "cache.zarr" / "tokens" / "c.0.0.0123.partial"
    for path in (state, half):
        path.write_bytes(b"half")
    left = [state, half, *litter(run / "dictionaries" / "weak"), *litter(run / "cache.zarr")]
    sae.harvest(**harvest_settings(run, tiny_model, tiny_text))
    sae.train(
        run=str(run),
        name="weak",
        sae=sae.StandardConfig(d_sae=64, l1_coefficient=0.5),
        training_tokens=40_000,
        train_batch_size_tokens=256,
    )
    assert not [path for path in left if path.exists()]


def test_an_export_of_a_cache_removes_what_a_killed_one_left(tmp_path, monkeypatch):
    monkeypatch.setenv("SAE_ATLAS_CACHE", str(tmp_path / "own"))
    tokens = np.ones((4, 8), np.int32)
    x = torch.ones(4, 8, 2)
    cache = cache_of(tmp_path / "c.zarr", tokens, np.arange(4) > 2, {HOOK: x})
    left = litter(tmp_path / "out")[0]
    shutil.rmtree(tmp_path / ".out.0123abc1.old")
    sae.cache_export(cache=cache.location, out=str(tmp_path / "out"))
    assert not left.exists()
    assert (tmp_path / "out" / "state.json").exists()


def test_what_is_fetched_once_is_fetched_whole_and_killed_fetches_go(tmp_path, monkeypatch):
    monkeypatch.setattr(asset_module, "cache_folder", lambda: tmp_path)
    built = []

    def build(folder):
        built.append(folder)
        folder.mkdir()

    for _ in range(2):
        left = litter(tmp_path / "packages" / "one")[0]
        shutil.rmtree(tmp_path / "packages" / ".one.0123abc1.old")
        assert made_once("packages/one", build) == tmp_path / "packages" / "one"
        assert not left.exists()
    assert len(built) == 1


def test_what_is_made_of_a_package_of_the_same_name_does_not_wait_for_itself(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(asset_module, "cache_folder", lambda: tmp_path)

    def build(folder):
        folder.mkdir()
        (folder / "made-of").write_text(str(made_once("packages/one", lambda f: f.mkdir())))

    making = Thread(target=made_once, args=("models/one", build), daemon=True)
    making.start()
    making.join(20)
    assert (tmp_path / "models/one/made-of").read_text() == str(tmp_path / "packages/one")
