"""What an import is asked for, and which model and hooks the dictionary then belongs to."""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from sae.base import UNKNOWN, UserError, require
from sae.base.names import check_name, check_names
from sae.cache.layout import open_cache
from sae.cache.store import is_url
from sae.dictionary import Dictionary, Port, Record, metadata_of
from sae.dictionary.record import OURS, Origin
from sae.exchange.formats import readable_format
from sae.models import (
    ModelConfig,
    ModelRecord,
    Site,
    find_site,
    load_skeleton,
    measured,
    record_without_weights,
    recorded_name,
)
from sae.models.packaged import EMBEDDED
from sae.run import RUN_CACHE, Run, cache_location


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportConfig:
    """Take a dictionary of another tool into a run.

    The biases and scales of the dictionary are folded into its weights, so that `sae eval`,
    `analyze`, `steer` and `export` work on it as if it had been trained here.
    """

    folder: str
    """Where the dictionary is: a folder, a file of OpenAI or Qwen, or an address
    `ORG/NAME:FOLDER@REVISION` on the Hub, in which the folder and the revision may be left
    out."""
    run: str = "runs/default"
    """Folder of the run; the dictionary goes to `{run}/dictionaries/{name}`."""
    name: str | None = None
    """Name of the dictionary in the run. By default it is the name of its folder, preceded by
    the name of the folder above if it is only `trainer_0`."""
    format: str | None = None
    """Format of the dictionary, if it cannot be told from the files: saelens, sparsify,
    dictionary_learning, openai, openmoss, gemma_scope, gemma_scope_2 or qwen_scope."""
    cache: str = RUN_CACHE
    """Cache with activations of the dictionary's model. If there is none, only the name of the
    model is recorded."""
    model_name: str | None = None
    """Model that the dictionary belongs to, a folder or a Hub id. It is needed if the files do
    not say it, or name the model differently from the cache."""
    hook_name: str | None = None
    """Hook that the dictionary reads. It is needed if the files do not say it."""
    hook_name_out: str | None = None
    """Hook that a transcoder reconstructs. It is needed if the files do not say it."""

    def __post_init__(self) -> None:
        check_name(self.id, f"name={self.id}")
        if self.format is not None:
            readable_format(self.format)

    @property
    def id(self) -> str:
        """The name in the run."""
        if self.name:
            return self.name
        place = Path(self.folder)
        found = place.name
        if re.fullmatch(r"trainer_\d+", found):
            # dictionary_learning numbers them anew in each of its runs.
            found = f"{place.absolute().parent.name}-{found}"
        found = re.sub(r"[^\w.=-]+", "-", found)
        return found.strip(".") or "imported"

    @property
    def target(self) -> Path:
        """The folder to write."""
        return Run.at(self.run).dictionary(self.id)

    @property
    def origin(self) -> str:
        """Where it is from, for others to read: on this disk only the folder's name."""
        path = Path(self.folder)
        return path.absolute().name if path.exists() else self.folder

    @property
    def known_cache(self) -> str | None:
        """Path or address of the cache, if there is one."""
        cache = cache_location(self.run, self.cache)
        return cache if is_url(cache) or Path(cache).exists() else None


def belonging(config: ImportConfig, found: Dictionary) -> Dictionary:
    """Return a dictionary with its model, and with its sites as they were found in the model.

    Raises:
        UserError: if neither the dictionary nor what was asked for says model or hooks, if they
            contradict each other or the model, or if there is no such model.
    """
    ends = [("hook_name", config.hook_name, found.reads[0])]
    if config.hook_name_out or found.is_transcoder:
        ends.append(("hook_name_out", config.hook_name_out, found.writes[0]))
    said = {key: port.hook_name for key, _, port in ends if port.hook_name != UNKNOWN}
    _check_said(config, found, said, [key for key, _, _ in ends])
    model = _model(config, found.record.model_name)
    skeleton = load_skeleton(ModelConfig(name=model.name, revision=model.revision))
    sites = []
    for key, hook_name, port in ends:
        site = _site(skeleton, hook_name) if hook_name else _theirs(skeleton, port)
        if hook_name and key in said:
            _check_same_hook(config, skeleton, key, port, site)
        (site,) = measured(skeleton, [site])
        width = port.W.shape[1]
        require(
            site.width in (0, width),
            f"{config.folder} has width {width} at {site.hook_name}, where {model.name} "
            f"has {site.width}",
        )
        sites.append(replace(site, width=width))
    return replace(found.placed(*sites), record=_record(config, found, model))


def _record(config: ImportConfig, found: Dictionary, model: ModelRecord) -> Record:
    """Our record of it: what was known of its model and text, and nothing of a training.

    Whatever else is in the file was not seen here, and stays beside where it is from.
    """
    theirs, ours = found.record, metadata_of(found).get(OURS)
    known = theirs.model or model
    if known.hub_id == model.hub_id and known.weight_digest != UNKNOWN:
        # Weights go by the name that they have here.
        model = replace(known, name=model.name)
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
    location, known = config.known_cache, {*said}
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
    config: ImportConfig, skeleton: nn.Module, key: str, port: Port, asked: Site
) -> None:
    """Refuse another place than the dictionary says, unless that is none of this model's."""
    try:
        theirs = _theirs(skeleton, port)
    except UserError:
        return
    require(
        _behind_block(theirs) == _behind_block(asked),
        f"{config.folder} reads {theirs.hook_name}, but {key}={asked.hook_name}; leave out "
        f"{key}=...",
    )


def _theirs(skeleton: nn.Module, port: Port) -> Site:
    """Return the place that a dictionary's file says: of the module, if it names one there.

    A name alone may be of another convention: SAELens calls what a norm gives `hook_mlp_in`.
    """
    if port.site is not None:
        with suppress(UserError):
            return _site(skeleton, port.site.path)
    return _site(skeleton, port.hook_name)


def _behind_block(point: Site) -> str:
    """Return a hook's name; for what a block reads, that of what the block before writes."""
    before = re.fullmatch(r"blocks\.(\d+)\.hook_resid_pre", point.hook_name)
    return f"blocks.{int(before[1]) - 1}.hook_resid_post" if before else point.hook_name


def _model(config: ImportConfig, said: str | None) -> ModelRecord:
    """Return the record of the model: the cache's if it is the same, else one by name alone."""
    location = config.known_cache
    if location is None:
        return _model_by_name(config, str(config.model_name or said))
    record = open_cache(location).model
    name = config.model_name or said or record.name
    hub_id = EMBEDDED[name].hub_id if name in EMBEDDED else name
    # Without the owner, as TransformerLens names many models; a folder from wherever it is.
    known = {record.hub_id, record.name, record.hub_id.split("/")[-1]}
    require(
        hub_id in known or recorded_name(name) in known,
        f"{config.folder} belongs to {name}, but {location} to {record.hub_id}; if these "
        f"are the same model, give model_name={record.name}",
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
            f"{config.folder} says that it belongs to {name}, but {said}; if you have that "
            "model under another name, give model_name=..."
        ) from error


def _site(skeleton: nn.Module, name: str) -> Site:
    with suppress(UserError):
        return find_site(skeleton, f"{getattr(skeleton, 'base_model_prefix', '')}.{name}")
    return find_site(skeleton, name)
