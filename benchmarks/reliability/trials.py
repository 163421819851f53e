"""One disturbance of one command, and what may be said of how it ended."""

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import torch

from benchmarks.reliability.world import Ended, World, digests
from sae.base import damaged

SHAPES = ("[]", "null", "{}", '"text"', "[[1]]")
HELD = ("same bytes", "made anew", "refused by name", "not in its way")
FAILED = (
    "traceback",
    "taken for right",
    "wrong result",
    "refused without a name",
    "left behind",
    "never ends well",
    "ended by a signal",
)
# What people write: another content of theirs is no damage.
WRITTEN_BY_PEOPLE = ("labels.csv", "README.md")
# What a command that finds all its work done need not look at: times, of which nothing is made;
# what a training that goes on reads (`extend` does, a row of its own); and digests, without
# which nothing tells what was written.
NOT_LOOKED_AT = ("harvest.json", "timing*.json", "step_*.pt", "metrics.jsonl", "SHA256SUMS")
_TIMES = ("createdAt", "updatedAt")
"""Keys of Neuronpedia's that hold when something was written."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What is done to which command, and to which file that is there before it."""

    command: str
    """The row of the table: the command that is disturbed, or that made the file."""
    kind: str
    """The column: kill, full disk, file limit, or a kind of damage."""
    number: int
    """Of the command that runs, from 0."""
    file: str = ""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """How a trial went."""

    trial: Trial
    outcome: str
    said: str = ""

    @property
    def held(self) -> bool:
        """Whether this is how it should end."""
        return self.outcome in HELD


def _flip(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if data:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def _cut(path: Path, draw: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: draw.randrange(len(data))] if data else data)


def _reshape(path: Path, draw: random.Random) -> None:
    path.write_text(draw.choice(SHAPES) + "\n")


_JSON = "JSON of another shape"
DAMAGES: dict[str, Callable[[Path, random.Random], object]] = {
    "flipped bit": _flip,
    "cut": _cut,
    "empty": lambda path, _: path.write_bytes(b""),
    "deleted": lambda path, _: path.unlink(),
    _JSON: _reshape,
}
KINDS = ("kill", "full disk", "file limit", *DAMAGES)


def all_trials(world: World, kills: int, seed: int) -> list[Trial]:
    """Return all trials: every file, every damage, every reader, and disturbances of commands.

    They are in a random order in which the cells of the table take turns.
    """
    draw = random.Random(seed)
    trials = [*_disturbed(world, kills, draw), *_damages(world, draw)]
    draw.shuffle(trials)
    seen: Counter[tuple[str, str]] = Counter()
    turns = []
    for trial in trials:
        cell = trial.command, trial.kind
        turns.append(seen[cell])
        seen[cell] += 1
    order = sorted(range(len(trials)), key=lambda i: (turns[i], i))
    return [trials[i] for i in order]


def _damages(world: World, draw: random.Random) -> Iterator[Trial]:
    for made, stage in enumerate(world.stages):
        readers = [i for i, other in enumerate(world.stages) if stage.name in other.reads]
        for file in world.made_by(made):
            is_json = file.endswith((".json", ".jsonl"))
            for kind in DAMAGES if is_json else [k for k in DAMAGES if k != _JSON]:
                for reader in (made, *readers):
                    yield Trial(stage.name, kind, reader, file, draw.randrange(1 << 30))


def _disturbed(world: World, kills: int, draw: random.Random) -> Iterator[Trial]:
    for number, stage in enumerate(world.stages):
        kinds = ["kill"] * kills
        if world.made_by(number):
            kinds += ["file limit"] * (kills // 2) + ["full disk"] * (
                kills if world.mounted else 0
            )
        for kind in kinds:
            yield Trial(stage.name, kind, number, seed=draw.randrange(1 << 30))


def run(world: World, trial: Trial) -> Result:
    """Do it, and judge."""
    if trial.file:
        return _damaged(world, trial)
    draw, stage = random.Random(trial.seed), world.stages[trial.number]
    world.restore(trial.number)
    if trial.kind == "kill":
        ended = world.run_stage(stage, kill_after=draw.uniform(0, world.seconds[trial.number]))
    elif trial.kind == "full disk":
        used = _size(world.work)
        grown = max(_size(world.states[trial.number + 1]) - used, 1 << 14)
        # Whole pages, and what the system itself needs for the folders.
        world.resize(
            str(shutil.disk_usage(world.work).used + int(draw.uniform(0, 1.2) * grown))
        )
        ended = world.run_stage(stage)
        world.resize()
    else:
        sizes = [
            (world.states[trial.number + 1] / f).stat().st_size
            for f in world.made_by(trial.number)
        ]
        ended = world.run_stage(stage, file_size=max(1, draw.uniform(0, max(sizes))))
    if trial.kind != "kill" and ended.status != 0:
        if "Traceback" in ended.said or ended.status not in (1, 2):
            return Result(trial, _crash(ended), ended.said[-600:])
        if not _names(ended.said, world.made_by(trial.number), ""):
            return Result(trial, "refused without a name", ended.said[-600:])
    again = world.run_stage(stage)
    found = _compared(world, trial, again)
    # Some commands write new folders alone, and refuse one that is whole already.
    if again.status and not (found.held and "is there already" in again.said):
        return Result(trial, "never ends well", again.said[-600:])
    return found


