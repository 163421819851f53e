"""Where a cache lies: a local folder, or an object store (`s3://`, `gs://`, `az://`).

Obstore reads the usual variables of the environment. A put is atomic, as a rename is here.
"""

import contextlib
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import zarr

from sae.base import (
    UserError,
    explained_failures,
    only_process,
    remove_unfinished,
    unfinished,
)
from sae.base.names import check_new

_SCHEMES = ("s3://", "s3a://", "gs://", "az://", "abfs://", "abfss://")
_LOCK = ".writer"
_BEAT_SECONDS = 20.0
_STALE_SECONDS = 120.0
_PATIENCE = timedelta(seconds=60)
"""How long a request to an object store is made again before it counts as refused."""


def is_url(location: str | Path) -> bool:
    """Whether `location` is in an object store."""
    return "://" in str(location)


def local_folder(location: str | Path) -> Path | None:
    """Return the folder of a local cache; None for one in an object store."""
    return None if is_url(location) else Path(location)


def _object_store(location: str) -> Any:
    if not location.startswith(_SCHEMES):
        raise UserError(
            f"{location}: this kind of address is unknown; give a folder, or one that begins "
            f"with {', '.join(_SCHEMES)}"
        )
    try:
        from obstore.store import from_url
    except ImportError as error:
        raise UserError(
            f"{location}: object stores need obstore; install it with: pip install obstore"
        ) from error
    # Only an address that the environment names on purpose (a store on one's own machine) is
    # ever plain http.
    plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
    return from_url(
        location,
        client_options={"allow_http": plain},
        retry_config={"retry_timeout": _PATIENCE},
    )


@contextlib.contextmanager
def explained_store_failures(location: str | Path) -> Iterator[None]:
    """Turn the refusals of a disk or an object store into a sentence about `location`."""
    if not is_url(location):
        with explained_failures(Path(location)):
            yield
        return
    try:
        yield
    except Exception as error:
        if type(error).__module__.startswith("obstore"):
            said = str(error).strip()
            # Stores answer in XML, with a short name for what is wrong, such as NoSuchBucket.
            name = re.search(r"<Code>(\w+)</Code>", said)
            why = name[1] if name else said.split("\n")[0]
            raise UserError(
                f"{location}: the object store refused ({why}); check the access and the "
                "network and run the same command again, which keeps what is finished"
            ) from error
        raise


def open_group(location: str | Path, mode: str) -> zarr.Group:
    """Open the zarr group at `location`, in a mode of zarr's.

    Raises:
        FileNotFoundError or ValueError: if there is none, or its description is damaged.
    """
    with explained_store_failures(location):
        store: Any = str(location)
        if is_url(location):
            store = zarr.storage.ObjectStore(_object_store(store), read_only=mode == "r")
        try:
            return zarr.open_group(store, mode=mode)  # type: ignore[arg-type]
        except (AttributeError, KeyError, TypeError) as error:
            # What zarr raises about a description of another shape.
            raise ValueError(str(error)) from error


def emptied_group(location: str, attributes: dict[str, Any]) -> zarr.Group:
    """Return a group in an object store with nothing in it but its attributes and its lock.

    It has its attributes first, so that a death on the way leaves no half of something else.
    """
    import obstore

    store = _object_store(location)
    inside = zarr.storage.ObjectStore(store)
    # Copies: zarr keeps the one that it is given, and changes it.
    group = zarr.open_group(inside, mode="a", attributes=dict(attributes))
    group.attrs.put(dict(attributes))
    for part in store.list():
        paths = [o["path"] for o in part if o["path"] not in ("zarr.json", _LOCK)]
        if paths:
            obstore.delete(store, paths)
    return group


def holds_something(location: str | Path) -> bool:
    """Whether anything is at `location`."""
    folder = local_folder(location)
    if folder is not None:
        return folder.exists()
    with explained_store_failures(location):
        found = _object_store(str(location)).list(chunk_size=2)
        # A writer's lock alone is nothing.
        return any(o["path"] != _LOCK for o in next(iter(found), []))


