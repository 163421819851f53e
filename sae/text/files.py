"""Rows of one file, here or on the web, read as they are asked for."""

import codecs
import csv
import gzip
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import PurePosixPath
from typing import IO, Any, Literal
from urllib.parse import urlsplit

from sae.base import UserError, require
from sae.text.rows import Row, Unreadable, is_whole

Kind = Literal["text", "json", "csv", "parquet", "arrow"]

_KINDS: dict[str, Kind] = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
SUFFIXES = f"{', '.join(_KINDS)} (.gz and .zst too)"
_PACKED = (".gz", ".zst")
# The web's are larger: a server that gives no parts of a file can give small ones at once.
_BLOCK_BYTES, _WEB_BLOCK_BYTES = 1 << 20, 10 << 20
# They may be many times as many when they are unpacked.
_PACKED_BYTES = 1 << 16
_ROWS_AT_ONCE = 256
_POINTER, _MOST_OF_A_POINTER = b"version https://git-lfs.github.com/spec/", 1024


def is_url(name: str) -> bool:
    """Return whether a text is an address on the web."""
    return name.startswith(("http://", "https://"))


def kind_of(file: str) -> Kind | None:
    """Return what a file is by its suffix, before any of a compression; None if unknown."""
    suffix = _suffix(file)
    return _KINDS.get(suffix)


def _suffix(file: str) -> str:
    path = PurePosixPath(urlsplit(file).path if is_url(file) else file)
    suffixes = [s.lower() for s in path.suffixes if s.lower() not in _PACKED]
    return suffixes[-1] if suffixes else ""


def texts_of(file: str, separator: str | None) -> Iterator[Row]:
    """Give the documents of a text file as rows of one column, `text`.

    The file is one document, or many with a separator between them.
    """
    blocks = _characters(file, translate=True)
    if separator is None:
        parts: Iterable[str] = ["".join(blocks)]
    else:
        parts = _without_last_blank(_split(blocks, separator))
    line, between = 1, 0 if separator is None else separator.count("\n")
    for text in parts:
        where = file if separator is None else f"{file}, line {line}"
        found = {"text": "" if text.isspace() else text}
        odd = Unreadable("is not readable as text in UTF-8")
        yield Row(where, found if is_whole(text) else odd)
        line += text.count("\n") + between


def _without_last_blank(parts: Iterator[str]) -> Iterator[str]:
    """Leave out what a separator at the end of a file leaves behind it."""
    before: str | None = None
    for part in parts:
        if before is not None:
            yield before
        before = part
    if before is not None and before.strip():
        yield before


def rows_of(file: str, column: str) -> Iterator[Row]:
    """Give the rows of a file of any other kind; of columns, at least the one asked for.

    Raises:
        UserError: if the file as a whole is not what it is called, or has no such column.
    """
    match kind_of(file):
        case "json":
            return _json_rows(file)
        case "csv":
            return _csv_rows(file, column)
        case "parquet":
            return _parquet_rows(file, column)
        case _:
            return _arrow_rows(file, column)


@contextmanager
def _opened(file: str) -> Iterator[IO[bytes]]:
    """Open a file to read; the web's is streamed, and asked for again if it breaks off."""
    if "://" in file:
        from datasets.utils.file_utils import xopen

        with xopen(file, "rb") as opened:
            yield opened
        return
    with open(file, "rb") as opened:
        require(
            os.path.getsize(file) > _MOST_OF_A_POINTER
            or not opened.peek().startswith(_POINTER),
            f"{file} is only a pointer of Git LFS; run git lfs pull to get the file itself",
        )
        yield opened


def _blocks(file: str) -> Iterator[bytes]:
    """Give the content of a file, unpacked if it is packed."""
    path = (urlsplit(file).path if is_url(file) else file).lower()
    with _opened(file) as opened:
        if path.endswith(".zst"):
            yield from _unpacked(opened)
        elif path.endswith(".gz"):
            with gzip.open(opened) as unpacked:
                yield from iter(lambda: unpacked.read(_BLOCK_BYTES), b"")
        else:
            size = _WEB_BLOCK_BYTES if "://" in file else _BLOCK_BYTES
            yield from iter(lambda: opened.read(size), b"")


def _unpacked(packed: IO[bytes]) -> Iterator[bytes]:
    """Give what Zstandard has packed; a file that was cut is no shorter text, but an error."""
    import zstandard

    begun = packed.read(_PACKED_BYTES)
    while begun:
        frame = zstandard.ZstdDecompressor().decompressobj()
        yield frame.decompress(begun)
        while not frame.eof:
            block = packed.read(_PACKED_BYTES)
            if not block:
                raise EOFError("it ends in the middle of what is packed")
            yield frame.decompress(block)
        begun = frame.unused_data or packed.read(_PACKED_BYTES)