def _damaged(world: World, trial: Trial) -> Result:
    stage = world.stages[trial.number]
    reader = stage.name != trial.command
    world.restore(trial.number if reader else trial.number + 1)
    path = world.work / trial.file
    before = path.read_bytes()
    DAMAGES[trial.kind](path, random.Random(trial.seed))
    after = path.read_bytes() if path.exists() else None
    if before == after:
        return Result(trial, "not in its way", "nothing was changed")
    ended = world.run_stage(stage)
    if "Traceback" in ended.said or ended.status not in (0, 1, 2):
        return Result(trial, _crash(ended), ended.said[-600:])
    if ended.status:
        named = _names(ended.said, [trial.file], trial.file)
        outcome = "refused by name" if named else "refused without a name"
        return Result(trial, outcome, ended.said[-600:])
    now = path.read_bytes() if path.exists() else None
    if (
        now == after
        and not reader
        and path.name not in WRITTEN_BY_PEOPLE
        and not any(fnmatch(path.name, pattern) for pattern in NOT_LOOKED_AT)
    ):
        return Result(trial, "taken for right", ended.said[-600:])
    return _compared(world, trial, ended)


def _compared(world: World, trial: Trial, ended: Ended) -> Result:
    """Compare with what the command makes undisturbed, but for the damaged file itself."""
    wanted, usual = world.steady[trial.number], world.usual[trial.number]
    found = digests(world.work)
    own = trial.file
    wrong = sorted(n for n, d in wanted.items() if n != own and found.get(n) != d)
    if wrong and not _are_alike(world, trial.number, wrong):
        return Result(trial, "wrong result", f"{wrong[:3]}; {ended.said[-400:]}")
    extra = sorted(n for n in set(found) - usual if _is_rubbish(n))
    if extra:
        return Result(trial, "left behind", str(extra[:3]))
    if not own:
        return Result(trial, "same bytes")
    return Result(trial, "made anew" if found.get(own) == wanted.get(own) else "not in its way")


def _are_alike(world: World, number: int, names: list[str]) -> bool:
    """Whether files of other bytes hold the same, but for seconds."""
    return all(_is_alike(world.work / name, world.states[number + 1] / name) for name in names)


def _is_alike(path: Path, other: Path) -> bool:
    if not path.exists():
        return False
    if path.suffix == ".pt":
        return _equal(*(torch.load(p, weights_only=True) for p in (path, other)))
    if path.name == "SHA256SUMS":
        # Of files that are alike, or of steps that other runs saved at other times.
        return not damaged(path.parent, *(p.name for p in path.parent.iterdir()))
    if path.suffix in (".json", ".jsonl"):
        one, two = (
            [_timeless(json.loads(text)) for text in _documents(p)] for p in (path, other)
        )
        return one == two
    return False


def _documents(path: Path) -> list[str]:
    text = path.read_text()
    return text.splitlines() if path.suffix == ".jsonl" else [text]


def _equal(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return a == b


def _timeless(value: object) -> object:
    if isinstance(value, dict):
        times = [k for k in value if "seconds" in k or k in _TIMES]
        return {k: _timeless(v) for k, v in value.items() if k not in times}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


def _is_rubbish(name: str) -> bool:
    hidden = any(part.startswith(".") for part in Path(name).parts)
    return not name.endswith(".lock") and (hidden or name.endswith((".partial", ".old")))


def _crash(ended: Ended) -> str:
    return "traceback" if "Traceback" in ended.said else "ended by a signal"


def _names(said: str, files: list[str], own: str) -> bool:
    """Whether a sentence names one of the files, or the artefact that it belongs to."""
    places = set()
    for file in files:
        parts = Path(file).parts
        places |= {parts[-1], *(str(Path(*parts[:i])) for i in range(2, len(parts)))}
        # An array of a cache, as the cache itself calls it.
        places |= {"/".join(parts[2:-1])} - {""}
        # The folder of the run says of a damaged file nothing, of a full disk enough.
        if not own or parts[0] != "run":
            places.add(parts[0])
    return any(place in said for place in places)


def _size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
