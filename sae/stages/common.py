"""What several stages need: the dictionaries of a run, and the model that they belong to."""

from pathlib import Path
from typing import Any

from sae.base.errors import UserError, nearest, require
from sae.cache.layout import ActivationCache
from sae.dictionary import Dictionary
from sae.exchange.saelens import CONFIG_FILE, load_dictionary
from sae.models.load import LanguageModel, ModelConfig, load_model


def dictionary_names(run: Path) -> list[str]:
    """The dictionaries of a run, by name."""
    folder = run / "dictionaries"
    return sorted(p.parent.name for p in folder.glob(f"*/{CONFIG_FILE}"))


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
        raise UserError(f"dictionary={name} is not in {run}{nearest(name, names)}")
    return name, load_dictionary(run / "dictionaries" / name)


def check_same_origin(name: str, dictionary: Dictionary, cache: ActivationCache) -> None:
    """Refuse a dictionary and a cache of different models, hooks or widths."""
    model = cache.attributes["model"]["hub_id"]
    require(
        dictionary.model_name == model,
        f"{name} was trained on {dictionary.model_name}, but {cache.path} is of {model}",
    )
    cache.hook(dictionary.hook_name)
    d_in = cache.d_in(dictionary.hook_name)
    require(
        dictionary.d_in == d_in,
        f"{name} has d_in={dictionary.d_in}, but {cache.path} holds rows of width {d_in}",
    )


def recorded_model(record: dict[str, Any], device: str) -> LanguageModel:
    """The model that a cache or a dictionary was made with.

    Raises:
        UserError: if the model found under that name has other weights now.
    """
    config = ModelConfig(
        name=record["name"], revision=record["revision"], dtype=record["dtype"], device=device
    )
    model = load_model(config)
    require(
        model.digest == record["weight_digest"],
        f"model {record['name']} has other weights now (digest {model.digest}) than those that "
        f"were harvested ({record['weight_digest']})",
    )
    return model
