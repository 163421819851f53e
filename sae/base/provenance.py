"""Where an artefact comes from: configuration, versions, seed and the parent's digest."""

import dataclasses
import hashlib
import json
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

UNKNOWN = "unknown"
"""In place of a digest that whoever made an artefact did not leave."""


def code_version() -> str:
    """Return the installed version of this package."""
    try:
        return version("sae-atlas")
    except PackageNotFoundError:
        return "0+unknown"


def plain(value: Any) -> Any:
    """`value` with dataclasses turned into dicts, ready for JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def digest(value: Any) -> str:
    """16 hexadecimal digits that change when any part of a JSON-like value changes."""
    text = json.dumps(plain(value), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest_bytes(chunks: Iterable[bytes]) -> str:
    """16 hexadecimal digits of the concatenation of `chunks`."""
    state = hashlib.sha256()
    for chunk in chunks:
        state.update(chunk)
    return state.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of what decides numbers: Python, this package, torch, transformers, zarr."""
    found = {"python": platform.python_version(), "sae-atlas": code_version()}
    for name in ("torch", "transformers", "zarr", "numpy"):
        found[name] = version(name)
    return found
