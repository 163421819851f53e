"""`sae import`: a dictionary of another tool becomes one of a run, for every other stage."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from sae.base.errors import UserError, require
from sae.base.files import check_writable
from sae.base.progress import say
from sae.cache.layout import RUN_CACHE, cache_location, open_cache
from sae.cache.store import is_url
from sae.dictionary import Dictionary
from sae.exchange.formats import read_dictionary, readable_format
from sae.exchange.hub import local_path
from sae.exchange.saelens import CONFIG_FILE, load_dictionary, save_dictionary
from sae.models.embedded import EMBEDDED
from sae.models.hooks import HookPoint, find_hook, hook_widths
from sae.models.load import ModelConfig, load_skeleton, record_without_weights


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportConfig:
    """Take a dictionary of another tool into a run: `sae import FOLDER run=...`.

    Its biases and scales are folded, so that `eval`, `analyze`, `steer` and `export` work on it
    as on one trained here.
    """

    folder: str | None = None
    """Where it is: a folder, a file of OpenAI's or Qwen's, or `ORG/NAME:FOLDER` on the Hub; the
    word without a key."""
    run: str = "runs/default"
    """Folder of the pipeline; the dictionary is written to `{run}/dictionaries/{name}`."""
    name: str | None = None
    """Name in the run; by default that of the folder."""
    format: str | None = None
    """Format of the folder, if its files do not tell: saelens, sparsify, dictionary_learning,
    openai, openmoss, gemma_scope, gemma_scope_2 or qwen_scope."""
    cache: str = RUN_CACHE
    """Cache whose model it is of, if it is there; else the model is taken by its name alone."""
    model_name: str | None = None
    """Model that it is of, as in `model.name`; needed if the dictionary does not say, or by
    another name than the cache."""
    hook_name: str | None = None
    """Hook that it reads; needed if the dictionary does not say."""
    hook_name_out: str | None = None
    """Hook that it reconstructs; needed for a transcoder that does not say."""

    def __post_init__(self) -> None:
        require(
            not self.name or Path(self.name).name == self.name != "..",
            f"name={self.name} is no name of one folder; leave out the slashes",
        )
        if self.format is not None:
            readable_format(self.format)

    @property
    def id(self) -> str:
        """The name in the run."""
        found = self.name or re.sub(r"[^\w.=-]+", "-", Path(str(self.folder)).name)
        return found.strip(".") or "imported"


def run(config: ImportConfig) -> Dictionary:
    """Read, look up model and hooks, and write; what is there already as it is, is reused."""
    if config.folder is None:
        raise UserError("there is no folder to import; say: sae import FOLDER")
    target = Path(config.run) / "dictionaries" / config.id
    check_writable(target.parent)
    found = read_dictionary(local_path(config.folder), config.format)
    dictionary = replace(found, metadata=_metadata(config, found))
    if (target / CONFIG_FILE).exists():
        there = load_dictionary(target)
        require(
            (there.digest, there.metadata | dictionary.metadata)
            == (dictionary.digest, there.metadata),
            f"{target} is another dictionary; give this one another name=...",
        )
        say(f"import: {target} is there already, reused")
        return there
    save_dictionary(dictionary, target)
    say(f"import: {config.folder} is {target} now")
    return load_dictionary(target)


def _metadata(config: ImportConfig, dictionary: Dictionary) -> dict[str, Any]:
    """What the stages ask of a dictionary: model and hooks by the names that are used here."""
    about = dictionary.metadata
    said = about.get("model_name")
    model = _model(config, None if said is None else str(said))
    skeleton = load_skeleton(ModelConfig(name=model["name"], revision=model["revision"]))
    widths = hook_widths(skeleton)
    hooks: dict[str, str] = {}
    ends = [("", config.hook_name, dictionary.d_in)]
    if config.hook_name_out or about.get("hook_name_out") or _is_transcoder(dictionary):
        ends.append(("_out", config.hook_name_out, dictionary.d_out))
    for end, asked, width in ends:
        name = asked or about.get(f"hook_name{end}")
        if name is None:
            raise UserError(
                f"{config.folder} does not say which hook it "
                f"{'reconstructs' if end else 'reads'}; give hook_name{end}=..."
            )
        point = _hook(skeleton, str(name))
        held = widths.get(point.hook_name, width)
        require(
            held == width,
            f"{config.folder} has width {width} at {point.hook_name}, where {model['name']} "
            f"has {held}",
        )
        hooks |= {f"hook_name{end}": point.hook_name, f"hf_hook_name{end}": point.module}
    ours: dict[str, Any] = about.get("sae_atlas", {})
    recorded = ours.get("model", model)
    # Weights of the same digest go by the name that they have here.
    same = recorded["weight_digest"] == model["weight_digest"]
    origin = {"from": config.folder, "format": config.format}
    ours = {**ours, "model": model if same else recorded, "imported": origin}
    return {**about, "model_name": model["hub_id"], **hooks, "sae_atlas": ours}


def _is_transcoder(dictionary: Dictionary) -> bool:
    return dictionary.d_in != dictionary.d_out or dictionary.W_skip is not None


def _model(config: ImportConfig, said: str | None) -> dict[str, Any]:
    """The record of the model: the cache's if it is the same, else one by name alone."""
    location = cache_location(config.run, config.cache)
    there = is_url(location) or Path(location).exists()
    if not there:
        name = config.model_name or said
        require(
            name is not None,
            f"{config.folder} does not say which model it is of; give model_name=...",
        )
        embedded = (key for key, model in EMBEDDED.items() if model.hub_id == name)
        return record_without_weights(next(embedded, str(name)))
    record: dict[str, Any] = open_cache(location).attributes["model"]
    name = config.model_name or said or record["name"]
    hub_id = EMBEDDED[name].hub_id if name in EMBEDDED else name
    # Without the owner, as TransformerLens names many models.
    known = {record["hub_id"], record["name"], record["hub_id"].split("/")[-1]}
    require(
        hub_id in known,
        f"{config.folder} is of {name}, but {location} is of {record['hub_id']}; if these are "
        f"one model, say model_name={record['name']}",
    )
    return record


def _hook(skeleton: nn.Module, name: str) -> HookPoint:
    """The hook of that name, or of that path below the base model."""
    below = f"{getattr(skeleton, 'base_model_prefix', '')}.{name}"
    return find_hook(skeleton, below if below in dict(skeleton.named_modules()) else name)
