"""`sae export`: a dictionary, its features and its card in one folder, ready for the Hub."""

import os
import re
import shutil
import tempfile
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from sae.atlas.atlas import Atlas
from sae.atlas.examples import clearest_features
from sae.atlas.labels import read_labels, write_labels
from sae.atlas.schema import CONTEXTS, FEATURES
from sae.atlas.subset import write_subset
from sae.base.assets import cache_folder
from sae.base.errors import UserError, require
from sae.base.files import (
    atomic_path,
    check_writable,
    only_process,
    remove_unfinished,
    write_text,
)
from sae.base.progress import say
from sae.base.provenance import digest
from sae.cache.layout import RUN_CACHE, cache_location
from sae.commands.common import check_measured_on, named_dictionary
from sae.commands.shrink import Smaller, held_out_rows, shrink
from sae.dictionary import Dictionary
from sae.dictionary.files import save_dictionary, save_sparsity
from sae.dictionary.storage import FULL, named_dtype
from sae.exchange.card import Export, model_card
from sae.exchange.formats import (
    check_holds,
    named_format,
    saelens,
    sparsify,
    write_dictionary,
)
from sae.exchange.push import TABLES, check_can_push, check_repository, push
from sae.exchange.shrink import nested_widths, save_directions
from sae.exchange.stamp import (
    CARD_FILE,
    LAYOUT,
    STAMP_FILE,
    differences,
    read_stamp,
    spoken,
    subject,
    write_stamp,
)
from sae.figures import Figures
from sae.reporting.cache_table import size

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """Write a dictionary, its feature tables and a card to a folder that others can load.

    The folder is a model repository and a data set at once; `push=ORG/NAME` puts it on the Hub.
    """

    run: str = "runs/default"
    """Folder of the run."""
    dictionary: str | None = None
    """Name of the dictionary, evaluated and analyzed; may be left out if the run has one
    alone."""
    format: str = "saelens"
    """Tool that is to load the dictionary: saelens, sparsify, dictionary_learning, openai,
    openmoss, gemma_scope or gemma_scope_2. Not every format can hold every dictionary."""
    out: str | None = None
    """Folder to write; by default `{run}/export/{dictionary}`, with `-{format}` where that is
    not saelens, `-{dtype}` where that is not float32, and `-alive` with drop_dead=true. An
    export of the same dictionary is replaced, unless something in its folder was changed."""
    dtype: str = "float32"
    """Precision of the weights in the files: float32, bfloat16, float16, or int8, which only
    `sae.load` reads. What that costs is measured and written into the card. Any other than
    float32 needs `format=saelens`."""
    drop_dead: bool = False
    """Leave out the features that fired nowhere in the atlas, if there are any. The others are
    numbered anew; `feature_map.csv` and the column `original_feature` have the numbers of
    before."""
    cache: str = RUN_CACHE
    """Cache on whose held-out text `dtype` and `drop_dead` are measured."""
    license: str | None = None
    """Licence to name in the card, as the Hub writes it: apache-2.0, mit, cc-by-4.0, ..."""
    push: str | None = None
    """Repository `ORG/NAME` on the Hugging Face Hub: the folder goes there as a model, and its
    tables and card as a data set of the same name as well."""
    private: bool = False
    """Make the repositories of `push` private."""
    dry_run: bool = False
    """Show every file with its size, and write and push nothing."""

    def __post_init__(self) -> None:
        named_format(self.format)
        dtype = named_dtype(self.dtype)
        require(
            dtype == FULL or self.format == saelens.NAME,
            f"dtype={self.dtype} format={self.format}: only format=saelens says in which type "
            "its weights are; leave out one of the two",
        )
        require(
            self.license is None or _LICENSE.fullmatch(self.license) is not None,
            f"license={self.license} is no licence as the Hub writes it; give apache-2.0, mit, "
            "cc-by-4.0 or another one of https://huggingface.co/docs/hub/repositories-licenses",
        )
        if self.push is not None:
            check_repository(self.push)
        require(
            self.push is not None or not self.private,
            "private=true is of what goes to the Hub; add push=ORG/NAME",
        )

    def folder(self, name: str) -> Path:
        """Where the export of the dictionary `name` goes."""
        if self.out:
            return Path(self.out)
        parts = [name]
        if self.format != saelens.NAME:
            parts.append(self.format)
        if named_dtype(self.dtype) != FULL:
            parts.append(named_dtype(self.dtype))
        if self.drop_dead:
            parts.append("alive")
        return Path(self.run) / "export" / "-".join(parts)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What goes into the folder, checked."""

    config: ExportConfig
    name: str
    dictionary: Dictionary
    atlas: Atlas
    figures: Figures
    target: Path
    digest: str

    @property
    def place(self) -> Path:
        """Where the folder really is: `target` may be a link."""
        return Path(os.path.realpath(self.target))

    @property
    def of(self) -> dict[str, str]:
        """Of which dictionary the export is."""
        return subject(self.name, self.dictionary)

    @property
    def dtype(self) -> str:
        """Of the weights."""
        return named_dtype(self.config.dtype)

    @property
    def subfolder(self) -> str:
        """SAELens's way on the Hub: a folder for each dictionary, named after its hook.

        sparsify's tools look for the module of that name.
        """
        if self.config.format == sparsify.NAME:
            return sparsify.hookpoint(self.dictionary)
        return self.dictionary.hook_name


def run(config: ExportConfig) -> Path:
    """Write the folder; there it replaces what an export of the same dictionary left, only."""
    plan = _planned(config)
    if config.dry_run:
        _is_there(plan)
        with tempfile.TemporaryDirectory() as scratch:
            _write(plan, Path(scratch))
            _show(plan, Path(scratch))
        return plan.target
    with _only_export(plan.place):
        if _is_there(plan):
            say(f"export: {plan.target} is there already, reused")
        else:
            remove_unfinished(plan.place.parent, plan.place.name)
            with atomic_path(plan.place) as temporary:
                temporary.mkdir()
                _write(plan, temporary)
                # What somebody put there meanwhile stays.
                _is_there(plan)
            say(f"export: {plan.target}: {_summary(plan.place)}")
        if config.push is not None:
            push(plan.target, config.push, private=config.private)
            say(f"export: {plan.target} is on the Hub now, as model and data set {config.push}")
    return plan.target


def _planned(config: ExportConfig) -> _Plan:
    """All that can be refused before anything is computed or written."""
    run_folder = Path(config.run)
    if config.push is not None and not config.dry_run:
        check_can_push(config.push)
    name, dictionary = named_dictionary(run_folder, config.dictionary)
    check_holds(named_format(config.format), dictionary)
    target = config.folder(name)
    check_writable(Path(os.path.realpath(target)).parent)
    atlas = Atlas(run_folder / "atlas" / name)
    figures_path = run_folder / "evals" / f"{name}.json"
    for path, stage in ((atlas.folder, "analyze"), (figures_path, "eval")):
        require(
            path.exists(),
            f"{path} is missing; run first: sae {stage} run={run_folder} dictionary={name}",
        )
    figures = Figures.read(figures_path)
    for stage, about in (("eval", figures.to_json()), ("analyze", atlas.record.to_json())):
        check_measured_on(dictionary, about, f"{stage} run={run_folder} dictionary={name}")
    # Labels may be edited at any time. A broken file is refused here, and so is a table.
    labels = digest(read_labels(atlas.folder))
    for table in (atlas.feature_table, atlas.context_table):
        table(["feature"])
    measured = [figures.to_json(), atlas.record.digest, dictionary.digest, labels]
    asked = [config.format, named_dtype(config.dtype), config.drop_dead]
    shown = [config.license, config.push]
    wanted = digest([LAYOUT, *measured, *asked, *shown])
    plan = _Plan(config, name, dictionary, atlas, figures, target, wanted)
    require(
        Path(plan.subfolder).name == plan.subfolder != "..",
        f"{name} is of the hook {plan.subfolder}, which is no name of one folder",
    )
    return plan


def _is_there(plan: _Plan) -> bool:
    """Whether the folder is there as it would be written, but for a card edited by hand.

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
        f"{target} would be replaced as a whole, but is a disk of its own, or you are in it; "
        f"{other}",
    )
    return False


