"""`sae import`: a dictionary of another tool becomes one of a run, for every other stage."""

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from sae.base.errors import UserError, require
from sae.base.files import check_writable, only_process, remove_unfinished
from sae.base.progress import say
from sae.base.provenance import UNKNOWN
from sae.cache.layout import RUN_CACHE, cache_location, open_cache
from sae.cache.store import is_url
from sae.dictionary import Dictionary, Record
from sae.dictionary.files import load_dictionary, save_dictionary
from sae.dictionary.metadata import metadata_of
from sae.dictionary.record import OURS, Origin
from sae.exchange.formats import read_dictionary, readable_format, saelens
from sae.exchange.hub import check_names, local_path
from sae.models.embedded import EMBEDDED
from sae.models.hooks import find_site, measured
from sae.models.load import ModelConfig, load_skeleton, record_without_weights
from sae.models.record import ModelRecord
from sae.models.site import Site


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportConfig:
    """Take a dictionary of another tool into a run: `sae import FOLDER run=...`.

    Its biases and scales are folded, so that `eval`, `analyze`, `steer` and `export` work on it
    as on one trained here.
    """

    folder: str | None = None
    """Where it is: a folder, a file of OpenAI's or Qwen's, or `ORG/NAME:FOLDER@REVISION` on the
    Hub, with or without the folder and the revision; the word without a key."""
    run: str = "runs/default"
    """Folder of the pipeline; the dictionary is written to `{run}/dictionaries/{name}`."""
    name: str | None = None
    """Name in the run; by default that of the folder, with the one above it for `trainer_0`."""
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
        # Longer by as much while it is written.
        check_names(f"{self.id}.0123456789.unfinished")
        if self.format is not None:
            readable_format(self.format)

    @property
    def id(self) -> str:
        """The name in the run."""
        place = Path(str(self.folder))
        found = place.name
        if re.fullmatch(r"trainer_\d+", found):
            # dictionary_learning numbers them anew in each of its runs.
            found = f"{place.absolute().parent.name}-{found}"
        found = self.name or re.sub(r"[^\w.=-]+", "-", found)
        return found.strip(".") or "imported"

    @property
    def target(self) -> Path:
        """The folder to write."""
        return Path(self.run) / "dictionaries" / self.id

    @property
    def origin(self) -> str:
        """Where it is from, for others to read: on this disk only the folder's name."""
        path = Path(str(self.folder))
        return path.absolute().name if path.exists() else str(self.folder)


def run(config: ImportConfig) -> Dictionary:
    """Read, look up model and hooks, and write; what is there already as it is, is reused."""
    if config.folder is None:
        raise UserError("there is no folder to import; say: sae import FOLDER")
    target = config.target
    check_writable(target.parent)
    source = local_path(config.folder)
    require(
        source.resolve() != target.resolve(),
        f"{target} is where the import of {config.folder} would go; move it elsewhere first, "
        "or give another name=...",
    )
    found = read_dictionary(source, config.format)
    dictionary = _belonging(config, found)
    with _only_writer(config):
        remove_unfinished(target.parent, target.name)
        if _is_there(target, dictionary):
            say(f"import: {target} is there already, reused")
        else:
            save_dictionary(dictionary, target)
            say(f"import: {config.folder} is {target} now")
    return load_dictionary(target)


def _only_writer(config: ImportConfig) -> AbstractContextManager[None]:
    """What another process left unfinished may be removed only while none is at it.

    The lock is that of a training of this name, which writes the same folder.
    """
    lock = Path(config.run) / "training" / config.id / ".lock"
    return only_process(
        lock,
        lambda who: UserError(
            f"{config.target} is being written by another process ({who}); wait until it is "
            "done, or give another name=..."
        ),
    )


def _is_there(target: Path, dictionary: Dictionary) -> bool:
    """Whether it has been imported before; anything else is left as it is.

    Raises:
        UserError: if something else is there.
    """
    if not saelens.recognises(target):
        require(
            not target.exists() or (target.is_dir() and not any(target.iterdir())),
            f"{target} holds something that is no dictionary; give this one another name=...",
        )
        return False
    there = load_dictionary(target)
    same = there.digest == dictionary.digest
    require(
        same and metadata_of(there) == metadata_of(dictionary),
        f"{target} is another dictionary; give this one another name=...",
    )
    return True


