"""The folder of an export: dictionary, directions, tables, card and stamp."""

import shutil
from dataclasses import asdict
from pathlib import Path

import torch

from sae.atlas import CONTEXTS, FEATURES, clearest_features, read_labels, write_labels
from sae.atlas.subset import write_subset
from sae.base import say, size, write_text
from sae.dictionary import save_dictionary
from sae.dictionary.files import save_sparsity
from sae.exchange.formats import write_dictionary
from sae.exchange.formats.saelens import SAELens
from sae.exchange.stamp import CARD_FILE, write_stamp
from sae.figures import ShrinkingCost
from sae.publishing.card import Export, model_card
from sae.publishing.plan import Plan
from sae.publishing.push import TABLES
from sae.publishing.smaller import Smaller, nested_widths, save_directions


def write_folder(
    plan: Plan, smaller: Smaller, cost: ShrinkingCost | None, folder: Path
) -> None:
    """Put everything into `folder`, an empty one.

    Args:
        smaller: the dictionary as it will be loaded.
        cost: what making it smaller costs; None where nothing was made smaller.
    """
    config, place = plan.config, folder / plan.subfolder
    if config.format == SAELens.name:
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
        shrunk=cost,
        nested=nested_widths(plan.dictionary, smaller.kept),
        license=config.license,
        repository=config.push,
        atlas=plan.atlas.record,
        examples=clearest_features(plan.atlas, 10, 1, smaller.kept),
    )
    card = model_card(smaller.dictionary, plan.figures, len(smaller.kept), about)
    write_text(folder / CARD_FILE, card)
    told = None if cost is None else asdict(cost)
    write_stamp(folder, plan.digest, plan.subject, plan.figures.to_json(), told)


def _files(folder: Path) -> dict[str, int]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_size for path in found}


def summary(folder: Path) -> str:
    """Return how many files a folder holds, and their size."""
    sizes = _files(folder).values()
    return f"{len(sizes)} files, {size(sum(sizes))}"


def show_files(plan: Plan, folder: Path) -> None:
    """Say the size of every file in `folder`, and where each would go."""
    files = {name: f"{n:,}" for name, n in _files(folder).items()}
    wide = max(map(len, files)), max(map(len, files.values()))
    say(f"export: {plan.target} would hold {summary(folder)}")
    for name, n_bytes in files.items():
        say(f"  {name:<{wide[0]}}  {n_bytes:>{wide[1]}}")
    if plan.config.push is not None:
        say(
            f"export: all of them would go to the model {plan.config.push}, and "
            f"{', '.join(TABLES)} to the data set of that name"
        )
