"""A run: the folder of one pipeline, how its artefacts are laid out, and how one is made.

    runs/NAME/
      cache.zarr             activations and tokens
      harvest.json           time spent on them
      dictionaries/ID/       cfg.json and sae_weights.safetensors
      training/ID/           checkpoints, metrics.jsonl, time spent
      evals/ID.json          figures on held-out text
      atlas/ID/              tables and pages
      steering/ID.json       doses and responses
      export/ID/             a folder for others
      pareto.json .csv .png  the dictionaries compared
      report.json .html      the report
      timings.json           time that a demo has worked

Nothing in it holds the path of the run itself, so that a run may be moved, or reached through a
link or a relative path.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from sae.base import (
    UserError,
    atomic_path,
    check_writable,
    nearest,
    only_process,
    remove_unfinished,
    require,
    say,
)
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
    return found if is_url(found) else str(Path(found))


class Measured(Protocol):
    """What was found out about a dictionary, such as its figures or its atlas."""

    @property
    def dictionary_digest(self) -> str | None:
        """Digest of the weights that were measured."""

    @property
    def hook_name(self) -> str | None:
        """Where they read, if that is known."""

    @property
    def hook_name_out(self) -> str | None:
        """Where they write, if that is known."""


@dataclass(frozen=True, slots=True)
class Run:
    """The folder of one pipeline; the only place that spells where things are in it."""

    folder: Path

    @classmethod
    def at(cls, folder: str | Path) -> "Run":
        """Return the run in a folder, which need not be there yet."""
        return cls(Path(folder))

    @property
    def harvest_timing(self) -> Path:
        """Time spent on the cache; kept out of it, as its bytes depend on its content alone."""
        return self.folder / "harvest.json"

    @property
    def dictionaries(self) -> Path:
        """Folder of the dictionaries."""
        return self.folder / "dictionaries"

    @property
    def atlases(self) -> Path:
        """Folder of the atlases."""
        return self.folder / "atlas"

    @property
    def trainings(self) -> Path:
        """Folder of what trainings keep for themselves."""
        return self.folder / "training"

    @property
    def evaluations(self) -> Path:
        """Folder of the figures on held-out text."""
        return self.folder / "evals"

    @property
    def steerings(self) -> Path:
        """Folder of the results of steering."""
        return self.folder / "steering"

    @property
    def report(self) -> Path:
        """The report's page."""
        return self.folder / "report.html"

    @property
    def report_data(self) -> Path:
        """The report's figures."""
        return self.folder / "report.json"

    @property
    def timings(self) -> Path:
        """Time that a demo has worked."""
        return self.folder / "timings.json"

    def pareto(self, ending: str) -> Path:
        """Return the comparison of the run's dictionaries, as `json`, `csv` or `png`."""
        return self.folder / f"pareto.{ending}"

    def dictionary(self, name: str) -> Path:
        """Return the folder of a dictionary."""
        return self.dictionaries / name

    def training(self, name: str) -> Path:
        """Return the folder of a dictionary's training: checkpoints, figures, time spent."""
        return self.trainings / name

    def evaluation(self, name: str) -> Path:
        """Return the file of a dictionary's figures."""
        return self.evaluations / f"{name}.json"

    def atlas(self, name: str) -> Path:
        """Return the folder of a dictionary's atlas."""
        return self.atlases / name

    def steering(self, name: str) -> Path:
        """Return the file of the results of steering with a dictionary."""
        return self.steerings / f"{name}.json"

    def export(self, name: str) -> Path:
        """Return the folder of an export."""
        return self.folder / "export" / name

    def dictionary_lock(self, name: str) -> Path:
        """Return the lock of whoever makes a dictionary, by training or by import."""
        return self.training(name) / ".lock"

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

        Args:
            command: the one that measures it again.

        Raises:
            UserError: if the dictionary's weights or hooks have changed since.
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

    def held(self) -> AbstractContextManager[None]:
        """Be the only process that makes it, with what killed ones left removed.

        Raises:
            UserError: if another process makes it.
        """


@dataclass(frozen=True, slots=True)
class PathArtefact:
    """A file or a folder that appears all at once."""

    path: Path
    current: Callable[[], bool]
    """Tells whether it is there, made of what it would be made of now."""
    lock: Path | None = None
    """File to lock; beside the path if left out."""

    @property
    def place(self) -> str:
        return str(self.path)

    def is_current(self) -> bool:
        return self.current()

    def held(self) -> AbstractContextManager[None]:
        return held(self.path, self.lock or self.path.parent / f".{self.path.name}.lock")


@contextmanager
def held(path: Path, lock: Path) -> Iterator[None]:
    """Be the only process that makes `path`, with what killed ones left of it removed.

    Raises:
        UserError: if another process makes it, or it cannot be written to.
    """

    def refusal(owner: str) -> UserError:
        who = f" ({owner})" if owner else ""
        return UserError(
            f"{path} is being made by another process{who}; wait until it is done, or give "
            "this one another name or place"
        )

    check_writable(path.parent)
    with only_process(lock, refusal):
        remove_unfinished(path.parent, path.name)
        yield


def make(
    path: Path,
    current: Callable[[], bool],
    build: Callable[[Path], None],
    *,
    command: str,
    lock: Path | None = None,
    check: Callable[[], None] = lambda: None,
) -> bool:
    """Make a file or a folder, unless it is there already; it appears all at once.

    Args:
        current: tells whether it is there, made of what it would be made of now.
        build: writes it at the place that it is given, which is moved to `path` at the end.
        command: begins the sentences that are said.
        lock: file to lock; beside the path if left out.
        check: refuses what cannot be made, before anything is locked or written.

    Returns:
        Whether it was made: False if it was there.

    Raises:
        UserError: if another process makes it.
    """

    def build_whole(_: Sequence[PathArtefact]) -> None:
        with atomic_path(path) as temporary:
            build(temporary)

    artefact = PathArtefact(path, current, lock)
    made = make_together([artefact], build_whole, command=command, check=lambda _: check())
    return bool(made)


AnyArtefact = TypeVar("AnyArtefact", bound=Artefact)


def make_together(
    artefacts: Sequence[AnyArtefact],
    build: Callable[[Sequence[AnyArtefact]], None],
    *,
    command: str,
    check: Callable[[Sequence[AnyArtefact]], None] = lambda _: None,
) -> list[AnyArtefact]:
    """Make several artefacts by one piece of work, but those that are there already.

    Args:
        build: makes those that it is given, each whole or not at all.
        command: begins the sentences that are said.
        check: refuses those that cannot be made, before anything is locked or written.

    Returns:
        Those that were made.

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


def missing(artefacts: Sequence[AnyArtefact], command: str) -> list[AnyArtefact]:
    """Return those that are still to be made; of the others it is said that they are reused."""
    left = [one for one in artefacts if not one.is_current()]
    reused = [one.place for one in artefacts if one not in left]
    if len(reused) == 1:
        say(f"{command}: {reused[0]} is there already, reused")
    elif reused:
        say(f"{command}: {len(reused)} of {len(artefacts)} are there already, reused")
    return left
