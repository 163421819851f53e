"""Progress of long stages: a bar with rate and time left, silent without a terminal."""

import errno
import importlib
import sys
import warnings
from importlib.util import find_spec
from typing import Any, TextIO

from tqdm import TqdmWarning, tqdm

from sae.base.notebook import in_notebook

# Libraries that load models ask for bars as widgets. A notebook without them needs no advice.
warnings.filterwarnings("ignore", "IProgress not found", TqdmWarning)


def progress(total: int, label: str, unit: str, done: int = 0) -> "tqdm[Any]":
    """Show a bar over `total` units, starting at `done`; rates are per unit, e.g. tokens/s.

    In a notebook it is one of ipywidgets, where they are installed, and goes when it is full.
    """
    notebook = in_notebook()
    bar: tqdm[Any] = _bar(notebook)(
        total=total,
        initial=done,
        desc=label,
        unit=unit,
        unit_scale=True,
        smoothing=0.05,
        leave=not notebook,
        # A notebook keeps whatever is drawn.
        mininterval=1.0 if notebook else 0.1,
        dynamic_ncols=True,
        disable=not (notebook or sys.stderr.isatty()),
    )
    return bar


def _bar(notebook: bool) -> Any:
    """Return the class of a bar: that of widgets where a notebook can show one."""
    if notebook and find_spec("ipywidgets") is not None:
        return importlib.import_module("tqdm.notebook").tqdm
    return tqdm


def say(text: str) -> None:
    """Print one line for people, on standard error, so that standard output stays data.

    A notebook shows standard error as if something had gone wrong, so there it is the other.
    """
    _print(text, sys.stdout if in_notebook() else sys.stderr)


def show(text: str) -> None:
    """Print one line on standard output: what a command was asked for."""
    _print(text, sys.stdout)


def _print(text: str, stream: TextIO) -> None:
    try:
        tqdm.write(text, file=stream)
    except OSError as error:
        # The terminal has gone, and nothing that is worth saving ends because of that.
        if error.errno != errno.EIO:
            raise


def duration(seconds: float) -> str:
    """Return a time for people: `45 s`, `3.5 min`, `7.2 h` or `4.1 days`."""
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def size(n_bytes: float) -> str:
    """Return a number of bytes for people: `834 kB`, `1.2 GB`."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.3g} {unit}"
    return f"{n_bytes:.0f} B"
