"""What several stages need: the dictionaries of a run, and the model that they belong to."""

from pathlib import Path
from typing import Any

from sae.base.errors import UserError, nearest, require
from sae.base.provenance import UNKNOWN
from sae.cache.layout import ActivationCache
from sae.dictionary import Dictionary
from sae.dictionary.files import CONFIG_FILE, load_dictionary


def dictionary_names(run: Path) -> list[str]:
    """The dictionaries of a run, by name."""
    folder = run / "dictionaries"
    found = (p.parent.name for p in folder.glob(f"*/{CONFIG_FILE}"))
    # A folder that starts with a dot is one that a killed process did not finish.
    return sorted(name for name in found if not name.startswith("."))


def named_dictionary(run: Path, name: str | None) -> tuple[str, Dictionary]:
    """The dictionary called `name`; with None the only one of the run.

    Raises:
        UserError: if there is none, or several to choose from.
    """
    names = dictionary_names(run)
    require(bool(names), f"{run} holds no dictionaries; make one with: sae train run={run}")
    if name is None:
        require(
            len(names) == 1,
            f"{run} holds {len(names)} dictionaries; choose one with "
            f"dictionary={names[0]} (or {', '.join(names[1:])})",
        )
        name = names[0]
    if name not in names:
        near = nearest(name, names) or f"; it holds {', '.join(names[:5])}"
        raise UserError(f"dictionary={name} is not in {run}{near}")
    return name, load_dictionary(run / "dictionaries" / name)


def check_same_origin(name: str, dictionary: Dictionary, cache: ActivationCache) -> None:
    """Refuse a dictionary and a cache of different models, weights, hooks or widths.

    A transcoder needs both of its hooks in the cache.
    """
    model = cache.model
    require(
        dictionary.model_name == model.hub_id,
        f"{name} was trained on {dictionary.model_name}, but {cache.location} is of "
        f"{model.hub_id}",
    )
    trained_on = dictionary.record.model or model
    require(
        trained_on.weight_digest in (UNKNOWN, model.weight_digest),
        f"{name} was trained on other weights of {dictionary.model_name} (digest "
        f"{trained_on.weight_digest}) than {cache.location} is of ({model.weight_digest})",
    )
    hook_name, out = cache.hook(dictionary.hook_name), dictionary.hook_name_out
    require(
        out in cache.hook_names,
        f"{name} goes from {hook_name} to {out}, which is not in {cache.location}; harvest "
        f"both with hook_names=[{hook_name},{out}]",
    )
    for width, found, hook in (
        ("d_in", dictionary.d_in, hook_name),
        ("d_out", dictionary.d_out, out),
    ):
        held = cache.d_in(hook)
        require(
            found == held,
            f"{name} has {width}={found}, but {cache.location} holds rows of width {held}",
        )


def check_measured_on(dictionary: Dictionary, measured: dict[str, Any], again: str) -> None:
    """Refuse what was measured on other weights than carry the name now, or at another hook."""
    names = ("hook_name", "hook_name_out")
    pairs = zip(names, dictionary.hook_names, strict=True)
    same_places = all(measured.get(name) in (None, place) for name, place in pairs)
    require(
        measured.get("dictionary_digest") == dictionary.digest and same_places,
        f"the dictionary has changed since it was measured; run again: sae {again}",
    )
