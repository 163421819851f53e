"""A run: the folder of one pipeline, how its artefacts are laid out, and how one is made.

    runs/NAME/
      cache.zarr             activations and tokens
      harvest.json           time spent on them
      dictionaries/ID/       cfg.json and sae_weights.safetensors
      training/ID/           checkpoints, metrics.jsonl, time spent
      evals/ID.json          figures on held-out text
      truth/ID.json          figures beside a world whose features are known
      atlas/ID/              tables and pages
      steering/ID.json, .png effect and cost of doses, beside baselines
      patching/NAME/         which places carry an answer: tables, pictures, a page
      lens/NAME/             what a model would predict of a text, block by block
      tuned_lens/            affine maps of a tuned lens
      patchscopes/NAME.json  what the model says of a state or a feature
      export/ID/             a folder for others
      pareto.json .csv .png  the dictionaries compared
      truth.png              recipes compared on a world
      report.json .html      the report
      timings.json           time that a demo has worked

Nothing in it holds the path of the run itself, so that a run may be moved, or reached through a
link or a relative path.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from sae.base import (
    UserError,
    atomic_path,
    check_writable,
    digest,
    nearest,
    note,
    only_process,
    remove_unfinished,
    require,
    say,
    unfinished,
)
from sae.base.assets import cache_folder
from sae.base.names import check_names, check_new
from sae.cache.store import is_url
from sae.dictionary import Dictionary, load_dictionary
from sae.dictionary.files import CONFIG_FILE

RUN_CACHE = "{run}/cache.zarr"
"""The cache of a run, where no other is named."""


def cache_location(run: str, cache: str) -> str:
    """Return where the cache of a command is; `{run}` in its name is the run's folder.

    Raises:
        UserError: for an empty name, or None from Python, which only a training can do without.
    """
    require(bool(cache), f"cache={cache}; this command reads a cache, so give its place")
    found = cache.replace("{run}", run)
    if is_url(found):
        return found
    check_names(found)
    return str(Path(found))


class Measured(Protocol):
    """What was found out about a dictionary: its figures, or its atlas.

    It names the weights by their digest, and the hooks that they read and write if it knows.
    """

    @property
    def dictionary_digest(self) -> str | None: ...

    @property
    def hook_name(self) -> str | None: ...

    @property
    def hook_name_out(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class _Place:
    """One path in every run."""

    path: str

    def __get__(self, run: "Run", _: object) -> Path:
        return run.folder / self.path


@dataclass(frozen=True, slots=True)
class _PlaceOf:
    """A path in every run for each name, which stands at the braces."""

    path: str

    def __get__(self, run: "Run", _: object) -> Callable[[str], Path]:
        return lambda name: run.folder / self.path.format(name)


@dataclass(frozen=True, slots=True)
class Run:
    """The folder of one pipeline; the only place that spells where things are in it."""

    folder: Path

    @classmethod
    def at(cls, folder: str | Path) -> "Run":
        """Return the run in a folder, which need not be there yet."""
        check_names(folder)
        return cls(Path(folder))

    dictionaries = _Place("dictionaries")
    atlases = _Place("atlas")
    evaluations = _Place("evals")
    # Kept out of the cache, as its bytes depend on its content alone.
    harvest_timing = _Place("harvest.json")
    report = _Place("report.html")
    report_data = _Place("report.json")
    timings = _Place("timings.json")
    pareto = _PlaceOf("pareto.{}")
    dictionary = _PlaceOf("dictionaries/{}")
    training = _PlaceOf("training/{}")
    evaluation = _PlaceOf("evals/{}.json")
    truth = _PlaceOf("truth/{}.json")
    truth_picture = _Place("truth.png")
    atlas = _PlaceOf("atlas/{}")
    steering = _PlaceOf("steering/{}.json")
    steering_picture = _PlaceOf("steering/{}.png")
    patching = _PlaceOf("patching/{}")
    lens = _PlaceOf("lens/{}")
    tuned_lens = _Place("tuned_lens")
    patchscope = _PlaceOf("patchscopes/{}.json")
    export = _PlaceOf("export/{}")
    # Edit files that somebody put there, which the pages offer as presets.
    edits = _Place("edits")
    # Whoever makes a dictionary holds it, a training as well as an import.
    dictionary_lock = _PlaceOf("training/{}/.lock")

    @property
    def dictionary_names(self) -> list[str]:
        """The dictionaries that are there, by name."""
        found = (path.parent.name for path in self.dictionaries.glob(f"*/{CONFIG_FILE}"))
        # A folder that starts with a dot is one that a killed process did not finish.
        return sorted(name for name in found if not name.startswith("."))

    @property
    def evaluated_names(self) -> set[str]:
        """The dictionaries whose figures are there."""
        return {path.stem for path in self.evaluations.glob("[!.]*.json")}

    def load(self, name: str | None) -> tuple[str, Dictionary]:
        """Load the dictionary called `name`, with its name; with None the only one of the run.

        Raises:
            UserError: if there is none, or several to choose from.
        """
        names = self.dictionary_names
        make = f"make one with: sae train run={self.folder}"
        require(bool(names), f"{self.folder} holds no dictionaries; {make}")
        if name is None:
            require(
                len(names) == 1,
                f"{self.folder} holds {len(names)} dictionaries; choose one with "
                f"dictionary={names[0]} (or {', '.join(names[1:])})",
            )
            name = names[0]
        if name not in names:
            near = nearest(name, names) or f"; it holds {', '.join(names[:5])}"
            raise UserError(f"dictionary={name} is not in {self.folder}{near}")
        return name, load_dictionary(self.dictionary(name))

    def check_measured(
        self, name: str, dictionary: Dictionary, measured: Measured, command: str
    ) -> None:
        """Refuse what was measured on other weights than carry the name now, or elsewhere.

        The refusal names the `command` that measures it again.
        """
        found = measured.hook_name, measured.hook_name_out
        hooks = zip(found, dictionary.hook_names, strict=True)
        require(
            measured.dictionary_digest == dictionary.digest
            and all(one in (None, hook) for one, hook in hooks),
            "the dictionary has changed since it was measured; run again: "
            f"sae {command} run={self.folder} dictionary={name}",
        )


class Artefact(Protocol):
    """Something that a command makes once and then finds again."""

    @property
    def place(self) -> str:
        """Where it is, for people."""

    def is_current(self) -> bool:
        """Return whether it is there, made of what it would be made of now."""

    def is_littered(self) -> bool:
        """Return whether processes that were killed left something of it."""

    def held(self) -> AbstractContextManager[None]:
        """Be the only process that makes it, or refuse; what killed ones left is removed."""


@dataclass(frozen=True, slots=True)
class PathArtefact:
    """A file or a folder that appears all at once."""

    path: Path
    current: Callable[[], bool]
    """Tells whether it is there, made of what it would be made of now."""
    lock: Path | None = None
    """File to lock; beside the path if left out."""
    work: Path | None = None
    """Folder of what outlives a kill until it is made."""

    @property
    def place(self) -> str:
        return str(self.path)

    def is_current(self) -> bool:
        return self.current()

    def is_littered(self) -> bool:
        begun = self.work is not None and self.work.exists()
        return begun or bool(unfinished(self.path.parent, self.path.name))

    @contextmanager
    def held(self) -> Iterator[None]:
        with held(self.path, self.lock or self.path.parent / f".{self.path.name}.lock"):
            yield
            if self.work is not None:
                shutil.rmtree(self.work, ignore_errors=True)


@contextmanager
def held(path: Path, lock: Path) -> Iterator[None]:
    """Be the only process that makes `path`, or refuse; what killed ones left is removed."""

    def refusal(owner: str) -> UserError:
        who = f" ({owner})" if owner else ""
        return UserError(
            f"{path} is being made by another process{who}; wait until it is done, or give "
            "this one another name or place"
        )

    check_new(str(path))
    check_writable(path.parent)
    with only_process(lock, refusal):
        remove_unfinished(path.parent, path.name)
        yield


def lock_of(kind: str, place: Path) -> Path:
    """Return the lock of whoever writes `place`; not beside it, for it may be anywhere."""
    return cache_folder() / "locks" / f"{kind}-{digest(str(place.resolve()))}"


def check_free(target: Path) -> None:
    """Refuse, before any work, a folder that is there already or could not be written."""
    require(not target.exists(), f"{target} is there already; choose another or remove it")
    check_writable(target.parent)


@contextmanager
def new_folder(target: Path, lock: Path) -> Iterator[Path]:
    """Give a folder to write to, moved to `target` when all went well.

    What a killed process left of it is removed first. Whatever else writes `target` holds the
    `lock` too.

    Raises:
        UserError: if it is there, or another process writes it.
    """
    check_free(target)
    with held(target, lock), atomic_path(target) as temporary:
        temporary.mkdir()
        yield temporary
        # Whoever does not know of the lock may have made one meanwhile.
        check_free(target)


def make(
    path: Path,
    current: Callable[[], bool],
    build: Callable[[Path], None],
    *,
    command: str,
    lock: Path | None = None,
    work: Path | None = None,
    replace: Callable[[Path, Path], None] | None = None,
) -> bool:
    """Make a file or a folder, unless it is there already, and return whether it was made.

    Args:
        current: tells whether it is there, made of what it would be made of now.
        build: writes it at the place that it is given, which is moved to `path` at the end.
        command: begins the sentences that are said.
        lock: file to lock; beside the path if left out.
        work: folder in which `build` keeps what is to outlive a kill; it goes in the end.
        replace: puts a new folder in the place of one that stands there, see `atomic_path`.

    Raises:
        UserError: if another process makes it.
    """

    def build_whole(_: Sequence[PathArtefact]) -> None:
        with atomic_path(path, replace) as temporary:
            build(temporary)
            if temporary.is_file():
                note(path, temporary)

    artefact = PathArtefact(path, current, lock, work)
    return bool(make_together([artefact], build_whole, command=command))


AnyArtefact = TypeVar("AnyArtefact", bound=Artefact)


def make_together(
    artefacts: Sequence[AnyArtefact],
    build: Callable[[Sequence[AnyArtefact]], None],
    *,
    command: str,
    check: Callable[[Sequence[AnyArtefact]], None] = lambda _: None,
) -> list[AnyArtefact]:
    """Make several artefacts but those that are there already, and return those made.

    Args:
        build: makes those that it is given, each whole or not at all.
        command: begins the sentences that are said.
        check: refuses those that cannot be made, before anything is locked or written.

    Raises:
        UserError: if another process makes one of them.
    """
    left = missing(artefacts, command)
    if left:
        check(left)
    with ExitStack() as stack:
        for one in left:
            stack.enter_context(one.held())
        # Asked again: whoever held it before may have finished it.
        left = [one for one in left if not one.is_current()]
        if left:
            build(left)
    return left


def _tidy(artefact: Artefact) -> None:
    """Remove what killed processes left of an artefact that is there, if nobody makes it now.

    Where that cannot be done, as on a disk that may only be read, it stays.
    """
    if artefact.is_littered():
        with suppress(UserError, OSError), artefact.held():
            pass


def missing(artefacts: Sequence[AnyArtefact], command: str) -> list[AnyArtefact]:
    """Return those that are still to be made; of the others it is said that they are reused."""
    left = [one for one in artefacts if not one.is_current()]
    for one in left:
        check_new(one.place)
    reused = [one.place for one in artefacts if one not in left]
    if len(reused) == 1:
        say(f"{command}: {reused[0]} is there already, reused")
    elif reused:
        say(f"{command}: {len(reused)} of {len(artefacts)} are there already, reused")
    for one in artefacts:
        if one not in left:
            _tidy(one)
    return left
