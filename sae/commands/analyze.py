"""`sae analyze`: how often every feature of a dictionary fires, where, and what it promotes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sae.analysis.features import ContextSelection, feature_panels, related_features
from sae.analysis.map import N_NEIGHBOURS, feature_map
from sae.analysis.naming import automatic_labels
from sae.analysis.shards import Shard, Text, encode_cache, read_text
from sae.analysis.tables import (
    LogitEffects,
    Vocabulary,
    agreement_of_ids,
    context_pieces,
    logit_columns,
    numpy_of,
    panel_columns,
    related_columns,
)
from sae.analysis.work import Arrays, Work
from sae.atlas.atlas import Atlas
from sae.atlas.directions import direction_columns, nearest_features
from sae.atlas.labels import carry_labels, read_labels
from sae.atlas.record import FORMAT, AtlasRecord, write_record
from sae.atlas.schema import CONTEXTS, FEATURES, N_BANDS
from sae.base.errors import UserError, require
from sae.base.files import (
    atomic_path,
    check_writable,
    only_process,
    remove_unfinished,
)
from sae.base.progress import say
from sae.base.provenance import code_version, digest
from sae.cache.layout import RUN_CACHE, ActivationCache, cache_location, open_cache
from sae.commands.common import check_same_origin, named_dictionary
from sae.dictionary import Dictionary
from sae.models.load import LanguageModel, recorded_model, resolve_device
from sae.models.unembed import extreme_logits, token_strings, unembedding
from sae.reporting.pareto import Pareto
from sae.reporting.site import write_labels_data, write_pareto_data, write_site


@dataclass(frozen=True, kw_only=True, slots=True)
class AnalyzeConfig:
    """Make the atlas of a dictionary: how often, where and how strongly each feature fires.

    It says as well which tokens a feature promotes and which others fire with it. An atlas is a
    folder of tables, with pages that open from disk; `sae serve` adds live features to them.
    """

    run: str = "runs/default"
    """Folder of the run; the atlas goes to `{run}/atlas/{dictionary}`."""
    cache: str = RUN_CACHE
    """Cache whose text is read, all of it."""
    dictionary: str | None = None
    """Name of the dictionary; may be left out if the run has one."""
    n_contexts: int = 10
    """Number of contexts to keep in which a feature fires most strongly, one of a sequence."""
    n_band_contexts: int = 4
    """Number of contexts to draw from each fifth of the way up to a feature's highest
    activation."""
    n_silent: int = 4
    """Number of contexts to draw in which a feature does not fire."""
    context_radius: int = 16
    """Number of tokens to show on either side of an activation."""
    n_logits: int = 10
    """Number of tokens to list whose logits a feature raises most, and as many that it lowers
    most."""
    seed: int = 0
    """Seed of the random draws of contexts."""
    device: str = "auto"
    """Device to compute on: `cpu`, `cuda`, `cuda:1`, ...; `auto` takes a GPU if there is
    one."""

    def __post_init__(self) -> None:
        for name in ("n_contexts", "n_logits"):
            value = getattr(self, name)
            require(value >= 1, f"{name}={value}; give 1 or more")
        for name in ("n_band_contexts", "n_silent", "context_radius"):
            value = getattr(self, name)
            require(value >= 0, f"{name}={value} is negative; give 0 or more")

    @property
    def cache_location(self) -> str:
        """Path or address of the cache that is read."""
        return cache_location(self.run, self.cache)

    @property
    def selection(self) -> ContextSelection:
        """Which contexts to keep."""
        return ContextSelection(
            self.n_contexts, self.n_band_contexts, self.n_silent, self.context_radius, self.seed
        )


def run(config: AnalyzeConfig) -> Atlas:
    """Make the atlas, or reuse one made from the same dictionary, cache and settings.

    Labels that people wrote into the one that is replaced are taken over. A killed analysis
    goes on where it stopped.
    """
    parent = Path(config.run) / "atlas"
    check_writable(parent)
    cache = open_cache(config.cache_location)
    name, dictionary = named_dictionary(Path(config.run), config.dictionary)
    check_same_origin(name, dictionary, cache)
    require(
        config.n_contexts <= cache.n_sequences,
        f"n_contexts={config.n_contexts}, of different sequences, but {cache.location} has "
        f"{cache.n_sequences}; give n_contexts={cache.n_sequences} or fewer",
    )
    measured = [cache.digest, dictionary.digest, *dictionary.hook_names]
    wanted = digest([FORMAT, *measured, config.selection, config.n_logits])
    atlas = Atlas(parent / name)
    with only_process(parent / f".{name}.lock", lambda who: _in_use(atlas, who)):
        if atlas.digest == wanted:
            _refresh(atlas, config)
            say(f"analyze: {atlas.folder} is there already, reused")
            return atlas
        remove_unfinished(parent, name)
        work = Work(parent / f".{name}.work", wanted)
        _Analysis(config, cache, name, dictionary, work).write(atlas.folder, wanted)
        work.remove()
    say(f"analyze: {atlas.folder} is written; look at it with: sae serve {config.run}")
    return atlas


def _in_use(atlas: Atlas, who: str) -> UserError:
    return UserError(
        f"{atlas.folder} is being made by another process ({who}); wait until it is done"
    )


def _pareto(config: AnalyzeConfig, name: str) -> dict[str, object] | None:
    """What the page says of the run's other dictionaries, if they were compared."""
    path = Path(config.run) / "pareto.json"
    return Pareto.read(path).for_page(current=name) if path.is_file() else None


