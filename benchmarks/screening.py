"""How many latents the bounds of the screening leave open, and what it takes as d_sae grows.

On activations of several layers of real models, with dictionaries trained on them: a product in
8-bit integers, bfloat16 or float32 finds what might be active, a bound on its error leaves some
entries of a row open, for int8 a finer one rules most of those out, and the values of the
others are computed. All products have to choose the same entries with the same bits. TopK's are
open against a guess at the k-th largest of a row, so float32 leaves more than k open as well.

`python -m benchmarks.screening gemma` measures Gemma 3 270M too, by which you accept its terms.
All takes eleven minutes on two cores; `widths` measures by d_sae alone, in three and a half.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

import sae
from benchmarks.common import RUN, real_rows, side_by_side, write_results
from benchmarks.registry_models import gemma, gemma_terms, minilm
from benchmarks.step import trained
from sae.core import screen
from sae.core.bounds import Entries
from sae.core.cpu_kernels import Lists
from sae.core.scaling import InputScaling
from sae.core.select import Above, Active, Selection, TopK, select, select_and_count
from sae.rows.shuffle import rows_in_order, select_rows
from sae.training.loop import Trainer

K, N_TOKENS, N_STEPS = 32, 20_480, 150
D_SAE = 4_608
DICTIONARIES: dict[str, dict[str, Any]] = {
    "topk": {"k": K},
    "standard": {"l1_coefficient": 2.2},
}
MODELS: dict[str, tuple[Callable[[], str], tuple[int, ...]]] = {
    "smollm2": (lambda: "smollm2", (3, 9, 15, 27)),
    "all-MiniLM-L6-v2": (minilm, (1, 3, 5)),
    "Gemma 3 270M": (gemma, (3, 9, 15)),
}
"""What gives a model's name, and the layers whose residual stream is read."""
ROWS = 4_096
# Without its instructions, products in bfloat16 are hundreds of times slower.
ROWS_IN_BFLOAT16 = 128

WIDTHS = (4_608, 9_216, 18_432, 36_864, 65_536)
BATCH, WIDE_STEPS, ROUNDS = 4_096, 60, 3
PICTURE = Path("docs/images/screening.png")
_COLOURS = {"float32": "#4477aa", "int8": "#aa3377"}


def main(*words: str) -> None:
    """Write `results/candidates.md` and `results/screening.md` with its picture.

    With the word `widths` the second alone.
    """
    if "widths" not in words:
        _measure_candidates(with_gemma="gemma" in words)
    points = [width(real_rows(40_960), d_sae) for d_sae in WIDTHS]
    write_results(
        "screening", f"Selection of TopK, k {K}, d_in 576, batch {BATCH:,}, by d_sae", points
    )
    _draw(points)


def _measure_candidates(*, with_gemma: bool) -> None:
    table = []
    for name, (found, layers) in MODELS.items():
        if found is gemma and not with_gemma:
            print(
                f"{name} is left out: it has terms to accept, {gemma_terms()}; see the module"
            )
            continue
        hooks = [f"blocks.{layer}.hook_resid_post" for layer in layers]
        for layer, rows in zip(layers, activations(found(), name, hooks), strict=True):
            for dictionary in DICTIONARIES:
                row = {"model": name, "layer": layer, **candidates(dictionary, rows)}
                print(row, flush=True)
                table.append(row)
    title = f"Entries a row left open, d_sae {D_SAE:,}: mean / median / 99% of rows"
    write_results("candidates", title, table)


def activations(
    model: str, name: str, hooks: list[str], n_tokens: int = N_TOKENS
) -> Iterator[Tensor]:
    """Rows that a training would see at each hook, scaled; harvested once."""
    run = RUN / "screening" / name.replace(" ", "-")
    cache = sae.harvest(
        run=str(run), model=model, hook_names=hooks, n_tokens=n_tokens, dtype="float32"
    )
    for hook in hooks:
        chosen = select_rows(cache, hook, held_out=False)
        rows = torch.cat([part for (part,) in rows_in_order(chosen)])
        yield InputScaling.of(rows)(rows)


class Screened(NamedTuple):
    """What a product found on some rows."""

    active: Active
    left_open: Tensor
    """Entries of each row that the first bound left open."""
    computed: Tensor
    """Entries of each row whose values were computed."""


def screened(x: Tensor, trainer: Trainer, selection: Selection, matmul: str) -> Screened:
    """Return what a product finds with a dictionary, and the work it leaves, row by row."""
    with _work_noted() as work:
        active, _ = select_and_count(x, *_encoder(trainer), selection, matmul)
    left_open, computed = torch.cat(work).t()
    return Screened(active, left_open, computed)


@contextmanager
def _work_noted() -> Iterator[list[Tensor]]:
    """Keep what screening says of each row, of which it returns the mean alone."""
    plain, work = screen._entries, []

    def entries(lists: Lists) -> Entries:
        work.append(lists.work.clone())
        return plain(lists)

    with patch.object(screen, "_entries", entries):
        yield work


def _encoder(trainer: Trainer) -> tuple[Tensor, Tensor]:
    return trainer.sae.encoder().detach(), trainer.sae.b_enc.detach()


