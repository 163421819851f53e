"""`python -m benchmarks.reliability [minutes]`: write the matrix of what was tried and held."""

import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.common import write_results
from benchmarks.reliability.trials import KINDS, Result, all_trials, run
from benchmarks.reliability.world import PRELOADED, World

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
MINUTES, KILLS, SEED = 60.0, 20, 20_261_129


def main(minutes: float = MINUTES) -> None:
    """Try as much as the time allows, and write the table."""
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(PRELOADED)
    world = World(Path(tempfile.mkdtemp(prefix="reliability-")), processes)
    try:
        world.build()
        trials = all_trials(world, KILLS, SEED)
        print(f"{len(trials)} trials; stages took {[round(s, 2) for s in world.seconds]}")
        until, results = time.monotonic() + minutes * 60, []
        for trial in trials:
            if time.monotonic() > until:
                break
            results.append(run(world, trial))
            if not results[-1].held:
                print(len(results), results[-1], flush=True)
    finally:
        world.close()
    write(results, len(trials))


def write(results: list[Result], n_trials: int) -> None:
    """Write the results, and the page of the documentation."""
    rows = [
        {
            "command": r.trial.command, "kind": r.trial.kind, "file": r.trial.file,
            "reader": r.trial.number, "outcome": r.outcome,
            "said": "" if r.held else " ".join(r.said.split())[-300:],
        }
        for r in results
    ]  # fmt: skip
    failures = [row for row, r in zip(rows, results, strict=True) if not r.held]
    counts: dict[str, object] = dict(Counter(str(row["outcome"]) for row in rows))
    write_results("reliability", "Kills, damages and full disks", [counts, *failures])
    PAGE.write_text(page(results, n_trials), encoding="utf-8")


def page(results: list[Result], n_trials: int) -> str:
    """Return the page: a row for each command, a column for each kind of disturbance."""
    commands = list(dict.fromkeys(r.trial.command for r in results))
    kinds = [kind for kind in KINDS if any(r.trial.kind == kind for r in results)]
    lines = ["| command | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    for command in commands:
        cells = []
        for kind in kinds:
            held = [
                r.held for r in results if (r.trial.command, r.trial.kind) == (command, kind)
            ]
            cells.append(f"{sum(held)} of {len(held)}" if held else "–")
        lines.append(f"| `{command}` | " + " | ".join(cells) + " |")
    outcomes = Counter(r.outcome for r in results)
    ended = "\n".join(f"| {name} | {n} |" for name, n in outcomes.most_common())
    return _PAGE.format(
        tried=len(results),
        of=n_trials,
        held=sum(r.held for r in results),
        matrix="\n".join(lines),
        outcomes=f"| outcome | trials |\n|---|---|\n{ended}",
    )


_PAGE = """\
# Reliability

Every command is killed (SIGKILL) at random instants, meets a full disk and a limit on the size
of its files, and is started again; every file of every artefact is damaged in five ways before
the command that made it, and each that reads it, is run. All on a tiny random model, by
`python -m benchmarks.reliability`.

A trial has held if the end is the same bytes as undisturbed, if what is damaged is made anew or
was not in the way, or if one sentence refuses it and names the file or its artefact. It has
failed with a traceback, a result that is another with status 0, damage that is taken for right,
a refusal that names nothing, rubbish left behind, or a command that does not end afterwards.
Commands that write new folders alone may refuse one that is whole already. A command that finds
all its work done need not look at times, at what a training that goes on would read (`extend`
does), at lists of digests, which others need, and at what people write: labels and cards.

Of {of} trials {tried} were drawn at random, and {held} held. In each cell: held of tried;
damages stand in the row of the command that made the file.

{matrix}

{outcomes}

What was said where a trial failed is in
[reliability.json](../benchmarks/results/reliability.json).
"""


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