def _belonging(config: ImportConfig, found: Dictionary) -> Dictionary:
    """The dictionary with its model and sites, which are looked up in the model."""
    ends = [("hook_name", config.hook_name, found.reads[0])]
    if config.hook_name_out or found.is_transcoder:
        ends.append(("hook_name_out", config.hook_name_out, found.writes[0]))
    said = {key: port.hook_name for key, _, port in ends if port.hook_name != UNKNOWN}
    _check_said(config, found, said, [key for key, _, _ in ends])
    model = _model(config, found.record.model_name)
    skeleton = load_skeleton(ModelConfig(name=model.name, revision=model.revision))
    sites = []
    for key, asked, port in ends:
        site = _site(skeleton, asked or port.hook_name)
        if asked and key in said:
            _check_same_hook(config, skeleton, key, said[key], asked)
        (site,) = measured(skeleton, [site])
        width = port.W.shape[1]
        require(
            site.width in (0, width),
            f"{config.folder} has width {width} at {site.hook_name}, where {model.name} "
            f"has {site.width}",
        )
        sites.append(replace(site, width=width))
    return replace(found.placed(*sites), record=_record(config, found.record, model))


def _record(config: ImportConfig, theirs: Record, model: ModelRecord) -> Record:
    """Our record of it: what was known of its model and text, and nothing of a training.

    Whatever else is in the file was not seen here, and stays beside where it is from.
    """
    known = theirs.model or model
    if known.hub_id == model.hub_id and known.weight_digest != UNKNOWN:
        # Weights go by the name that they have here.
        model = replace(known, name=model.name)
    ours = theirs.to_json().get(OURS)
    return replace(
        theirs,
        model_name=model.hub_id,
        model=model,
        bos_token_id=None,
        cache_digest=None,
        training=None,
        imported=Origin(config.origin, config.format, ours if isinstance(ours, dict) else {}),
    )


_MISSING = {
    "model_name": "which model it is of",
    "hook_name": "which hook it reads",
    "hook_name_out": "which hook it reconstructs",
}


def _check_said(
    config: ImportConfig, found: Dictionary, said: Mapping[str, str], hooks: list[str]
) -> None:
    """Refuse at once all that neither the dictionary nor the command says."""
    location, known = _cache(config), {*said}
    if found.record.model_name:
        known.add("model_name")
    needed = hooks if location else ["model_name", *hooks]
    missing = [key for key in needed if not getattr(config, key) and key not in known]
    if not missing:
        return
    there = ""
    if location and not {*missing}.isdisjoint(hooks):
        there = f"; {location} has {', '.join(open_cache(location).hook_names)}"
    raise UserError(
        f"{config.folder} does not say {' and '.join(_MISSING[key] for key in missing)}; give "
        f"{' '.join(f'{key}=...' for key in missing)}{there}"
    )


def _check_same_hook(
    config: ImportConfig, skeleton: nn.Module, key: str, said: str, asked: str
) -> None:
    """Refuse another place than the dictionary says, unless that is none of this model's."""
    try:
        theirs = _site(skeleton, said)
    except UserError:
        return
    require(
        _behind_block(theirs) == _behind_block(_site(skeleton, asked)),
        f"{config.folder} is of {theirs.hook_name}, but {key}={asked}; leave out {key}=...",
    )


def _behind_block(point: Site) -> str:
    """Its name; of what a block reads, that of what the block before writes."""
    before = re.fullmatch(r"blocks\.(\d+)\.hook_resid_pre", point.hook_name)
    return f"blocks.{int(before[1]) - 1}.hook_resid_post" if before else point.hook_name


def _cache(config: ImportConfig) -> str | None:
    """The cache of the run, if it is there."""
    location = cache_location(config.run, config.cache)
    return location if is_url(location) or Path(location).exists() else None


def _model(config: ImportConfig, said: str | None) -> ModelRecord:
    """The record of the model: the cache's if it is the same, else one by name alone."""
    location = _cache(config)
    if location is None:
        return _model_by_name(config, str(config.model_name or said))
    record = open_cache(location).model
    name = config.model_name or said or record.name
    hub_id = EMBEDDED[name].hub_id if name in EMBEDDED else name
    # Without the owner, as TransformerLens names many models.
    known = {record.hub_id, record.name, record.hub_id.split("/")[-1]}
    require(
        hub_id in known,
        f"{config.folder} is of {name}, but {location} is of {record.hub_id}; if these are "
        f"one model, say model_name={record.name}",
    )
    return record


def _model_by_name(config: ImportConfig, name: str) -> ModelRecord:
    embedded = (key for key, model in EMBEDDED.items() if model.hub_id == name)
    try:
        check_names(name)
        return record_without_weights(next(embedded, name))
    except UserError as error:
        if config.model_name:
            # Here it is given by another key.
            raise UserError(str(error).replace("model.name=", "model_name=", 1)) from error
        said = str(error).replace("model.name=", "", 1)
        raise UserError(
            f"{config.folder} says that it is of {name}, and {said}; if that is the name of a "
            "model that you have, give model_name=..."
        ) from error


def _site(skeleton: nn.Module, name: str) -> Site:
    """The hook of that name, or of that path below the base model."""
    below = f"{getattr(skeleton, 'base_model_prefix', '')}.{name}"
    return find_site(skeleton, below if below in dict(skeleton.named_modules()) else name)
