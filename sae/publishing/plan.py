"""What an export is to hold and where it goes, with all that can be refused beforehand."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

from sae.atlas import Atlas, read_labels
from sae.base import UserError, digest, require
from sae.dictionary import Dictionary
from sae.dictionary.storage import FULL, named_dtype
from sae.exchange.formats import check_holds, named_format
from sae.exchange.formats.saelens import SAELens
from sae.exchange.formats.sparsify import Sparsify, hookpoint
from sae.exchange.stamp import (
    CARD_FILE,
    LAYOUT,
    STAMP_FILE,
    differences,
    read_stamp,
    spoken,
    subject,
)
from sae.figures import Figures
from sae.publishing.push import check_repository
from sae.run import RUN_CACHE, Run, cache_location, lock_of

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """Write a dictionary, its feature tables and a card to a folder that others can load.

    The folder is a model repository and a data set at once; `push=ORG/NAME` puts it on the Hub.
    """

    run: str = "runs/default"
    """Folder of the run."""
    dictionary: str | None = None
    """Name of the dictionary, which must be evaluated and analyzed. You may leave it out if the
    run has only one."""
    format: str = "saelens"
    """Tool that is to load the dictionary: saelens, sparsify, dictionary_learning, openai,
    openmoss, gemma_scope or gemma_scope_2. Not every format can hold every dictionary."""
    out: str | None = None
    """Folder to write. By default it is `{run}/export/{dictionary}`, with `-{format}` added for
    a format other than saelens, `-{dtype}` for a dtype other than float32, and `-alive` for
    drop_dead=true. An earlier export of the same dictionary is replaced, unless somebody has
    changed something in its folder."""
    dtype: str = "float32"
    """Precision of the weights in the files: float32, bfloat16, float16, or int8, which only
    `sae.load` reads. The loss in quality is measured and written into the card. All but float32
    need `format=saelens`."""
    drop_dead: bool = False
    """Leave out the features that fired nowhere in the atlas. The others get new numbers, and
    `feature_map.csv` and the column `original_feature` keep the old ones."""
    cache: str = RUN_CACHE
    """Cache on whose held-out text `dtype` and `drop_dead` are measured."""
    license: str | None = None
    """Licence to name in the card, as the Hub writes it: apache-2.0, mit, cc-by-4.0, ..."""
    push: str | None = None
    """Repository `ORG/NAME` on the Hugging Face Hub. The folder is uploaded there as a model,
    and its tables and its card also as a data set of the same name."""
    private: bool = False
    """Make the repositories of `push` private."""
    dry_run: bool = False
    """Show every file with its size, without writing or uploading anything."""

    def __post_init__(self) -> None:
        named_format(self.format)
        dtype = named_dtype(self.dtype)
        require(
            dtype == FULL or self.format == SAELens.name,
            f"dtype={self.dtype} format={self.format}: only format=saelens records the type "
            "of its weights; leave out one of the two",
        )
        require(
            self.license is None or _LICENSE.fullmatch(self.license) is not None,
            f"license={self.license} is not a licence that the Hub knows; give apache-2.0, "
            "mit, cc-by-4.0 or another one from "
            "https://huggingface.co/docs/hub/repositories-licenses",
        )
        if self.push is not None:
            check_repository(self.push)
        require(
            self.push is not None or not self.private,
            "private=true has an effect only on the Hub; add push=ORG/NAME",
        )

    def idle_keys(self) -> dict[str, str | None]:
        """Return where to measure, if the dictionary stays as it is."""
        changed = self.drop_dead or named_dtype(self.dtype) != FULL
        return {} if changed else {"cache": "dtype=bfloat16, float16, int8 or drop_dead=true"}

    @property
    def cache_location(self) -> str:
        """Path or address of the cache that is read."""
        return cache_location(self.run, self.cache)

    def folder(self, name: str) -> Path:
        """Return where the export of the dictionary `name` goes."""
        if self.out:
            return Path(self.out)
        dtype = named_dtype(self.dtype)
        said = (self.format != SAELens.name, dtype != FULL, self.drop_dead)
        words = compress((self.format, dtype, "alive"), said)
        return Run.at(self.run).export("-".join((name, *words)))


@dataclass(frozen=True, slots=True)
class Plan:
    """What goes into the folder of an export, checked."""

    config: ExportConfig
    name: str
    dictionary: Dictionary
    atlas: Atlas
    figures: Figures
    controls: tuple[Figures, ...]
    """Figures of its controls, as far as they were measured in their present state."""
    target: Path
    digest: str
    """Identifies everything that goes into the export."""

    @property
    def place(self) -> Path:
        """Where the folder really is: `target` may be a link."""
        return Path(os.path.realpath(self.target))

    @property
    def lock(self) -> Path:
        """Lock of whoever writes there; not beside a folder that holds nothing of ours."""
        return lock_of("export", self.place)

    @property
    def subject(self) -> dict[str, str]:
        """Which dictionary the export is of."""
        return subject(self.name, self.dictionary)

    @property
    def dtype(self) -> str:
        """Precision of the weights."""
        return named_dtype(self.config.dtype)

    @property
    def subfolder(self) -> str:
        """The folder named after the hook, as SAELens has it; for sparsify after the module."""
        if self.config.format == Sparsify.name:
            return hookpoint(self.dictionary)
        return self.dictionary.hook_name

    @property
    def has_ce(self) -> bool:
        """Whether the model predicts a next token, so that a dictionary costs it something."""
        return "ce_loss_without_sae" in self.figures.values

    @property
    def changes_weights(self) -> bool:
        """Whether the dictionary may be another one once it is loaded."""
        return self.dtype != FULL or self.config.drop_dead


def plan(config: ExportConfig) -> Plan:
    """Plan an export, and refuse what could not be one.

    Raises:
        UserError: if the dictionary was not evaluated or analyzed as it is now, the format
            cannot hold it, or a file of it is damaged.
    """
    run = Run.at(config.run)
    name, dictionary = run.load(config.dictionary)
    check_holds(named_format(config.format), dictionary)
    atlas, figures_path = Atlas(run.atlas(name)), run.evaluation(name)
    for path, command in ((atlas.folder, "analyze"), (figures_path, "eval")):
        require(
            path.exists(),
            f"{path} is missing; run first: sae {command} run={config.run} dictionary={name}",
        )
    figures = Figures.read(figures_path)
    run.check_measured(name, dictionary, figures, "eval")
    run.check_measured(name, dictionary, atlas.record, "analyze")
    controls = tuple(_controls(run, name))
    # Labels may be edited at any time. A broken file is refused here, and so is a table.
    labels = digest(read_labels(atlas.folder))
    for table in (atlas.feature_table, atlas.context_table):
        table(["feature"])
    told = [one.to_json() for one in (figures, *controls)]
    measured = [told, atlas.record.digest, dictionary.digest, labels]
    asked = [config.format, named_dtype(config.dtype), config.drop_dead]
    shown = [config.license, config.push]
    wanted = digest([LAYOUT, *measured, *asked, *shown])
    target = config.folder(name)
    found = Plan(config, name, dictionary, atlas, figures, controls, target, wanted)
    require(
        Path(found.subfolder).name == found.subfolder != "..",
        f"{name} belongs to the hook {found.subfolder}, which cannot be the name of a folder",
    )
    return found


def _controls(run: Run, name: str) -> Iterator[Figures]:
    for own in run.controls(name).values():
        path = run.evaluation(own)
        if path.exists():
            figures = Figures.read(path)
            if figures.dictionary_digest == run.load(own)[1].digest:
                yield figures


def is_there(plan: Plan) -> bool:
    """Return whether the folder is there as it would be written, but for a card edited by hand.

    Raises:
        UserError: if it would have to be replaced and is not an export's alone.
    """
    target, other = plan.target, "choose another folder with out=..."
    if not plan.place.exists():
        return False
    require(plan.place.is_dir(), f"{target} is a file, where an export is a folder; {other}")
    if any(plan.place.iterdir()) and _is_current(plan, other):
        return True
    require(
        not Path.cwd().is_relative_to(plan.place) and not plan.place.is_mount(),
        f"{target} would be replaced as a whole, but it is a disk of its own or your "
        f"current folder; {other}",
    )
    return False


def _is_current(plan: Plan, other: str) -> bool:
    target = plan.target
    stamp_path = plan.place / STAMP_FILE
    require(stamp_path.is_file(), f"{target} contains something that is not an export; {other}")
    stamp = read_stamp(stamp_path)
    if stamp is None:
        raise UserError(
            f"{target / STAMP_FILE} is damaged, or was not written by this version of sae "
            f"export, so {target} is not replaced; move that folder away, or {other}"
        )
    require(
        stamp.of == plan.subject,
        f"{target} is the export of another dictionary, {spoken(stamp.of)}, and this one is "
        f"{spoken(plan.subject)}; {other}",
    )
    strange, missing, edited = differences(plan.place, stamp)
    require(
        not strange,
        f"{target} holds {', '.join(strange[:3])} beside the export; move that away, or "
        f"{other}",
    )
    # Where the model was not to be had, it may be now.
    cost = stamp.shrunk
    measured = cost is None or cost["n_behaviour_tokens"] > 0 or not plan.has_ce
    current = stamp.digest == plan.digest and measured and not missing
    if current and set(edited) <= {CARD_FILE}:
        return True
    require(
        not edited,
        f"{target} would be replaced, but {', '.join(edited[:3])} in it changed since it "
        f"was exported; move that out of the folder, or {other}",
    )
    return False