def _is_current(plan: _Plan, other: str) -> bool:
    """The same of a folder that is not empty."""
    target = plan.target
    stamp_path = plan.place / STAMP_FILE
    require(stamp_path.is_file(), f"{target} holds something that is no export; {other}")
    stamp = read_stamp(stamp_path)
    if stamp is None:
        raise UserError(
            f"{target / STAMP_FILE} is damaged, or nothing that this version of sae export "
            f"wrote, so that {target} is not replaced; move that folder away, or {other}"
        )
    require(
        stamp.of == plan.of,
        f"{target} is the export of another dictionary, {spoken(stamp.of)}, and this one is "
        f"{spoken(plan.of)}; {other}",
    )
    found = differences(plan.place, stamp)
    require(
        not found.strange,
        f"{target} holds {', '.join(found.strange[:3])} beside the export; move that away, or "
        f"{other}",
    )
    # Where the model was not to be had, it may be now.
    cost = stamp.shrunk
    measured = cost is None or cost["n_behaviour_tokens"] > 0 or not _has_ce(plan)
    current = stamp.digest == plan.digest and measured and not found.missing
    if current and set(found.edited) <= {CARD_FILE}:
        return True
    require(
        not found.edited,
        f"{target} would be replaced, but {', '.join(found.edited[:3])} in it changed since it "
        f"was exported; move that out of the folder, or {other}",
    )
    return False


