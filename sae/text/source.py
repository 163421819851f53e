"""A stream of documents from an embedded text, files here or on the web, or a data set."""

import glob
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from sae.base import UserError, plain, require
from sae.base.names import check_names, check_utf8, from_anywhere
from sae.text.embedded import EMBEDDED_TEXTS
from sae.text.files import SUFFIXES, is_url, kind_of, rows_of, texts_of
from sae.text.folders import files_in, layout_of, texts_among
from sae.text.record import TextRecord
from sae.text.rows import Chat, Read, Row, Tokens, Unreadable, document_of
from sae.text.tables import rows_of_repository, rows_on_disk, what_it_said

_COLUMN, _SPLIT = "text", "train"
_BEGINNINGS = (".", "/", "~")
"""What begins with one of these is a path, also if nothing is there."""
_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}
# None of so many is readable: it is the setting that is wrong, and not the rows.
_MOST_UNREADABLE = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """The text that is read."""

    name: str = "miscellany"
    """The text. `miscellany` and `factbook` need no account. It may also be a file, a folder, a
    pattern such as `texts/**/*.jsonl.gz`, the http(s) address of a file, or the id of a data
    set on the Hub. A folder may be a clone of a Hub data set, or one that `save_to_disk`
    wrote."""
    column: str | None = None
    """Column of a table that holds the documents, by default `text`. It may hold texts, or
    conversations (lists of messages with role and content, or ShareGPT's from and value), which
    go through the tokenizer's chat template, or tokens that are ready (`input_ids`). A column
    inside another is written as `translation.en`."""
    subset: str | None = None
    """Which configuration of a Hub data set to read, if the data set has several."""
    split: str | None = None
    """Split of a data set, by default `train`. A part of a split is written as `train[:10%]`,
    and several are joined by `+`."""
    separator: str | None = None
    r"""Text that separates the documents of a text file, such as `<|endoftext|>`. Write `\n`,
    `\t` and `\\` for a line end, a tab and a backslash. By default the whole file is one
    document."""
    one_document_a_line: bool = False
    """Whether each line of a text file is a document."""
    on_error: str = "refuse"
    """What to do with a row that is broken, lacks the column or holds no text: `refuse` stops
    and names the place, `skip` leaves the row out and counts it."""
    held_out_fraction: float = 0.1
    """Share of the documents that is held out and never trained on. Documents are chosen by the
    digest of their text."""

    @property
    def record(self) -> TextRecord:
        """What is kept of the text with what was computed from it: all that was asked for."""
        usual = plain(DataConfig(name=self.name))
        always = ("name", "held_out_fraction")
        asked = {k: v for k, v in plain(self).items() if k in always or v != usual[k]}
        return TextRecord(self.name, self.held_out_fraction, settings=asked)

    @property
    def identity(self) -> dict[str, object]:
        """What decides which documents there are, in the words that it has always had.

        A path is the same from every working directory.
        """
        usual = {"column": self.column or _COLUMN, "split": self.split or _SPLIT}
        name = from_anywhere(self.name) if _is_path(self.name) else self.name
        return {**self.record.settings, "name": name, "subset": self.subset, **usual}

    @property
    def between(self) -> str | None:
        """What stands between two documents of a text file, if it holds several."""
        if self.one_document_a_line:
            return "\n"
        if self.separator is None:
            return None
        return re.sub(r"\\[nt\\]", lambda found: _ESCAPES[found[0]], self.separator)

    def __post_init__(self) -> None:
        require(
            self.name != "", "data.name is empty; give an embedded text, a path or a Hub id"
        )
        check_utf8(self.name)
        require(
            self.separator != "" and "\r" not in (self.separator or ""),
            f"data.separator={self.separator!r} never stands between documents; give a text "
            r"such as '<|endoftext|>' or '\n\n' (line ends are \n, whatever the file has)",
        )
        require(
            not (self.separator and self.one_document_a_line),
            f"data.separator={self.separator} and data.one_document_a_line=true contradict "
            "each other; give one",
        )
        require(
            self.on_error in ("refuse", "skip"),
            f"data.on_error={self.on_error} is unknown; choose one of refuse, skip",
        )
        require(
            0 < self.held_out_fraction < 1,
            f"data.held_out_fraction={self.held_out_fraction} is impossible; "
            "give a share between 0 and 1, such as 0.1",
        )


def _is_path(name: str) -> bool:
    if name in EMBEDDED_TEXTS or is_url(name):
        return False
    check_names(name)
    written = name.startswith(_BEGINNINGS) or glob.has_magic(name)
    return written or Path(name).expanduser().exists()


def documents(config: DataConfig) -> Iterator[Read]:
    """Give documents in a fixed order, read as they are asked for; empty ones included.

    With `on_error=skip` what cannot be read is given as such.

    Raises:
        UserError: if there is no such text, none is readable, the network is gone, or an option
            would have no effect on a text of this kind.
    """
    if config.name in EMBEDDED_TEXTS:
        _check_options(config, "an embedded text", ())
        return EMBEDDED_TEXTS[config.name]()
    return (_checked(document, config) for document in _documents(config))


