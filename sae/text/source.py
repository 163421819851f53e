"""A stream of documents from an embedded text, local files, or a Hub data set."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sae.base.errors import UserError, nearest, require
from sae.text.embedded import EMBEDDED_TEXTS

# What `datasets` calls the readers of local files, by suffix (before any .gz or .zst).
_READERS = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".csv": "csv",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which text to harvest from."""

    name: str = "miscellany"
    """`miscellany` or `factbook` (embedded), a local file or folder, or a Hub data set id."""
    column: str = "text"
    """Column that holds the text, in JSONL, CSV, parquet and Hub data sets."""
    subset: str | None = None
    """Configuration name of a Hub data set."""
    split: str = "train"
    """Split of a Hub data set."""
    held_out_fraction: float = 0.1
    """Share of documents kept out of training, chosen by the digest of their text."""

    def __post_init__(self) -> None:
        require(
            self.name != "", "data.name is empty; give an embedded text, a path or a Hub id"
        )
        require(
            0 < self.held_out_fraction < 1,
            f"data.held_out_fraction={self.held_out_fraction} is impossible; "
            "give a share between 0 and 1, such as 0.1",
        )


def documents(config: DataConfig) -> Iterator[str]:
    """Documents in a fixed order, read as they are asked for.

    Raises:
        UserError: if there is no such text, or it has no readable document.
    """
    if config.name in EMBEDDED_TEXTS:
        return EMBEDDED_TEXTS[config.name]()
    path = Path(config.name).expanduser()
    if path.exists():
        return _local_documents(path, config)
    return _hub_documents(config)


def check_source(config: DataConfig) -> None:
    """Read the first document, so that a bad source is refused before a model is loaded."""
    if config.name in EMBEDDED_TEXTS:
        return
    path = Path(config.name).expanduser()
    require(
        path.exists() or not config.name.startswith((".", "/", "~")),
        f"data.name={config.name} is not there; give a file or a folder that exists",
    )
    next(documents(config), None)


def _readable_files(path: Path) -> list[Path]:
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    files = [p for p in found if _reader(p) is not None and p.stat().st_size > 0]
    if not files:
        raise UserError(
            f"data.name={path} holds no text; give files ending in "
            f"{', '.join(_READERS)} (.gz and .zst too) that are not empty"
        )
    return files


def _reader(path: Path) -> str | None:
    suffixes = [s for s in path.suffixes if s not in (".gz", ".zst")]
    return _READERS.get(suffixes[-1]) if suffixes else None


def _local_documents(path: Path, config: DataConfig) -> Iterator[str]:
    from datasets import load_dataset

    for file in _readable_files(path):
        reader = _reader(file)
        assert reader is not None
        # A text file is one document; the other formats hold one a row.
        settings = {"sample_by": "document"} if reader == "text" else {}
        column = "text" if reader == "text" else config.column
        try:
            rows = load_dataset(
                reader, data_files=str(file), split="train", streaming=True, **settings
            )
            yield from _column(rows, column, str(file))
        except UserError:
            raise
        except Exception as error:
            # A broken file raises what its reader or its compression likes: a dozen types.
            first = (str(error).strip() or type(error).__name__).split("\n")[0]
            raise UserError(f"{file} is not readable as {reader} in UTF-8: {first}") from error


def _hub_documents(config: DataConfig) -> Iterator[str]:
    from datasets import load_dataset

    try:
        rows = load_dataset(config.name, config.subset, split=config.split, streaming=True)
    except Exception as error:
        first = str(error).strip().split("\n")[0]
        raise UserError(
            f"data.name={config.name} is not embedded ({', '.join(EMBEDDED_TEXTS)}), not a "
            "local file or folder, and could not be had from the Hub"
            f"{nearest(config.name, EMBEDDED_TEXTS)}. It said: {first}"
        ) from error
    yield from _column(rows, config.column, config.name)


def _column(rows: object, column: str, source: str) -> Iterator[str]:
    for row in rows:  # type: ignore[attr-defined]
        if column not in row:
            raise UserError(
                f"data.column={column} is not in {source}; it has {', '.join(map(str, row))}"
            )
        if isinstance(row[column], str) and row[column]:
            yield row[column]
