"""A run: the folder of one pipeline, and how its artefacts are laid out.

    runs/NAME/
      cache.zarr             activations and tokens
      cache.yaml, .../ID.yaml    what made the artefacts beside them, for config=FILE
      random_model.zarr      those of a model with random weights, for a control
      harvest.json           time spent on them
      dictionaries/ID/       cfg.json and sae_weights.safetensors
      training/ID/           checkpoints, metrics.jsonl, time spent
      evals/ID.json          figures on held-out text
      evidence/ID.json       what the standard suite found, beside floors
      evidence.html          the dictionaries beside their controls, with verdicts
      saebench/              what the suite found, in SAEBench's files
      truth/ID.json          figures beside a world whose features are known
      atlas/ID/              tables and pages
      steering/ID.json, .png effect and cost of doses, beside baselines
      patching/NAME/         which places carry an answer: tables, pictures, a page
      probing/NAME/          what can be told from activations: tables, pictures, a page
      pooled/DIGEST/         one row a text, which probes are fitted to
      lens/NAME/             what a model would predict of a text, block by block
      tuned_lens/            affine maps of a tuned lens
      patchscopes/NAME.json  what the model says of a state or a feature
      export/ID/             a folder for others
      find/NAME.json         features that tell one text from another
      compare/A--B/          what two dictionaries share: a table and a page
      pareto.json .csv .png  the dictionaries compared
      truth.png              recipes compared on a world
      report.json .html      the report
      timings.json           time that a demo has worked

Nothing but these settings holds the path of the run itself, so that a run may be moved, or
reached through a link or a relative path.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sae.base import UserError, nearest, read_object, require, say
from sae.base.names import check_names
from sae.cache.store import is_url
from sae.controls import CONTROLS
from sae.dictionary import Dictionary, load_dictionary, save_dictionary
from sae.dictionary.files import CONFIG_FILE, read_record
from sae.run.making import make

RUN_CACHE = "{run}/cache.zarr"
"""The cache of a run, where no other is named."""
RANDOM_MODEL_CACHE = "{run}/random_model.zarr"
"""The cache of the same text in a model with random weights, which a control reads."""


def cache_location(run: str, cache: str) -> str:
    """Return where the cache of a command is; `{run}` in its name is the run's folder.

    Raises:
        UserError: for an empty name, or None from Python, which only a training can do without.
    """
    require(bool(cache), f"cache={cache}; this command needs a cache, so give its address")
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
    evidence = _PlaceOf("evidence/{}.json")
    evidence_page = _Place("evidence.html")
    saebench = _Place("saebench")
    truth = _PlaceOf("truth/{}.json")
    truth_picture = _Place("truth.png")
    atlas = _PlaceOf("atlas/{}")
    steering = _PlaceOf("steering/{}.json")
    steering_picture = _PlaceOf("steering/{}.png")
    patching = _PlaceOf("patching/{}")
    probing = _PlaceOf("probing/{}")
    pooled_rows = _PlaceOf("pooled/{}")
    lens = _PlaceOf("lens/{}")
    tuned_lens = _Place("tuned_lens")
    patchscope = _PlaceOf("patchscopes/{}.json")
    export = _PlaceOf("export/{}")
    comparison = _PlaceOf("compare/{}")
    found = _PlaceOf("find/{}.json")
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

    def controls(self, name: str) -> dict[str, str]:
        """Return the names of the controls of a dictionary that are there, by their kind."""
        there = self.dictionary_names
        named = {kind: control.named(name) for kind, control in CONTROLS.items()}
        return {kind: own for kind, own in named.items() if own in there}

    def load(self, name: str | None) -> tuple[str, Dictionary]:
        """Load the dictionary called `name`, with its name.

        With None it is the only one of the run, or of several the one that the last comparison
        of them all recommends, which is said.

        Raises:
            UserError: if there is none, or several to choose from.
        """
        names = self.dictionary_names
        make = f"make one with: sae train run={self.folder}"
        require(bool(names), f"{self.folder} contains no dictionaries; {make}")
        if name is None:
            name = names[0] if len(names) == 1 else self._recommended(names)
        if name not in names:
            near = nearest(name, names) or f"; it holds {', '.join(names[:5])}"
            raise UserError(f"dictionary={name} is not in {self.folder}{near}")
        return name, load_dictionary(self.dictionary(name))

    def _recommended(self, names: Sequence[str]) -> str:
        """Return the dictionary that a comparison of all of them recommends, and say so.

        Where all but one are controls it is that one; a control is never taken.

        Raises:
            UserError: if they were not compared, or the comparison is not of what is there now.
        """
        choose = (
            f"choose one with dictionary={names[0]} (or {', '.join(names[1:])}), or let a "
            f"comparison recommend one: sae eval run={self.folder}"
        )
        holds = f"{self.folder} holds {len(names)} dictionaries"
        controls = {own for name in names for own in self.controls(name).values()}
        # A control may have a name of its own.
        controls |= {n for n in names if read_record(self.dictionary(n)).control is not None}
        own = [name for name in names if name not in controls]
        if len(own) == 1:
            say(
                f"{own[0]} is taken, because all other dictionaries of {self.folder} are "
                "controls; dictionary=NAME chooses another"
            )
            return own[0]
        require(self.pareto("json").is_file(), f"{holds}; {choose}")
        found = read_object(self.pareto("json"), "run sae eval again")
        compared = {str(one.get("id")): one for one in found.get("dictionaries", list)}
        new = [name for name in names if name not in compared and name not in controls]
        unknown = ", ".join(new)
        require(not new, f"{holds}, and the last comparison did not know {unknown}; {choose}")
        name = found.get("recommended", str)
        require(name in names, f"{holds}, and {name}, recommended before, is gone; {choose}")
        require(
            name not in controls,
            f"{holds}, and {name}, recommended before, is a control; {choose}",
        )
        measured = compared.get(name, {}).get("dictionary_digest")
        changed = measured not in (None, load_dictionary(self.dictionary(name)).digest)
        require(not changed, f"{holds}, and {name} has changed since it was compared; {choose}")
        n = len(compared.keys() - controls)
        say(
            f"{name} is taken, which sae eval recommends among {n} dictionaries of "
            f"{self.folder}; dictionary=NAME chooses another"
        )
        return name

    def load_at(self, name: str | None, k: int | None, command: str) -> tuple[str, Dictionary]:
        """Load as `load` does; with `k` what becomes a dictionary of its own, `{name}-k-{k}`.

        Raises:
            UserError: if it is no topk dictionary, or one of other weights has that name.
        """
        name, found = self.load(name)
        wanted = found if k is None else found.with_k(k)
        if wanted.digest == found.digest:
            return name, found
        path = self.dictionary(f"{name}-k-{k}")
        make(path, path.exists, lambda new: save_dictionary(wanted, new), command=command)
        require(
            load_dictionary(path).digest == wanted.digest,
            f"{path} belongs to other weights than {name} has now; remove or rename it",
        )
        return path.name, wanted

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