def _refresh(atlas: Atlas, config: AnalyzeConfig) -> None:
    """Write anew what may have changed beside a reused atlas: labels, other dictionaries."""
    write_labels_data(atlas.folder, read_labels(atlas.folder))
    write_pareto_data(atlas.folder, _pareto(config, atlas.folder.name))


@dataclass(frozen=True, slots=True)
class _Analysis:
    config: AnalyzeConfig
    cache: ActivationCache
    name: str
    dictionary: Dictionary
    work: Work

    def write(self, folder: Path, wanted: str) -> None:
        """Do what is not done yet, and put the folder in its place."""
        import pyarrow

        text = read_text(self.cache, self.work)
        require(text.n_rows > 0, f"{self.cache.location} has no text rows, only special tokens")
        model = recorded_model(self.cache.model, self.config.device)
        dictionary = self.dictionary.to(resolve_device(self.config.device))
        shards = encode_cache(dictionary, self.cache, text, self.work)
        panels = feature_panels(self.config.selection, shards, text, self.work)
        columns, vocabulary = self._columns(dictionary, model, shards, text, panels)
        record = self._record(text, int((np.asarray(columns["n_active"]) == 0).sum()), wanted)
        if record.n_dead == record.d_sae:
            say(f"analyze: no feature of {self.name} fires on any of the {text.n_rows} rows")
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            pieces = context_pieces(panels, self.work, self.config.selection, text, vocabulary)
            CONTEXTS.write_pieces(temporary, pieces)
            contexts = CONTEXTS.read(temporary)
            automatic = automatic_labels(pyarrow.table(columns), contexts)
            features = FEATURES.write(temporary, {**columns, "label": automatic})
            labels = carry_labels(folder, temporary, automatic, self.dictionary.digest)
            pareto = _pareto(self.config, self.name)
            write_site(temporary, features, contexts, record, labels, pareto)
            write_record(temporary, record)

    def _columns(
        self,
        dictionary: Dictionary,
        model: LanguageModel,
        shards: list[Shard],
        text: Text,
        panels: list[tuple[slice, str]],
    ) -> tuple[dict[str, object], Vocabulary]:
        """Return all columns of `features.parquet` but the label, and the tokens' texts."""
        found = _joined_panels(panels, self.work)
        pairs = related_features(shards, text, panels, self.work)
        near = self.work.once("neighbours", lambda: _neighbours(dictionary))
        places = self.work.once("map", lambda: _map(dictionary, near))["places"]
        logits = self._logits(dictionary, model)
        vocabulary = _vocabulary(model, text, logits)
        columns = {
            "feature": np.arange(dictionary.d_sae, dtype=np.int32),
            **panel_columns(found, text, vocabulary),
            **direction_columns(dictionary, near["indices"], near["cosines"], places),
            **related_columns(pairs),
        }
        if logits is not None:
            top = found["chosen"][:, : self.config.n_contexts]
            agreement = agreement_of_ids(logits.top_ids, top, text, vocabulary)
            columns |= logit_columns(logits, agreement, vocabulary)
        return columns, vocabulary

    def _logits(self, dictionary: Dictionary, model: LanguageModel) -> LogitEffects | None:
        """Return what features promote; None where they do not write into the stream."""
        matrix = unembedding(model.module)
        site = self.cache.site(dictionary.hook_name_out)
        if matrix is None or not site.in_stream:
            return None

        def compute() -> Mapping[str, NDArray[np.generic]]:
            found = extreme_logits(dictionary.W_dec, matrix, self.config.n_logits)
            names = ("top_values", "top_ids", "bottom_values", "bottom_ids", "sharpness")
            return dict(zip(names, map(numpy_of, found), strict=True))

        return LogitEffects(**self.work.once("logits", compute))

    def _record(self, text: Text, n_dead: int, wanted: str) -> AtlasRecord:
        dictionary = self.dictionary
        return AtlasRecord(
            digest=wanted,
            dictionary=self.name,
            dictionary_digest=dictionary.digest,
            architecture=dictionary.architecture,
            model_name=dictionary.model_name,
            hook_name=dictionary.hook_name,
            hook_name_out=dictionary.hook_name_out,
            cache_digest=self.cache.digest,
            data=self.cache.text.name,
            d_in=dictionary.d_in,
            d_sae=dictionary.d_sae,
            n_rows=text.n_rows,
            n_sequences=text.n_sequences,
            context_size=text.context_size,
            n_documents=text.n_documents,
            n_dead=n_dead,
            n_contexts=self.config.n_contexts,
            n_bands=N_BANDS,
            n_band_contexts=self.config.n_band_contexts,
            n_silent=self.config.n_silent,
            context_radius=self.config.context_radius,
            seed=self.config.seed,
            code_version=code_version(),
        )