def _has_ce(plan: _Plan) -> bool:
    """Whether the model predicts a next token, so that a dictionary costs it something."""
    return "ce_loss_score" in plan.figures.values


def _only_export(place: Path) -> AbstractContextManager[None]:
    """What another process left unfinished may be removed only while none is at it.

    The lock is not beside the folder, which may be anywhere and hold nothing of ours.
    """
    lock = cache_folder() / "locks" / f"export-{digest(str(place))}"
    return only_process(
        lock,
        lambda who: UserError(
            f"{place} is being written by another sae export ({who}); wait until it is done"
        ),
    )


def _write(plan: _Plan, folder: Path) -> None:
    """Put everything into `folder`, an empty one."""
    config, place = plan.config, folder / plan.subfolder
    smaller = _smaller(plan)
    if config.format == saelens.NAME:
        save_dictionary(smaller.dictionary, place, plan.dtype)
        densities = plan.atlas.feature_table(["density"])["density"].to_numpy()
        save_sparsity(torch.from_numpy(densities[smaller.kept]), place)
    else:
        write_dictionary(smaller.dictionary, place, config.format)
    save_directions(smaller.dictionary, folder, plan.dtype)
    if len(smaller.kept) < plan.dictionary.d_sae:
        write_subset(plan.atlas, smaller.kept, folder)
    else:
        for table in (FEATURES, CONTEXTS):
            shutil.copyfile(plan.atlas.folder / table.file, folder / table.file)
        # Not as a person left it, but as queries can read it.
        write_labels(folder, read_labels(plan.atlas.folder))
    about = Export(
        folder=plan.subfolder,
        format=config.format,
        dtype=plan.dtype,
        shrunk=smaller.cost,
        nested=nested_widths(plan.dictionary, smaller.kept),
        license=config.license,
        repository=config.push,
        atlas=plan.atlas.record,
        examples=clearest_features(plan.atlas, 10, 1, smaller.kept),
    )
    card = model_card(smaller.dictionary, plan.figures, len(smaller.kept), about)
    write_text(folder / CARD_FILE, card)
    cost = None if smaller.cost is None else asdict(smaller.cost)
    write_stamp(folder, plan.digest, plan.of, plan.figures.to_json(), cost)


def _smaller(plan: _Plan) -> Smaller:
    """The dictionary as it will be loaded, and what that costs."""
    config = plan.config
    if plan.dtype == FULL and not config.drop_dead:
        return Smaller.not_at_all(plan.dictionary)
    location = cache_location(config.run, config.cache)
    rows = held_out_rows(plan.name, plan.dictionary, location)
    n_active = plan.atlas.feature_table(["n_active"])["n_active"].to_numpy()
    if config.drop_dead and n_active.all():
        say("export: drop_dead=true leaves nothing out, for every feature fired")
    return shrink(
        plan.dictionary,
        rows,
        plan.dtype,
        n_active if config.drop_dead else None,
        causal=_has_ce(plan),
    )


def _files(folder: Path) -> dict[str, int]:
    """The size of every file."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_size for path in found}


def _summary(folder: Path) -> str:
    sizes = _files(folder).values()
    return f"{len(sizes)} files, {size(sum(sizes))}"


def _show(plan: _Plan, folder: Path) -> None:
    """Every file with its size, and where each would go."""
    files = {name: f"{n:,}" for name, n in _files(folder).items()}
    wide = max(map(len, files)), max(map(len, files.values()))
    say(f"export: {plan.target} would hold {_summary(folder)}")
    for name, n_bytes in files.items():
        say(f"  {name:<{wide[0]}}  {n_bytes:>{wide[1]}}")
    if plan.config.push is not None:
        say(
            f"export: all of them would go to the model {plan.config.push}, and "
            f"{', '.join(TABLES)} to the data set of that name"
        )
