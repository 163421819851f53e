"""A cache in an object store: a real server that speaks S3, on this machine."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest
import torch
import zarr
from support.files import tree
from support.world import HOOK, harvest_settings

import sae
from sae.base.errors import UserError
from sae.cache import store
from sae.cache.layout import open_cache
from sae.run import RUN_CACHE

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a server with a bucket called `bucket`, also in the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    child = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    given = {"ACCESS_KEY_ID": "one", "SECRET_ACCESS_KEY": "two", "REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patched:
        for name, value in (given | {"ENDPOINT_URL": address}).items():
            patched.setenv(f"AWS_{name}", value)
        for _ in range(300):
            assert child.poll() is None, "the server ended"
            try:
                make = urllib.request.Request(f"{address}/bucket", method="PUT")
                urllib.request.urlopen(make, timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        yield address
    child.terminate()
    child.wait(20)


def objects(location: str) -> dict[str, bytes]:
    """Everything at an address, as it is stored."""
    inside = store._object_store(location)
    paths = [o["path"] for part in inside.list() for o in part]
    return {path: bytes(obstore.get(inside, path).bytes()) for path in paths}


def put(location: str, path: str, content: bytes) -> None:
    obstore.put(store._object_store(location), path, content)


def settings(run: Path, model: Path, text: Path, **others: Any) -> dict[str, Any]:
    """Rows behind a text that ends early, and a last chunk that is not full."""
    given = harvest_settings(run, model, text) | {"n_tokens": 30_000, "context_size": 64}
    return given | {"text_workers": 0} | others


@pytest.fixture(scope="module")
def local(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_text: Path
) -> dict[str, Any]:
    """How a cache on the local disk was made; not to be changed."""
    given = settings(tmp_path_factory.mktemp("local"), tiny_model, tiny_text)
    assert sae.harvest(**given).n_sequences < 30_000 // 64
    return given


@pytest.fixture
def address(server: str, tmp_path: Path) -> str:
    return f"s3://bucket/{tmp_path.name}/cache.zarr"


def bytes_of(given: dict[str, Any]) -> dict[str, bytes]:
    return tree(Path(given["run"]) / "cache.zarr")


@pytest.mark.slow
def test_a_harvest_into_an_object_store_gives_the_bytes_of_the_local_one(
    tmp_path, address, local
):
    cache = sae.harvest(**local | {"run": str(tmp_path), "cache": address})
    assert objects(address) == bytes_of(local)
    assert not (tmp_path / "cache.zarr").exists()
    there = open_cache(Path(local["run"]) / "cache.zarr")
    assert cache.digest == there.digest
    for chunk in cache.chunks(HOOK):
        assert torch.equal(cache.read(HOOK, chunk), there.read(HOOK, chunk))
    # Any reader of zarr can open it.
    opened = zarr.open_group(zarr.storage.ObjectStore(store._object_store(address)), mode="r")
    np.testing.assert_array_equal(opened["tokens"][...], there.tokens)
    expected = zarr.open_group(there.location, mode="r")[f"activations/{HOOK}"][...]
    np.testing.assert_array_equal(opened[f"activations/{HOOK}"][...], expected)


@pytest.mark.slow
def test_what_is_in_an_object_store_is_reused_and_not_touched(
    tmp_path, address, local, monkeypatch
):
    given = local | {"run": str(tmp_path), "cache": address}
    sae.harvest(**given)
    monkeypatch.setattr(
        "sae.harvesting.harvest.load_model", lambda _: pytest.fail("a model was loaded")
    )
    monkeypatch.setattr(obstore, "put", lambda *_, **__: pytest.fail("something was written"))
    sae.harvest(**given)
    with pytest.raises(UserError, match="another model, text or setting"):
        sae.harvest(**given | {"dtype": "float32"})


@pytest.mark.slow
def test_dictionaries_are_trained_on_and_looked_into_from_an_object_store(
    tmp_path, address, local, tiny_run
):
    sae.harvest(**local | {"run": str(tmp_path), "cache": address})
    shutil.copytree(local["run"], tmp_path / "local")
    trained = {}
    for run, cache in ((tmp_path / "remote", address), (tmp_path / "local", RUN_CACHE)):
        trained[cache] = sae.train(
            run=str(run),
            cache=cache,
            name="small",
            sae=sae.StandardConfig(d_sae=64, l1_coefficient=0.5),
            training_tokens=5_000,
            train_batch_size_tokens=256,
        )
        (figures,) = sae.eval(run=str(run), cache=cache)
        assert figures.values["l0"] > 0
        atlas = sae.analyze(run=str(run), cache=cache)
        assert atlas.record.n_rows > 10_000
    assert torch.equal(trained[address].W_enc, trained[RUN_CACHE].W_enc)


@pytest.mark.slow
def test_a_harvest_killed_on_its_way_into_an_object_store_goes_on_to_the_same_objects(
    tmp_path, address, local, monkeypatch, processes
):
    given = local | {"run": str(tmp_path), "cache": address}
    environment = {name: v for name, v in os.environ.items() if name.startswith("AWS_")}
    for n in (1, 4):
        child = processes.Process(target=harvest_in_child, args=(given, environment))
        child.start()
        while child.is_alive() and chunks_at(address) < n:
            time.sleep(0.01)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL
        # Its lock stays, and is taken over when it has not been renewed for so long.
        with pytest.raises(UserError, match=r"another process \(process \d+ on .*two minutes"):
            sae.harvest(**given)
        with monkeypatch.context() as patched:
            patched.setattr(store, "_STALE_SECONDS", -1)
            with store.only_writer(address):
                pass
    with pytest.raises(UserError, match="not finished; run the same harvest again"):
        open_cache(address)
    sae.harvest(**given)
    assert objects(address) == bytes_of(local)


def harvest_in_child(given: dict[str, Any], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    # Slow enough to be killed in between.
    sae.harvest(**given | {"batch_size": 1})


def chunks_at(address: str) -> int:
    return len(store.stored_keys(address, f"activations/{HOOK}") - {"zarr.json"})


def is_refused(address: str, sentence: str) -> bool:
    try:
        with store.only_writer(address):
            return False
    except UserError as error:
        return sentence in str(error)


def test_there_is_one_writer_and_of_two_that_take_over_one_succeeds(address, monkeypatch):
    with store.only_writer(address):
        assert is_refused(address, f": another process (process {os.getpid()} on ")
    assert objects(address) == {}
    put(address, store._LOCK, b"process 1 on elsewhere")
    assert is_refused(address, "(process 1 on elsewhere) is writing to this cache; wait for it")
    monkeypatch.setattr(store, "_STALE_SECONDS", -1)
    original = obstore.get

    def slow_get(*words: Any) -> Any:
        found = original(*words)
        # Somebody else takes it over after this process has looked.
        put(address, store._LOCK, b"process 2 on elsewhere")
        return found

    with monkeypatch.context() as patched:
        patched.setattr(obstore, "get", slow_get)
        assert is_refused(address, "is writing to this cache")
    assert objects(address) == {store._LOCK: b"process 2 on elsewhere"}
    with store.only_writer(address):
        assert objects(address)[store._LOCK].startswith(f"process {os.getpid()} on".encode())
    assert objects(address) == {}


def test_a_lock_is_renewed_while_it_is_held(address, monkeypatch):
    monkeypatch.setattr(store, "_BEAT_SECONDS", 0.05)
    with store.only_writer(address):
        put(address, store._LOCK, b"old")
        end = time.monotonic() + 10
        while objects(address)[store._LOCK] == b"old" and time.monotonic() < end:
            time.sleep(0.05)
        assert objects(address)[store._LOCK] != b"old"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "others"),
    [
        ("zarr.Group.create_array", {}),
        # A cache of something else was laid out, and nothing computed.
        (
            "sae.harvesting.harvest._fill",
            {"n_tokens": 4096, "hook_names": ["blocks.0.hook_mlp_out"]},
        ),
    ],
)
def test_a_cache_in_which_nothing_is_yet_is_laid_out_anew(
    tmp_path, address, local, monkeypatch, place, others
):
    given = local | {"run": str(tmp_path), "cache": address}

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(place, die)
        with pytest.raises(KeyboardInterrupt):
            sae.harvest(**given | others)
    assert objects(address)
    sae.harvest(**given)
    assert objects(address) == bytes_of(local)


def test_something_else_in_an_object_store_is_left_as_it_is(tmp_path, address, local):
    given = local | {"run": str(tmp_path), "cache": address}
    put(address, "mine.txt", b"keep")
    with pytest.raises(UserError, match="holds something that is not an activation cache"):
        sae.harvest(**given)
    inside = zarr.storage.ObjectStore(store._object_store(address))
    zarr.open_group(inside, mode="a").create_array("tokens", data=np.arange(3))
    before = objects(address)
    with pytest.raises(UserError, match="a zarr group, but not an activation cache"):
        sae.harvest(**given)
    assert objects(address) == before


@pytest.mark.slow
def test_a_flipped_byte_in_an_object_is_found_on_read_and_repaired(tmp_path, address, local):
    given = local | {"run": str(tmp_path), "cache": address}
    cache = sae.harvest(**given)
    expected, path = objects(address), f"activations/{HOOK}/c.2.0.0"
    raw = bytearray(expected[path])
    raw[999] ^= 1
    put(address, path, bytes(raw))
    chunk = cache.chunks(HOOK)[2]
    with pytest.raises(UserError, match="is damaged in sequences 64 to 95"):
        cache.read(HOOK, chunk)
    obstore.delete(store._object_store(address), path)
    with pytest.raises(UserError, match="is missing in sequences 64 to 95"):
        cache.read(HOOK, chunk)
    put(address, path, bytes(raw))
    put(address, "tokens/c.0.0", expected["tokens/c.0.0"][:-1])
    put(address, "norms/zarr.json", b"{}")
    sae.harvest(**given)
    assert objects(address) == expected


@pytest.mark.parametrize(
    ("location", "sentence"),
    [
        ("s3://nobody-has-this/cache.zarr", "the object store refused (NoSuchBucket)"),
        ("ftp://bucket/cache.zarr", "this kind of address is unknown; give a folder, or one"),
        ("s3://bucket/nothing.zarr", "is not an activation cache; make one with: sae harvest"),
    ],
)
def test_a_wrong_address_is_one_sentence(tmp_path, server, local, location, sentence):
    given = local | {"run": str(tmp_path), "cache": location}
    # There is nothing wrong with an empty place until somebody reads it.
    call = (
        partial(open_cache, location)
        if "nothing" in location
        else partial(sae.harvest, **given)
    )
    with pytest.raises(UserError) as caught:
        call()
    assert str(caught.value).startswith(location)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_no_server_is_one_sentence_and_soon(tmp_path, server, local, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(
        UserError, match=r"the object store refused \(.*check the access"
    ) as caught:
        sae.harvest(**local | {"run": str(tmp_path), "cache": "s3://bucket/no.zarr"})
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < store._PATIENCE.total_seconds() + 15
