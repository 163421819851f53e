"""Run the tutorials anew, in their order and in one folder: `python scripts/notebooks.py`.

A cell that fails fails all. A cell with the tag `not-run` is left out; its text says why.

    python scripts/notebooks.py --write   # and keep the outputs in the files
"""

import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

TUTORIALS = Path(__file__).parents[1] / "docs" / "tutorials"
_NOT_RUN = "not-run"
_BAR = re.compile(r"[^\n]*\d%\|[^\n]*\n?")
_GIVEN_UP_AFTER = 900
"""Seconds for one cell."""


def run(notebook: Any, folder: Path) -> None:
    """Run a notebook's cells in a folder; outputs go into the notebook.

    Raises:
        CellExecutionError: for the first cell that fails.
    """
    client = NotebookClient(
        notebook,
        timeout=_GIVEN_UP_AFTER,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        skip_cells_with_tag=_NOT_RUN,
        record_timing=False,
    )
    client.execute()


def tidy(notebook: Any, folder: Path) -> None:
    """Take out of a notebook what differs between two runs and says nothing."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata.get("language_info", {}).pop("version", None)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        if "outputs" in cell:
            cell.outputs = _without_bars(_joined(cell.outputs), folder)


def _joined(outputs: Sequence[Any]) -> list[Any]:
    """Return outputs with what was said piece by piece as one text each.

    A bar is written over in pieces of its own, which would all be shown.
    """
    found: list[Any] = []
    for output in outputs:
        is_stream = output.output_type == "stream"
        if is_stream and found and found[-1].get("name") == output.name:
            found[-1].text += output.text
        else:
            found.append(output)
    return found


def _without_bars(outputs: Sequence[Any], folder: Path) -> list[Any]:
    """Return outputs without bars, which write over themselves, and without the folder."""
    for output in outputs:
        if output.output_type == "stream":
            text = re.sub(re.escape(str(folder)) + "/?", "", output.text)
            output.text = _BAR.sub("", re.sub(r"[^\n]*\r", "", text))
    said = [one for one in outputs if one.output_type != "stream" or one.text.strip()]
    return _joined(said)


def main(words: Sequence[str]) -> int:
    """Run all tutorials; returns how many failed."""
    # Kernels inherit it: nothing is looked up on the Hub.
    os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        for path in sorted(TUTORIALS.glob("*.ipynb")):
            notebook, began = nbformat.read(path, as_version=4), time.perf_counter()
            try:
                run(notebook, Path(scratch))
            except CellExecutionError as error:
                failed += 1
                print(f"{path.name}: FAILED\n{error}", flush=True)
                continue
            print(f"{path.name}: {time.perf_counter() - began:.0f} s", flush=True)
            if "--write" in words:
                tidy(notebook, Path(scratch))
                nbformat.write(notebook, path)
    return failed


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