@contextlib.contextmanager
def only_writer(location: str | Path) -> Iterator[None]:
    """Be the one process that writes to a cache, until the context ends or the process dies.

    Locally the system's lock on a file beside the cache, which no death leaves behind; halves
    of files and folders that a killed process left are removed. In an object store an object
    that is renewed every 20 seconds, and counts as left behind after two minutes.

    Raises:
        UserError: if another process writes to it.
    """
    folder = local_folder(location)
    if folder is None:
        with _object_lock(str(location)):
            yield
        return
    check_new(str(folder))
    lock = folder.with_name(f".{folder.name}.lock")
    with only_process(lock, lambda owner: _refusal(folder, owner)):
        for half in folder.rglob("*.partial"):
            half.unlink()
        # A cache that was being laid out.
        remove_unfinished(folder.parent, folder.name)
        yield


def is_littered(location: str | Path) -> bool:
    """Return whether a killed process left halves in a local cache or beside it."""
    folder = local_folder(location)
    if folder is None:
        return False
    inside = any(True for _ in folder.rglob("*.partial"))
    return inside or bool(unfinished(folder.parent, folder.name))


def _refusal(location: str | Path, owner: str) -> UserError:
    who = f" ({owner})" if owner else ""
    # The system frees a file's lock when its owner dies; an object stays a while.
    if_dead = "" if local_folder(location) else " (if it was killed, for two minutes)"
    return UserError(
        f"{location}: another process{who} is writing to this cache; wait for it{if_dead}, or "
        "choose another run=..."
    )


@contextlib.contextmanager
def _object_lock(location: str) -> Iterator[None]:
    import obstore
    from obstore.exceptions import AlreadyExistsError, PreconditionError

    store = _object_store(location)
    mine = f"process {os.getpid()} on {socket.gethostname()} ({uuid.uuid4().hex[:8]})"
    with explained_store_failures(location):
        try:
            obstore.put(store, _LOCK, mine.encode(), mode="create")
        except AlreadyExistsError as error:
            found = obstore.get(store, _LOCK)
            refusal = _refusal(location, bytes(found.bytes()).decode())
            if time.time() - found.meta["last_modified"].timestamp() < _STALE_SECONDS:
                raise refusal from error
            try:
                # Only the one that was looked at: of two that come at once, one takes it.
                seen = {name: found.meta[name] for name in ("e_tag", "version")}
                mode: Any = {name: value for name, value in seen.items() if value is not None}
                obstore.put(store, _LOCK, mine.encode(), mode=mode)
            except PreconditionError as taken:
                raise refusal from taken
    done = threading.Event()

    def beat() -> None:
        while not done.wait(_BEAT_SECONDS):
            # A missed beat is made up for by the next one.
            with contextlib.suppress(Exception):
                obstore.put(store, _LOCK, mine.encode())

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        with contextlib.suppress(FileNotFoundError):
            obstore.delete(store, _LOCK)


def read_stored(location: str | Path, key: str) -> bytes | None:
    """Return what a file of a cache holds, or an object; None if it is not there."""
    folder = local_folder(location)
    with explained_store_failures(location):
        try:
            if folder is not None:
                return (folder / key).read_bytes()
            return bytes(_object_store(str(location)).get(key).bytes())
        except FileNotFoundError:
            return None


def remove_stored(location: str | Path, key: str) -> None:
    """Remove a file of a cache, or an object, if it is there."""
    folder = local_folder(location)
    if folder is not None:
        (folder / key).unlink(missing_ok=True)
    elif key.rpartition("/")[2] in stored_keys(location, key.rpartition("/")[0]):
        import obstore

        with explained_store_failures(location):
            obstore.delete(_object_store(str(location)), key)


def stored_keys(location: str | Path, folder: str) -> set[str]:
    """Names of the objects right inside a folder of a cache, listed once."""
    root = local_folder(location)
    if root is not None:
        with contextlib.suppress(FileNotFoundError):
            return {entry.name for entry in os.scandir(root / folder)}
        return set()
    with explained_store_failures(location):
        found = _object_store(str(location)).list(folder)
        return {o["path"].removeprefix(f"{folder}/") for part in found for o in part}


def stored_bytes(location: str | Path) -> int:
    """Size of everything in a cache."""
    root = local_folder(location)
    if root is not None:
        return sum(p.stat().st_size for p in root.rglob("*") if p.is_file())
    with explained_store_failures(location):
        return sum(o["size"] for part in _object_store(str(location)).list() for o in part)