def candidates(
    dictionary: str,
    rows: Tensor,
    n_steps: int = N_STEPS,
    n_rows: int = ROWS,
    n_in_bfloat16: int = ROWS_IN_BFLOAT16,
) -> dict[str, object]:
    """Return what each product leaves open of some rows, with a dictionary trained on such."""
    trainer = trained(dictionary, rows, DICTIONARIES[dictionary], n_steps, D_SAE)
    selection = TopK(K) if dictionary == "topk" else Above(torch.zeros(D_SAE))
    # From everywhere: rows lie in the order of the text.
    x = rows[:: max(1, len(rows) // n_rows)][:n_rows].contiguous()
    few = x[:: max(1, len(x) // n_in_bfloat16)][:n_in_bfloat16].contiguous()
    names = screen.matmuls_here(x.device, x.dtype)
    samples = {name: few if name == "bfloat16" else x for name in reversed(names)}
    found = {n: screened(sample, trainer, selection, n) for n, sample in samples.items()}
    of_few = screened(few, trainer, selection, "float32")
    same = {
        name: _same(one.active, (of_few if name == "bfloat16" else found["float32"]).active)
        for name, one in found.items()
    }
    row: dict[str, object] = {
        "d_in": x.shape[1],
        "dictionary": dictionary,
        "L0": round(len(found["float32"].active.values) / len(x), 1),
    }
    for name, one in found.items():
        row[f"{name}: left open"] = _spread(one.left_open)
        row[f"{name}: values computed"] = _spread(one.computed)
    row["rows"], row["of them in bfloat16"] = len(x), len(few)
    row["same entries and bits"] = "yes" if all(same.values()) else f"NO: {same}"
    return row


def _same(one: Active, other: Active) -> bool:
    """Whether two products led to the same entries, and to every bit of their values."""
    return (
        torch.equal(one.support.row_ends, other.support.row_ends)
        and torch.equal(one.support.columns, other.support.columns)
        and torch.equal(one.values.view(torch.int32), other.values.view(torch.int32))
    )


def _spread(counts: Tensor) -> str:
    numbers = counts.double()
    median, most = numbers.quantile(torch.tensor([0.5, 0.99], dtype=torch.float64)).tolist()
    return f"{numbers.mean():,.1f} / {median:,.0f} / {most:,.0f}"


def width(
    rows: Tensor, d_sae: int, n_steps: int = WIDE_STEPS, batch: int = BATCH
) -> dict[str, object]:
    """Seconds of the selection by each product and of the bare one, and entries left open."""
    rows = InputScaling.of(rows)(rows)
    began = time.perf_counter()
    trainer = trained("topk", rows, {"k": K}, n_steps, d_sae)
    print(f"{d_sae}: trained in {time.perf_counter() - began:.0f} s", flush=True)
    x, (weight, bias) = rows[:batch], _encoder(trainer)
    del trainer.optimizers
    out = torch.empty(batch, d_sae)
    names = [n for n in screen.matmuls_here(x.device, x.dtype) if n != "bfloat16"]
    contenders: dict[str, Callable[[], object]] = {
        name: partial(select, x, weight, bias, TopK(K), name) for name in names
    }
    contenders["bare"] = lambda: torch.mm(x, weight.t(), out=out)
    seconds = side_by_side(contenders, ROUNDS)
    found = {name: screened(x, trainer, TopK(K), name) for name in names}
    point: dict[str, object] = {
        "d_sae": d_sae,
        "batch": batch,
        "bare product in float32 (s)": round(seconds["bare"], 4),
    }
    for name in names:
        point[f"selection, {name} (s)"] = round(seconds[name], 4)
        point[f"{name} / bare"] = round(seconds[name] / seconds["bare"], 3)
    for name, one in found.items():
        point[f"{name}: left open a row"] = round(float(one.left_open.double().mean()), 1)
        point[f"{name}: values computed a row"] = round(float(one.computed.double().mean()), 1)
    same = all(_same(one.active, found["float32"].active) for one in found.values())
    point["same entries and bits"] = "yes" if same else "NO"
    print(point, flush=True)
    return point


def _draw(points: list[dict[str, object]], picture: Path = PICTURE) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    times, entries = figure.subplots(1, 2)
    widths = [p["d_sae"] for p in points]
    for name, colour in _COLOURS.items():
        if f"{name} / bare" not in points[0]:
            continue
        times.plot(
            widths, [p[f"{name} / bare"] for p in points], "o-", color=colour, label=name
        )
        for what, style in (("left open", "o-"), ("values computed", "o--")):
            counts = [p[f"{name}: {what} a row"] for p in points]
            entries.plot(widths, counts, style, color=colour, label=f"{name}: {what}")
    times.axhline(1, color="black", lw=1, ls=":")
    times.set_title("Time of the selection / of a bare product in float32")
    entries.axhline(K, color="black", lw=1, ls=":")
    entries.set_title(f"Entries a row; dotted: the {K} that are kept")
    for axes in (times, entries):
        axes.set_xscale("log", base=2)
        axes.set_ylim(bottom=0)
        axes.set_xticks(widths, [f"{w:,}" for w in widths])
        axes.set_xlabel("latents (d_sae)")
        axes.legend()
        axes.grid(alpha=0.3, which="both")
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=150)


if __name__ == "__main__":
    main(*sys.argv[1:])
