"""What a local folder is, told by what is in it before anything of it is read."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from sae.base import UserError
from sae.text.files import SUFFIXES, kind_of

Layout = Literal["files", "repository", "saved"]
"""Plain files; a data set repository, as the Hub has them; what `save_to_disk` has written."""

_SHARD = re.compile(r"(^|[-_.])\d{5}-of-\d{5}\b")
_CARD = re.compile(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", re.DOTALL)
# What beside tables is about them and no text of its own.
_ABOUT = re.compile(r"(?i)(readme|licen[cs]e|changelog|citation|notice)\b.*")


def layout_of(folder: Path, split: str | None, subset: str | None) -> Layout:
    """Return what a folder is.

    Raises:
        UserError: if it could be several things; the sentence says how to choose.
    """
    if (folder / "dataset_dict.json").is_file() or all(
        (folder / name).is_file() for name in ("state.json", "dataset_info.json")
    ):
        return "saved"
    files = files_in(folder)
    if _is_repository(folder, files):
        return "repository"
    splits = _splits(folder) if files else []
    if (split or subset) and splits:
        return "repository"
    if len(splits) > 1:
        raise UserError(
            f"data.name={folder} has files whose names suggest several splits "
            f"({', '.join(splits)}); choose one with data.split={splits[0]}, or read all of "
            f"them with data.name='{folder}/**'"
        )
    about = [file.name for file in files if _is_about(file)]
    if about and any(_is_table(file) for file in files):
        example = next(file.suffix for file in files if _is_table(file))
        raise UserError(
            f"data.name={folder} holds {about[0]} beside tables; read only the tables with "
            f"data.name='{folder}/**/*{example}', or everything with data.name='{folder}/**'"
        )
    return "files"


def files_in(folder: Path) -> list[Path]:
    """Return the files under a folder, sorted, without those that are hidden, as `.git` is."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(
        path
        for path in found
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def texts_among(files: Sequence[Path], name: str) -> list[str]:
    """Return those files that are of a kind that is read, and not empty.

    Raises:
        UserError: if there are none.
    """
    found = [str(p) for p in files if p.is_file() and kind_of(p.name) and p.stat().st_size]
    if not found:
        raise UserError(
            f"data.name={name} holds no text; give files ending in {SUFFIXES} that are "
            "not empty"
        )
    return found


def _is_about(file: Path) -> bool:
    return kind_of(file.name) == "text" and bool(_ABOUT.fullmatch(file.name))


def _is_table(file: Path) -> bool:
    return kind_of(file.name) not in (None, "text")


def _is_repository(folder: Path, files: Sequence[Path]) -> bool:
    if (folder / "dataset_infos.json").is_file() or any(_SHARD.search(f.name) for f in files):
        return True
    card = _card(folder / "README.md")
    # Any head of a page, beside tables; of its own accord if it describes a data set.
    described = not {"configs", "dataset_info"}.isdisjoint(card)
    return described or (bool(card) and any(_is_table(file) for file in files))


def _card(readme: Path) -> dict[str, object]:
    """Return the YAML at the head of a page; empty if there is none."""
    import yaml

    if not readme.is_file():
        return {}
    head = _CARD.match(readme.read_text(encoding="utf-8", errors="replace"))
    try:
        found = yaml.safe_load(head[1]) if head else None
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def _splits(folder: Path) -> list[str]:
    """Return the splits that `datasets` tells by names of files and folders, if any."""
    from datasets.data_files import get_data_patterns

    found = get_data_patterns(str(folder))
    named = any(pattern != "**" for patterns in found.values() for pattern in patterns)
    return [str(split) for split in found] if named else []
