"""Files of caches: looked at, and damaged."""

from pathlib import Path
from typing import Any

import zarr


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def chunk_files(cache: Path, array: str) -> list[Path]:
    return sorted((cache / array).glob("c.*"), key=lambda p: int(p.name.split(".")[1]))


def flip(file: Path, at: int = 5) -> None:
    raw = bytearray(file.read_bytes())
    raw[at % len(raw)] ^= 0x10
    file.write_bytes(raw)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def unseal(folder: Path) -> Path:
    """Forgets what files held when they were written, as in a folder that others made."""
    (folder / "SHA256SUMS").unlink(missing_ok=True)
    return folder


def reworded(cache: Path, **attributes: Any) -> None:
    """Has a cache say something else of itself, and forgets the digest of what it said."""
    group = zarr.open_group(str(cache), mode="r+")
    before = dict(group.attrs)
    before.pop("seal", None)
    group.attrs.put({**before, **attributes})
