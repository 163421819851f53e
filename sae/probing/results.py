"""`ProbeResults`: what probing has found, as it lies in its folder."""

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from sae.base import nearest, read_object, require
from sae.edits import Edits, edit
from sae.edits.save import save_edits
from sae.probing.fit import Record
from sae.probing.readings import RAW
from sae.probing.table import PROBES

if TYPE_CHECKING:
    import pyarrow

TABLE = PROBES.file
SUMMARY, DIRECTIONS, PICTURE = "results.json", "directions.safetensors", "layers.png"
_AGAIN = "remove the folder and run sae probe again"
_SHOWN = ("task", "hook_name", "pool", "inputs", "k", "auc", "auc_low", "auc_high")
_DO = ("add", "orthogonal")


def write_tables(
    folder: Path, records: Sequence[Record], directions: Mapping[str, Float[Tensor, " d"]]
) -> "pyarrow.Table":
    """Write the table of probes and their directions into a folder; returns the table."""
    from safetensors.torch import save_file

    save_file(dict(directions), folder / DIRECTIONS)
    columns = {name: [record.get(name) for record in records] for name in PROBES.columns}
    return PROBES.write(folder, columns)


@dataclass(frozen=True)
class ProbeResults:
    """Probes and their controls, in the folder that `sae probe` has written."""

    folder: Path

    @cached_property
    def summary(self) -> Mapping[str, Any]:
        """Tasks, what was left out, the dictionary, and times.

        Raises:
            UserError: if the folder holds no results.
        """
        require(
            (self.folder / SUMMARY).is_file(),
            f"{self.folder} contains no results of probing; give a folder that sae probe wrote",
        )
        found: Mapping[str, Any] = read_object(self.folder / SUMMARY, _AGAIN).values
        return found

    @cached_property
    def table(self) -> "pyarrow.Table":
        """All probes, a record each; `docs/probes.md` explains the columns."""
        import pyarrow.parquet

        return pyarrow.parquet.read_table(self.folder / PROBES.file)

    def to_pandas(self) -> Any:
        """Return all probes as a data frame, a record each."""
        return self.table.to_pandas()

    def best(self, inputs: str | None = None) -> list[Record]:
        """Return the records of the hook and pool that validation chose for some inputs."""
        rows: list[Record] = self.table.to_pylist()
        return [r for r in rows if r["best"] and inputs in (None, r["inputs"])]

    def lines(self) -> Iterator[str]:
        """Yield what the terminal says: the best probe of each task beside its controls."""
        for row in self.best(RAW):
            place = f"{row['hook_name']}, {row['pool']}"
            floor = f"shuffled labels {row['permuted_auc']:.2f}"
            ends = f"[{row['auc_low']:.2f}, {row['auc_high']:.2f}]"
            yield f"{row['task']}: AUC {row['auc']:.2f} {ends} at {place} ({floor})"
            others = [r for r in self.best() if r["task"] == row["task"] and r["inputs"] != RAW]
            for other in others:
                if other["k"] is None and other["inputs"] != "difference_of_means":
                    ends = f"[{other['auc_low']:.2f}, {other['auc_high']:.2f}]"
                    yield f"  {other['inputs']}, all: {other['auc']:.2f} {ends}"

    def plot(self) -> Any:
        """Return the layer curves as a picture of Pillow, which a notebook shows."""
        from PIL import Image

        with Image.open(self.folder / PICTURE) as picture:
            return picture.copy()

    def __repr__(self) -> str:
        """Return one line: tasks, probes, and where they are."""
        n, model = len(self.summary["tasks"]), self.summary["model"]
        return f"ProbeResults({n} tasks, {len(self.table):,} probes of {model}, {self.folder})"

    def _repr_html_(self) -> str:
        """Return the best probes as a table, for notebooks."""
        lines = []
        for row in self.best():
            shown = (row[name] for name in _SHOWN)
            texts = (
                f"{v:.3f}" if isinstance(v, float) else "" if v is None else v for v in shown
            )
            cells = "".join(f"<td>{html.escape(str(text))}</td>" for text in texts)
            lines.append(f"<tr>{cells}</tr>")
        head = "".join(f"<th>{name}</th>" for name in _SHOWN)
        note = f"<p>{html.escape(self.summary['statement'])}</p>"
        return f"<table><tr>{head}</tr>{''.join(lines)}</table>{note}"

    def direction(self, task: str, hook_name: str, pool: str) -> Float[Tensor, " d"]:
        """Return the unit direction of a probe of raw activations, towards the second label.

        Raises:
            UserError: if there is no such probe.
        """
        from safetensors import safe_open

        key = f"{task}|{hook_name} {pool}"
        with safe_open(self.folder / DIRECTIONS, framework="pt") as file:
            there = [*file.keys()]
            require(
                key in there,
                f"{self.folder} has no linear probe of {task} at {hook_name}, {pool}"
                f"{nearest(key, there)}",
            )
            found: Tensor = file.get_tensor(key)
        return found

    def edits(
        self,
        task: str | None = None,
        *,
        hook_name: str | None = None,
        pool: str | None = None,
        do: str = "add",
        by: float | None = None,
    ) -> Edits:
        """Return a probe's direction as an edit, at the best hook if none is named.

        Args:
            task: of which task; may be left out where there is one.
            hook_name: at which hook; by default that which validation chose.
            pool: of which rows; by default those that validation chose.
            do: `add` moves towards the second label, `orthogonal` takes the direction out.
            by: how far, in the model's units; by default from one label's mean to the other's.

        Raises:
            UserError: if there is no such probe.
        """
        require(do in _DO, f"do={do}; give {' or '.join(_DO)}")
        require(do == "add" or by is None, f"by={by} has no effect with do={do}; leave it out")
        names = [one["name"] for one in self.summary["tasks"]]
        require(
            task is not None or len(names) == 1,
            f"{self.folder} has {len(names)} tasks; choose one with task={names[0]}",
        )
        name = task or names[0]
        require(name in names, f"task={name} was not probed{nearest(name, names)}")
        hook, pool = self._place(name, hook_name, pool)
        direction = self.direction(name, hook, pool)
        if do == "add" and by is None:
            own = next(one for one in self.summary["tasks"] if one["name"] == name)
            by = own["lengths"][f"{hook} {pool}"]
        record = edit(at=hook, direction=direction, do=do, by=by)
        return Edits((record,), self.summary["model_name"], self.summary["weight_digest"])

    def save(self, out: Path, task: str | None = None, **where: Any) -> None:
        """Write what `edits` returns to a file, and the direction beside it.

        Raises:
            UserError: if there is no such probe, or a file is there already.
        """
        save_edits(self.edits(task, **where), out)

    def _place(self, task: str, hook_name: str | None, pool: str | None) -> tuple[str, str]:
        """Return the hook and the pool of the linear probe that validation thinks best of."""
        rows = [
            r
            for r in self.table.to_pylist()
            if r["task"] == task
            and r["inputs"] == RAW
            and r["pool"] != "attention"
            and hook_name in (None, r["hook_name"])
            and pool in (None, r["pool"])
        ]
        require(
            bool(rows),
            f"{self.folder} has no linear probe of {task} at hook_name={hook_name}, "
            f"pool={pool}",
        )
        best = max(
            rows, key=lambda r: -1.0 if r["validation_auc"] is None else r["validation_auc"]
        )
        return best["hook_name"], best["pool"]
