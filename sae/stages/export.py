"""`sae export`: a dictionary, its features and its card in one folder, ready for the Hub."""

import re
import shutil
import tempfile
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sae.analysis.atlas import CONTEXTS_FILE, FEATURES_FILE, Atlas
from sae.analysis.labels import LABELS_FILE, read_labels
from sae.analysis.subset import write_subset
from sae.base.assets import cache_folder
from sae.base.errors import UserError, require
from sae.base.files import (
    atomic_path,
    check_writable,
    only_process,
    read_json,
    remove_unfinished,
    write_json,
    write_text,
)
from sae.base.progress import say
from sae.base.provenance import digest
from sae.cache.layout import RUN_CACHE, cache_location
from sae.dictionary import Dictionary
from sae.exchange.card import Export, model_card
from sae.exchange.formats import (
    check_holds,
    named_format,
    saelens,
    sparsify,
    write_dictionary,
)
from sae.exchange.push import STAMP_FILE, TABLES, check_can_push, check_repository, push
from sae.exchange.saelens import save_dictionary, save_sparsity
from sae.exchange.shrink import FULL, named_dtype, nested_widths, save_directions
from sae.stages.common import check_measured_on, named_dictionary
from sae.stages.shrink import Smaller, held_out_rows, shrink

_LAYOUT = 3
"""Of the folder; an export of another one is made anew."""
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """Put a dictionary, its feature tables and a card into a folder that others can load.

    The folder is a model repository and a data set at once; `push=ORG/NAME` puts it on the Hub.
    """

    run: str = "runs/default"
    """Folder of the pipeline."""
    dictionary: str | None = None
    """Name of the dictionary, evaluated and analyzed; may be left out if the run has one."""
    format: str = "saelens"
    """Whose tool is to load the dictionary: saelens, sparsify, dictionary_learning, openai,
    openmoss, gemma_scope or gemma_scope_2. Not every format has a place for every one."""
    out: str | None = None
    """Folder to write; by default `{run}/export/{dictionary}`, with `-{format}` where that is
    not saelens, `-{dtype}` where that is not float32, and `-alive` without dead features."""
    dtype: str = "float32"
    """Of the weights in the files: float32, bfloat16, float16, or int8, which only `sae.load`
    reads. What that costs is measured and written into the card. For format=saelens alone."""
    drop_dead: bool = False
    """Leave out the features that fired nowhere in the atlas. The others are numbered anew;
    `feature_map.csv` and the column `original_feature` have the numbers of before."""
    cache: str = RUN_CACHE
    """Cache on whose held-out text `dtype` and `drop_dead` are measured."""
    license: str | None = None
    """Licence to put into the card, as the Hub writes it: apache-2.0, mit, cc-by-4.0, ..."""
    push: str | None = None
    """`ORG/NAME` on the Hugging Face Hub: the folder goes there as a model, its tables and card
    as a data set of the same name as well."""
    private: bool = False
    """Whether repositories that `push` makes are private."""
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
    figures: dict[str, Any]
    target: Path
    digest: str

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
    """Write the folder; one that an export wrote before is replaced, any other is refused."""
    plan = _planned(config)
    if config.dry_run:
        with tempfile.TemporaryDirectory() as scratch:
            _write(plan, Path(scratch))
            _show(plan, Path(scratch))
        return plan.target
    with _only_export(plan.target):
        if _is_there(plan):
            say(f"export: {plan.target} is there already, reused")
        else:
            remove_unfinished(plan.target.parent, plan.target.name)
            with atomic_path(plan.target) as temporary:
                temporary.mkdir()
                _write(plan, temporary)
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
    check_writable(target.parent)
    atlas = Atlas(run_folder / "atlas" / name)
    figures_path = run_folder / "evals" / f"{name}.json"
    for path, stage in ((atlas.folder, "analyze"), (figures_path, "eval")):
        require(
            path.exists(),
            f"{path} is missing; run first: sae {stage} run={run_folder} dictionary={name}",
        )
    figures = read_json(figures_path)
    for stage, measured in (("eval", figures), ("analyze", atlas.manifest)):
        check_measured_on(dictionary, measured, f"{stage} run={run_folder} dictionary={name}")
    # Labels may be edited at any time; a broken file is refused here.
    labels = digest(read_labels(atlas.folder))
    measured = [figures, atlas.manifest["digest"], dictionary.digest, labels]
    asked = [config.format, named_dtype(config.dtype), config.drop_dead]
    shown = [config.license, config.push]
    wanted = digest([_LAYOUT, *measured, *asked, *shown])
    plan = _Plan(config, name, dictionary, atlas, figures, target, wanted)
    require(
        Path(plan.subfolder).name == plan.subfolder != "..",
        f"{name} is of the hook {plan.subfolder}, which is no name of one folder",
    )
    require(
        not target.exists() or (target / STAMP_FILE).is_file() or not any(target.iterdir()),
        f"{target} holds something that is no export; choose another folder with out=...",
    )
    return plan