def check_source(config: DataConfig) -> str | Chat | Tokens | None:
    """Read and return the first document, so that a bad source is refused before a model loads.

    None stands for an embedded text, which is not read.

    Raises:
        UserError: as `documents` does, or if there is nothing to read in it.
    """
    stream, n, first = documents(config), 0, None
    if config.name in EMBEDDED_TEXTS:
        return None
    for document in stream:
        if isinstance(document, Unreadable):
            n, first = n + 1, first or document
            require(
                n < _MOST_UNREADABLE,
                f"none of the first {n:,} rows is readable: {first.reason}",
            )
        elif len(document):
            return document
    settings = {k: v for k, v in config.record.settings.items() if k != "held_out_fraction"}
    asked = ", ".join(f"data.{name}={value}" for name, value in settings.items())
    because = f"; of {n:,} rows none is readable: {first.reason}" if first else ""
    raise UserError(f"there is no document in the chosen text ({asked}){because}")


def _checked(document: Read, config: DataConfig) -> Read:
    if isinstance(document, Unreadable) and config.on_error == "refuse":
        raise UserError(
            f"{document.reason}; with data.on_error=skip such documents are left out"
        )
    return document


def _check_options(config: DataConfig, kind: str, effective: Sequence[str]) -> None:
    """Refuse options that would have no effect on a text of this kind."""
    given = config.record.settings.keys() - {"name", "held_out_fraction", *effective}
    for name in sorted(given):
        raise UserError(
            f"data.{name}={getattr(config, name)} has no effect on {config.name}, which is "
            f"{kind}; leave it out"
        )


def _documents(config: DataConfig) -> Iterator[Read]:
    """Find out what the text is, and give its documents."""
    name, column = config.name, config.column or _COLUMN
    if is_url(name):
        require(
            kind_of(name) is not None,
            f"data.name={name} has an unknown ending; give a file ending in {SUFFIXES}",
        )
        return _of_files([name], config)
    check_names(name)
    path = Path(name).expanduser()
    if path.is_file():
        return _of_files(texts_among([path], name), config)
    if path.is_dir():
        layout = layout_of(path, config.split, config.subset)
        if layout == "files":
            return _of_files(texts_among(files_in(path), name), config)
        if layout == "saved":
            _check_options(config, "a folder of save_to_disk", ("column", "split", "on_error"))
            found = rows_on_disk(str(path), config.split, column)
            return _read(found, column, name, f"data.name={name} is not readable")
        name = str(path)
    elif glob.has_magic(name):
        matched = sorted(Path(p) for p in glob.glob(str(path), recursive=True))
        require(bool(matched), f"data.name={name} matches no file")
        return _of_files(texts_among(matched, name), config)
    require(
        path.is_dir() or not name.startswith(_BEGINNINGS),
        f"data.name={name} does not exist; give a file or a folder that does",
    )
    _check_options(config, "a data set", ("column", "subset", "split", "on_error"))
    found = rows_of_repository(
        name, config.subset, config.split or _SPLIT, column, EMBEDDED_TEXTS
    )
    return _read(found, column, name, f"data.name={name} broke off")


def _of_files(files: list[str], config: DataConfig) -> Iterator[Read]:
    kinds = {kind_of(file) for file in files}
    texts, tables = "text" in kinds, bool(kinds - {"text"})
    effective = ["on_error"]
    effective += ["separator", "one_document_a_line"] if texts else []
    effective += ["column"] if tables else []
    what = {(True, False): "text", (False, True): "tables"}.get((texts, tables), "both")
    _check_options(config, f"a file or files of {what}", effective)
    return chain.from_iterable(_of_file(file, config) for file in files)


def _of_file(file: str, config: DataConfig) -> Iterator[Read]:
    kind = kind_of(file)
    otherwise = f"{file} is not readable as {kind}" + (" in UTF-8" if kind == "text" else "")
    if kind == "text":
        return _read(texts_of(file, config.between), _COLUMN, file, otherwise)
    column = config.column or _COLUMN
    return _read(rows_of(file, column), column, file, otherwise)


def _read(rows: Iterator[Row], column: str, source: str, otherwise: str) -> Iterator[Read]:
    """Give the documents in the rows of a source; a fault is told after `otherwise`."""
    with _explained_failures(source, otherwise):
        for row in rows:
            yield document_of(row, column)


@contextmanager
def _explained_failures(source: str, otherwise: str) -> Iterator[None]:
    """Say what is wrong with a source: the network, a file's address, or its content."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # A broken file raises what its reader or its compression likes: a dozen types.
        said = f"{otherwise}: {what_it_said(error)}"
        if isinstance(error, FileNotFoundError) and is_url(source):
            said = (
                f"data.name={source} could not be had: it is not there, or its server cannot "
                "be reached"
            )
        elif _network_is_gone(error):
            said = (
                f"{source}: the network is gone ({what_it_said(error)}); run the same command "
                "again when it is back, what is finished is kept"
            )
        raise UserError(said) from error


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