def _characters(file: str, *, translate: bool) -> Iterator[str]:
    """Give a file as text, a block at a time; bytes that are no UTF-8 as halves of characters.

    Args:
        translate: whether all line ends become plain ones.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
    decode = io.IncrementalNewlineDecoder(decoder, translate=True) if translate else decoder
    for block in _blocks(file):
        yield decode.decode(block)
    yield decode.decode(b"", final=True)


def _split(blocks: Iterable[str], separator: str) -> Iterator[str]:
    """Give the parts between separators, which may lie across two blocks."""
    held: list[str] = []
    tail = ""
    for block in blocks:
        first, *more = (tail + block).split(separator)
        if more:
            yield "".join([*held, first])
            yield from more[:-1]
            held, first = [], more[-1]
        cut = max(0, len(first) - len(separator) + 1)
        held.append(first[:cut])
        tail = first[cut:]
    yield "".join([*held, tail])


def _json_rows(file: str) -> Iterator[Row]:
    """Give objects, one a line; or those of the one list, or the one object, of a file."""
    lines = _split(_characters(file, translate=False), "\n")
    numbered = ((n, line) for n, line in enumerate(lines, start=1) if line.strip())
    at, first = next(numbered, (0, ""))
    if not first:
        return
    if first.lstrip().startswith("[") or (
        _suffix(file) == ".json" and isinstance(_parsed(first), Unreadable)
    ):
        whole = json.loads("\n".join([first, *(line for _, line in numbered)]))
        for n, value in enumerate(whole if isinstance(whole, list) else [whole], start=1):
            # A list of texts stands for one column.
            row = {"text": value} if isinstance(value, str) else value
            yield Row(f"{file}, row {n}", row if isinstance(row, dict) else _NO_ROW)
        return
    for n, line in chain([(at, first)], numbered):
        yield Row(f"{file}, line {n}", _parsed(line))


_NO_ROW = Unreadable("is no row of a table: a JSON object with a value for each column")


def _parsed(line: str) -> dict[str, Any] | Unreadable:
    if not is_whole(line):
        return Unreadable("is not readable as json in UTF-8")
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Unreadable(f"is not readable as json ({error})")
    return found if isinstance(found, dict) else _NO_ROW


def _csv_rows(file: str, column: str) -> Iterator[Row]:
    csv.field_size_limit(1 << 30)
    lines = (f"{line}\n" for line in _split(_characters(file, translate=False), "\n"))
    between = "\t" if _suffix(file) == ".tsv" else ","
    reader = csv.reader(lines, delimiter=between, strict=True)
    names = next(reader, [])
    check_column(column, names, file)
    while True:
        begin = reader.line_num + 1
        try:
            values = next(reader, None)
        except csv.Error as error:
            # A quotation without an end has swallowed all that came behind it.
            require("unexpected end" not in str(error), f"{file}, line {begin}: {error}")
            yield Row(f"{file}, line {begin}", Unreadable(f"is not readable as csv ({error})"))
            continue
        if values is None:
            return
        if not values:
            continue
        there = Unreadable(f"has {len(values)} values, and the first line {len(names)}")
        whole: Mapping[str, Any] = dict(zip(names, values, strict=False))
        yield Row(f"{file}, line {begin}", whole if len(values) == len(names) else there)


def _parquet_rows(file: str, column: str) -> Iterator[Row]:
    import pyarrow.parquet as pq

    with _opened(file) as opened:
        table = pq.ParquetFile(opened)
        wanted = _wanted(column, table.schema_arrow.names, file)
        batches = table.iter_batches(_ROWS_AT_ONCE, columns=wanted)
        yield from _of_batches((batch.to_pylist() for batch in batches), file)


def _arrow_rows(file: str, column: str) -> Iterator[Row]:
    import pyarrow as pa

    with _opened(file) as opened:
        try:
            stream: Any = pa.ipc.open_stream(opened)
            batches: Iterable[Any] = stream
        except pa.ArrowInvalid:
            # Arrow has two formats, and one suffix for both.
            opened.seek(0)
            stream = pa.ipc.open_file(opened)
            batches = (stream.get_batch(i) for i in range(stream.num_record_batches))
        wanted = _wanted(column, stream.schema.names, file)
        yield from _of_batches((batch.select(wanted).to_pylist() for batch in batches), file)


def _of_batches(batches: Iterable[list[dict[str, Any]]], file: str) -> Iterator[Row]:
    for n, values in enumerate(chain.from_iterable(batches), start=1):
        yield Row(f"{file}, row {n}", values)


def _wanted(column: str, names: list[str], file: str) -> list[str]:
    """Return the columns to read: others, such as pictures, cost time for nothing."""
    top = column if column in names else column.partition(".")[0]
    check_column(top, names, file)
    return [top, *(["attention_mask"] if "attention_mask" in names else [])]


def check_column(column: str, names: Iterable[str], where: str) -> None:
    """Refuse a table in which no row can have the column.

    Raises:
        UserError: that names the columns which are there.
    """
    there = list(names)
    if column not in there:
        raise UserError(
            f"data.column={column} is not in {where}; it has {', '.join(map(str, there))}"
        )