def _is_there(plan: _Plan) -> bool:
    stamp = plan.target / STAMP_FILE
    found = read_json(stamp) if stamp.is_file() else {}
    if found.get("digest") != plan.digest:
        return False
    # Where the model was not to be had, it may be now.
    cost = found["shrunk"]
    return cost is None or cost["n_behaviour_tokens"] > 0 or not _has_ce(plan)


def _has_ce(plan: _Plan) -> bool:
    """Whether the model predicts a next token, so that a dictionary costs it something."""
    return "ce_loss_score" in plan.figures


def _only_export(target: Path) -> AbstractContextManager[None]:
    """What another process left unfinished may be removed only while none is at it.

    The lock is not beside the folder, which may be anywhere and hold nothing of ours.
    """
    lock = cache_folder() / "locks" / f"export-{digest(str(target.resolve()))}"
    return only_process(
        lock,
        lambda who: UserError(
            f"{target} is being written by another sae export ({who}); wait until it is done"
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
        for table in (FEATURES_FILE, CONTEXTS_FILE, LABELS_FILE):
            shutil.copyfile(plan.atlas.folder / table, folder / table)
    about = Export(
        folder=plan.subfolder,
        format=config.format,
        dtype=plan.dtype,
        shrunk=smaller.cost,
        nested=nested_widths(plan.dictionary, smaller.kept),
        license=config.license,
        repository=config.push,
    )
    card = model_card(smaller.dictionary, plan.figures, len(smaller.kept), about)
    write_text(folder / "README.md", card)
    cost = None if smaller.cost is None else asdict(smaller.cost)
    stamp = {"digest": plan.digest, "dictionary": plan.name, "figures": plan.figures}
    write_json(folder / STAMP_FILE, stamp | {"shrunk": cost})


def _smaller(plan: _Plan) -> Smaller:
    """The dictionary as it will be loaded, and what that costs."""
    config = plan.config
    if plan.dtype == FULL and not config.drop_dead:
        return Smaller.not_at_all(plan.dictionary)
    location = cache_location(config.run, config.cache)
    rows = held_out_rows(plan.name, plan.dictionary, location)
    n_active = plan.atlas.feature_table(["n_active"])["n_active"].to_numpy()
    return shrink(
        plan.dictionary,
        rows,
        plan.dtype,
        n_active if config.drop_dead else None,
        causal=_has_ce(plan),
    )


def _show(plan: _Plan, folder: Path) -> None:
    """Every file with its size, and where each would go."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [str(path.relative_to(folder)) for path in files]
    sizes = [f"{path.stat().st_size:,}" for path in files]
    total = sum(path.stat().st_size for path in files)
    wide = max(map(len, names)), max(map(len, sizes))
    say(f"export: {plan.target} would hold {len(files)} files, {total:,} bytes")
    for name, size in zip(names, sizes, strict=True):
        say(f"  {name:<{wide[0]}}  {size:>{wide[1]}}")
    if plan.config.push is not None:
        say(
            f"export: all of them would go to the model {plan.config.push}, and "
            f"{', '.join(TABLES)} to the data set of that name"
        )
