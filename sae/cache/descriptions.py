"""What the `zarr.json` files of a finished cache say, so that damage to them shows.

Chunks have checksums, descriptions have none. The attributes of a finished cache hold digests
of the descriptions of its arrays and groups, and, as their `seal`, one of themselves. Caches
from before have neither, and are taken as they are.
"""

from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Any

from sae.base import digest, digest_bytes
from sae.cache.store import read_stored


def groups_of(arrays: Iterable[str]) -> list[str]:
    """Return the groups that arrays of these names lie in.

    Nothing here reads them, but other readers of zarr find their way by them.
    """
    inside = {str(parent) for name in arrays for parent in PurePath(name).parents}
    return sorted(inside - {"."})


def damaged_descriptions(location: str | Path, attributes: dict[str, Any]) -> list[str]:
    """Return which arrays and groups have a `zarr.json` that is not as it was written."""
    noted = attributes.get("descriptions", {})
    found = descriptions(location, noted)
    return [name for name, known in noted.items() if found[name] != known]


def descriptions(location: str | Path, names: Iterable[str]) -> dict[str, str]:
    """Return digests of the descriptions of some arrays and groups, by name."""
    files = {name: read_stored(location, f"{name}/zarr.json") for name in names}
    return {name: digest_bytes([content or b""]) for name, content in files.items()}


def seal_of(attributes: dict[str, Any]) -> str:
    """Return what stands as `seal` in the attributes of a finished cache: their digest."""
    return digest({name: value for name, value in attributes.items() if name != "seal"})
