"""The folder of an export: a dictionary made smaller, directions, tables, card and stamp."""

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save

from sae.architectures import MatryoshkaConfig
from sae.atlas import CONTEXTS, FEATURES, clearest_features, read_labels, write_labels
from sae.atlas.subset import write_subset
from sae.base import atomic_path, require, say, size, write_text
from sae.dictionary import Dictionary, save_dictionary
from sae.dictionary.files import save_sparsity
from sae.dictionary.storage import FULL, as_loaded, packed
from sae.exchange.formats import write_dictionary
from sae.exchange.formats.saelens import SAELens
from sae.exchange.public import public
from sae.exchange.stamp import CARD_FILE, DIRECTIONS_FILE, write_stamp
from sae.figures import ShrinkingCost
from sae.publishing.card import Export, model_card
from sae.publishing.plan import Plan
from sae.publishing.push import TABLES


@dataclass(frozen=True, slots=True)
class Smaller:
    """A dictionary as it is exported."""

    dictionary: Dictionary
    kept: NDArray[np.int64]
    """Features that are left, (n_kept,), by the numbers that they had before."""


def smaller(
    dictionary: Dictionary, dtype: str, n_active: NDArray[np.int64] | None = None
) -> Smaller:
    """Store a dictionary in a smaller type, or without the features that never fired.

    Where neither changes anything, it is the same dictionary. With `n_active`, the rows in
    which each feature fired, (d_sae,), the features of none are left out.

    Raises:
        UserError: if no feature ever fired, or a weight is beyond the type.
    """
    kept = np.arange(dictionary.d_sae) if n_active is None else n_active.nonzero()[0]
    require(
        len(kept) > 0,
        "drop_dead=true would leave no feature, because none fired; export without it",
    )
    small = dictionary.of_latents(torch.from_numpy(kept))
    return Smaller(small if dtype == FULL else as_loaded(small, dtype), kept)


def published(dictionary: Dictionary) -> Dictionary:
    """Return the dictionary with its model and text as others know them.

    Where they are on this disk is nobody else's matter, and finds nothing on another.
    """
    record = dictionary.record
    model, text = record.model, record.text
    if model is not None:
        model = replace(model, name=public(model.name), hub_id=public(model.hub_id))
    if text is not None and text.name is not None:
        known = public(text.name)
        text = replace(text, name=known, settings={**text.settings, "name": known})
    name, path = (
        None if said is None else public(said)
        for said in (record.model_name, record.dataset_path)
    )
    shown = replace(record, model_name=name, model=model, dataset_path=path, text=text)
    return replace(dictionary, record=shown)


def nested_widths(dictionary: Dictionary, kept: NDArray[np.int64]) -> tuple[int, ...]:
    """Return how many of the latents `kept` lie in each inner level of a Matryoshka dictionary.

    Empty for one that is none, or is no longer as wide as it was trained.
    """
    training = dictionary.record.training
    if training is None or training.architecture != MatryoshkaConfig.architecture:
        return ()
    if training.sae.get("d_sae") != dictionary.d_sae:
        return ()
    names = ("d_sae", "k", "matryoshka_widths")
    settings: dict[str, Any] = {name: training.sae[name] for name in names}
    widths = MatryoshkaConfig(**settings).level_widths
    found = set(np.searchsorted(kept, widths).tolist()) - {0, len(kept)}
    return tuple(sorted(found))


def save_directions(dictionary: Dictionary, folder: Path, dtype: str) -> None:
    """Write what the decoder adds to the activations: `W_dec` (d_sae, d_out) and `b_dec`.

    The file's metadata has `sae_atlas`, JSON with `model_name` and the `hook_name` that they
    are added to.
    """
    tensors = {"W_dec": dictionary.W_dec, "b_dec": dictionary.b_dec}
    place = {"model_name": dictionary.model_name, "hook_name": dictionary.hook_name_out}
    # One entry: several would come in another order each time, and so would the bytes.
    about = {"sae_atlas": json.dumps(place, ensure_ascii=False)}
    with atomic_path(folder / DIRECTIONS_FILE) as temporary:
        temporary.write_bytes(save(packed(tensors, dtype), metadata=about))


def write_folder(
    plan: Plan, smaller: Smaller, cost: ShrinkingCost | None, folder: Path
) -> None:
    """Put everything into `folder`, an empty one.

    Args:
        smaller: the dictionary as it will be loaded.
        cost: what making it smaller costs; None where nothing was made smaller.
    """
    config, place = plan.config, folder / plan.subfolder
    shown = published(smaller.dictionary)
    if config.format == SAELens.name:
        save_dictionary(shown, place, plan.dtype)
        densities = plan.atlas.feature_table(["density"])["density"].to_numpy()
        save_sparsity(torch.from_numpy(densities[smaller.kept]), place)
    else:
        write_dictionary(shown, place, config.format)
    save_directions(shown, folder, plan.dtype)
    if len(smaller.kept) < plan.dictionary.d_sae:
        write_subset(plan.atlas, smaller.kept, folder)
    else:
        for table in (FEATURES, CONTEXTS):
            shutil.copyfile(plan.atlas.folder / table.file, folder / table.file)
        # Not as a person left it, but as queries can read it.
        write_labels(folder, read_labels(plan.atlas.folder))
    about = Export(
        controls=plan.controls,
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
    data = plan.figures.data
    figures = replace(plan.figures, data=None if data is None else public(data))
    write_stamp(folder, plan.digest, plan.subject, figures.to_json(), told)


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
