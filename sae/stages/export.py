"""`sae export`: a dictionary, its features and its card in one folder, ready for the Hub."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from sae.analysis.atlas import CONTEXTS_FILE, FEATURES_FILE, Atlas
from sae.analysis.labels import LABELS_FILE, read_labels
from sae.base.errors import require
from sae.base.files import atomic_path, check_writable, read_json
from sae.base.progress import say
from sae.base.provenance import digest
from sae.exchange.card import model_card
from sae.exchange.formats import (
    check_holds,
    named_format,
    saelens,
    sparsify,
    write_dictionary,
)
from sae.exchange.saelens import save_sparsity
from sae.stages.common import check_measured_on, named_dictionary

_STAMP_FILE = "export.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """Put a dictionary, its feature tables and a card into a folder that others can load."""

    run: str = "runs/default"
    """Folder of the pipeline."""
    dictionary: str | None = None
    """Name of the dictionary, evaluated and analyzed; may be left out if the run has one."""
    format: str = "saelens"
    """Whose tool is to load the dictionary: saelens, sparsify, dictionary_learning, openai,
    openmoss, gemma_scope or gemma_scope_2. Not every format has a place for every one."""
    out: str | None = None
    """Folder to write; by default `{run}/export/{dictionary}`, with `-{format}` where that is
    not saelens."""

    def __post_init__(self) -> None:
        named_format(self.format)


def run(config: ExportConfig) -> Path:
    """Write the folder; one that an export wrote before is replaced, any other is refused."""
    run_folder = Path(config.run)
    name, dictionary = named_dictionary(run_folder, config.dictionary)
    check_holds(named_format(config.format), dictionary)
    ours = config.format == saelens.NAME
    usual = run_folder / "export" / (name if ours else f"{name}-{config.format}")
    target = Path(config.out) if config.out else usual
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
    about = [figures, atlas.manifest["digest"], dictionary.digest, labels]
    wanted = digest(about if ours else [*about, config.format])
    if target.exists():
        stamp = target / _STAMP_FILE
        require(
            stamp.is_file() or not any(target.iterdir()),
            f"{target} holds something that is no export; choose another folder with out=...",
        )
        if stamp.is_file() and read_json(stamp)["digest"] == wanted:
            say(f"export: {target} is there already, reused")
            return target
    densities = atlas.feature_table(["density"])["density"].to_numpy()
    # SAELens's way on the Hub: a folder for each dictionary, named after its hook. sparsify's
    # tools look for the module of that name.
    of_module = config.format == sparsify.NAME
    subfolder = sparsify.hookpoint(dictionary) if of_module else dictionary.hook_name
    with atomic_path(target) as temporary:
        temporary.mkdir()
        write_dictionary(dictionary, temporary / subfolder, config.format)
        if ours:
            save_sparsity(torch.from_numpy(densities.copy()), temporary / subfolder)
        for table in (FEATURES_FILE, CONTEXTS_FILE, LABELS_FILE):
            shutil.copyfile(atlas.folder / table, temporary / table)
        card = model_card(dictionary, figures, subfolder, len(densities), config.format)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        (temporary / _STAMP_FILE).write_text(
            json.dumps({"digest": wanted, "dictionary": name, "figures": figures}, indent=2),
            encoding="utf-8",
        )
    return target
