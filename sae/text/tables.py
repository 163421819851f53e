"""Rows of data sets as `datasets` finds them: on the Hub, in a clone of one, saved on disk."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

from sae.base import UserError, nearest
from sae.text.files import check_column, kind_of, rows_of
from sae.text.rows import Row

# A split, or rows of it from one number or percentage on to another: train[:10%]
_PART = re.compile(r"(?P<split>\w[\w.-]*)(?:\[(?P<first>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


def rows_of_repository(
    name: str, subset: str | None, split: str, column: str, embedded: Iterable[str]
) -> Iterator[Row]:
    """Give the rows of a Hub data set, or of the folder of one, as `load_dataset` finds them.

    Raises:
        UserError: if there is no such data set, subset, split or column.
    """
    from datasets import load_dataset_builder

    folder = Path(name).is_dir()
    try:
        builder = load_dataset_builder(name, subset)
    except Exception as error:
        said = what_it_said(error)
        if folder:
            raise UserError(
                f"data.name={name} is not a data set that can be loaded: {said}"
            ) from error
        raise UserError(
            f"data.name={name} is not embedded ({', '.join(embedded)}), not a local file or "
            f"folder, and could not be downloaded from the Hub{nearest(name, embedded)}. "
            f"Its message: {said}"
        ) from error
    files = _files(builder)

    def rows(part: str) -> Iterator[Row]:
        if part in files and all(kind_of(file) in ("json", "parquet") for file in files[part]):
            return chain.from_iterable(rows_of(file, column) for file in files[part])
        try:
            table = builder.as_streaming_dataset(split=part)
        except ValueError as error:
            raise UserError(f"data.split={part} of {name}: {what_it_said(error)}") from error
        return _numbered(table, column, name)

    def count(part: str) -> int | None:
        if part in files and all(kind_of(file) == "parquet" for file in files[part]):
            return sum(map(_parquet_length, files[part]))
        found = (builder.info.splits or {}).get(part)
        return getattr(found, "num_examples", None) or None

    return _parts(split, rows, count)


def rows_on_disk(folder: str, split: str | None, column: str) -> Iterator[Row]:
    """Give the rows of what `save_to_disk` has written.

    Raises:
        UserError: if it has no such split or column, or one was asked for and it has none.
    """
    from datasets import Dataset, load_from_disk

    try:
        found = load_from_disk(folder)
    except Exception as error:
        raise UserError(
            f"data.name={folder} cannot be loaded: {what_it_said(error)}"
        ) from error
    if isinstance(found, Dataset):
        if split is not None:
            raise UserError(
                f"data.split={split} has no effect on {folder}, which is one data set without "
                "splits; leave it out"
            )
        return _numbered(found, column, folder)

    def rows(part: str) -> Iterator[Row]:
        if part not in found:
            raise UserError(
                f"data.split={part} is not in {folder}; it has {', '.join(map(str, found))}"
            )
        return _numbered(found[part], column, folder)

    return _parts(
        split or "train", rows, lambda part: len(found[part]) if part in found else None
    )


def what_it_said(error: BaseException) -> str:
    """Return the first line of an error, and the second where it has the choices."""
    lines = (str(error).strip() or type(error).__name__).split("\n")
    return " ".join(lines[: 2 if "available" in " ".join(lines[1:2]) else 1])


def _files(builder: Any) -> Mapping[str, list[str]]:
    """Return the files of each split, where a reader of ours reads them like `datasets`."""
    config = builder.config
    kind = type(builder).__module__.rpartition(".")[2]
    options = {"json": ("field",), "parquet": ("columns", "filters")}.get(kind)
    if options is None or any(getattr(config, name, None) is not None for name in options):
        return {}
    return {str(split): list(map(str, files)) for split, files in config.data_files.items()}


def _parquet_length(file: str) -> int:
    import pyarrow.parquet as pq
    from datasets.utils.file_utils import xopen

    with xopen(file, "rb") as opened:
        n: int = pq.ParquetFile(opened).metadata.num_rows
    return n


def _numbered(table: Any, column: str, name: str) -> Iterator[Row]:
    if table.column_names is not None:
        check_column(column.partition(".")[0], table.column_names, name)
    for n, values in enumerate(table, start=1):
        yield Row(f"{name}, row {n}", values)


def _parts(
    split: str, rows: Callable[[str], Iterator[Row]], count: Callable[[str], int | None]
) -> Iterator[Row]:
    """Give the rows of a split, of a part of one, or of several after each other."""
    wanted = []
    for word in split.split("+"):
        part = _PART.fullmatch(word.strip())
        if part is None:
            raise UserError(
                f"data.split={split} is not a split; give a name such as train, a part such "
                "as train[:1000] or train[10%:20%], or several such as train+test"
            )
        bounds = part["first"], part["stop"]
        n = None
        if any(bound and (bound[0] == "-" or bound[-1] == "%") for bound in bounds):
            n = count(part["split"])
            if n is None:
                raise UserError(
                    f"data.split={split} needs the number of rows, which is not known "
                    "before this data set is read; count from the beginning, as in "
                    f"{part['split']}[:1000]"
                )
        first, stop = (_row(bound, n) for bound in bounds)
        wanted.append((rows(part["split"]), first, stop))
    return chain.from_iterable(islice(found, first, stop) for found, first, stop in wanted)


def _row(bound: str | None, n: int | None) -> int | None:
    """Return the number of a row: percentages are rounded, as `datasets` does."""
    if bound is None or n is None:
        return None if bound is None else int(bound)
    at = round(n * int(bound[:-1]) / 100) if bound.endswith("%") else int(bound)
    return min(n, at if at >= 0 else max(0, n + at))