def _joined_panels(panels: list[tuple[slice, str]], work: Work) -> Arrays:
    """Join what was found about all features, but for the activations of contexts."""
    files = [work.open(name) for _, name in panels]
    names = [name for name in files[0].names if name != "activations"]
    return {name: np.concatenate([file.read(name) for file in files]) for name in names}


def _neighbours(dictionary: Dictionary) -> Arrays:
    indices, cosines = nearest_features(dictionary.W_dec.float(), N_NEIGHBOURS)
    return {"indices": numpy_of(indices), "cosines": numpy_of(cosines)}


def _map(dictionary: Dictionary, near: Arrays) -> Arrays:
    import torch

    found = feature_map(
        dictionary.W_dec, torch.from_numpy(near["indices"]), torch.from_numpy(near["cosines"])
    )
    return {"places": numpy_of(found)}


def _vocabulary(model: LanguageModel, text: Text, logits: LogitEffects | None) -> Vocabulary:
    """The text of every token that the tables name."""
    import torch

    shown: list[NDArray[np.generic]] = [np.unique(text.tokens)]
    if logits is not None:
        shown += [logits.top_ids.ravel(), logits.bottom_ids.ravel()]
    ids = np.unique(np.concatenate(shown)).astype(np.int64)
    return Vocabulary(ids, token_strings(model.tokenizer, torch.from_numpy(ids)))
