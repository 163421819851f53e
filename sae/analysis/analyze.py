"""Making an atlas: all that is found out about the features of a dictionary, as tables."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from sae.analysis.dials import (
    Candidates,
    DialConfig,
    bench_of,
    choose_to_score,
    measure_doses,
    neutral_texts,
)
from sae.analysis.features import ContextSelection, feature_panels, related_features
from sae.analysis.map import N_NEIGHBOURS, feature_map
from sae.analysis.naming import automatic_labels
from sae.analysis.shards import Shard, Text, encode_cache, read_text
from sae.analysis.tables import (
    Vocabulary,
    agreement_of_ids,
    context_pieces,
    logit_columns,
    panel_columns,
    related_columns,
)
from sae.analysis.verdicts import verdicts
from sae.analysis.work import Arrays, Work
from sae.atlas import (
    CONTEXTS,
    FEATURES,
    FORMAT,
    N_BANDS,
    AtlasRecord,
    Labels,
    carry_labels,
    write_record,
)
from sae.atlas.directions import direction_columns, nearest_features
from sae.atlas.seeds import OtherSeeds
from sae.base import UserError, code_version, digest, require, require_at_least, say
from sae.cache.layout import ActivationCache
from sae.dictionary import Dictionary
from sae.models import LanguageModel, recorded_model, resolve_device
from sae.models.unembed import extreme_logits, unembedding
from sae.run import RUN_CACHE, cache_location
from sae.text.token_texts import TokenTexts

if TYPE_CHECKING:
    import pyarrow

WritePages = Callable[[Path, "pyarrow.Table", "pyarrow.Table", AtlasRecord, Labels], None]
"""Writes the pages of an atlas into its folder, from both tables, its record and labels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnalyzeConfig:
    """Make the atlas of a dictionary: how often, where and how strongly each feature fires.

    The atlas also says which tokens a feature promotes and which other features fire with it.
    It is a folder of tables, with pages that open from disk. `sae serve` shows the same pages
    with the model behind them.
    """

    run: str = "runs/default"
    """Folder of the run; the atlas goes to `{run}/atlas/{dictionary}`."""
    cache: str = RUN_CACHE
    """Cache whose text is read completely."""
    dictionary: str | None = None
    """Name of the dictionary. By default it is the only one of the run, or of several the one
    that `sae eval` recommends."""
    k: int | None = None
    """Number of active latents with which to read a TopK dictionary, by default its own. The
    result is a further dictionary of the run, named `{dictionary}-k-{k}`."""
    n_contexts: int = 10
    """Number of contexts to keep in which a feature fires most strongly, at most one from each
    sequence."""
    n_band_contexts: int = 4
    """Number of contexts to draw from each fifth of the range between zero and a feature's
    highest activation."""
    n_silent: int = 4
    """Number of contexts to draw in which a feature does not fire."""
    context_radius: int = 16
    """Number of tokens to show on either side of an activation."""
    n_logits: int = 10
    """Number of tokens to list whose logits a feature raises most, and of those whose logits it
    lowers most."""
    dials: DialConfig = field(default_factory=DialConfig)
    """How features are scored by what they do to the model's output."""
    seed: int = 0
    """Seed of the random choice of contexts, neutral texts and directions."""
    device: str = "auto"
    """Device to compute on: `cpu`, `cuda`, `cuda:1`, ...; `auto` takes a GPU if there is
    one."""

    def __post_init__(self) -> None:
        require_at_least(self, k=1, n_contexts=1, n_logits=1)
        require_at_least(self, n_band_contexts=0, n_silent=0, context_radius=0)

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


@dataclass(frozen=True, slots=True)
class Analysis:
    """One dictionary's features on the text of one cache.

    Raises:
        UserError: if more contexts are asked for than the cache has sequences.
    """

    config: AnalyzeConfig
    cache: ActivationCache
    name: str
    dictionary: Dictionary
    seeds: OtherSeeds

    def __post_init__(self) -> None:
        asked, there = self.config.n_contexts, self.cache.n_sequences
        require(
            asked <= there,
            f"n_contexts={asked}, of different sequences, but {self.cache.location} has "
            f"{there}; give n_contexts={there} or fewer",
        )

    @property
    def digest(self) -> str:
        """Identifies all that decides the tables."""
        measured = [self.cache.digest, self.dictionary.digest, *self.dictionary.hook_names]
        settings = [self.config.selection, self.config.n_logits, self.config.dials]
        words = ["texts of tokens in context", "dials chosen on a text of their own"]
        return digest([FORMAT, *measured, *settings, *words, *self.seeds.digests])

    def write(self, folder: Path, replaced: Path, kept: Path, pages: WritePages) -> None:
        """Do what is not done yet, and write the atlas into a new folder.

        What people wrote into the labels of the atlas that is `replaced` is taken over, and
        what is done already is `kept` in a folder of its own.

        Raises:
            UserError: if the cache has no text, or the model cannot be had.
        """
        import pyarrow

        work = Work(kept, self.digest)
        text = read_text(self.cache, work)
        require(text.n_rows > 0, f"{self.cache.location} has no text, only special tokens")
        model = recorded_model(self.cache.model, self.config.device)
        dictionary = self.dictionary.to(resolve_device(self.config.device))
        shards = encode_cache(dictionary, self.cache, text, work)
        panels = feature_panels(self.config.selection, shards, text, work)
        texts = TokenTexts(model.tokenizer)
        logits, without = self._logits(dictionary, model, work)
        columns = self._columns(dictionary, shards, text, texts, panels, logits, work)
        peaks = self._peaks(text, panels, work)
        dials = self._dials(columns, (logits, without), peaks, text, model, work)
        stability, seeds = self.seeds.compare()
        columns |= stability
        n_dead = int((np.asarray(columns["n_active"]) == 0).sum())
        record = replace(self._record(text, n_dead), without_logits=without, **dials, **seeds)
        if record.n_dead == record.d_sae:
            say(f"analyze: no feature of {self.name} fires on any of the {text.n_rows} rows")
        folder.mkdir()
        pieces = context_pieces(panels, work, self.config.selection, text, texts)
        CONTEXTS.write_pieces(folder, pieces)
        contexts = CONTEXTS.read(folder)
        automatic = automatic_labels(pyarrow.table(columns), contexts)
        features = FEATURES.write(folder, {**columns, "label": automatic})
        labels = carry_labels(replaced, folder, automatic, self.dictionary.digest)
        pages(folder, features, contexts, record, labels)
        write_record(folder, record)

    def _columns(
        self,
        dictionary: Dictionary,
        shards: list[Shard],
        text: Text,
        texts: TokenTexts,
        panels: list[tuple[slice, str]],
        logits: Arrays,
        work: Work,
    ) -> dict[str, object]:
        """Return all columns of `features.parquet` but the label."""

        def neighbours() -> Arrays:
            indices, cosines = nearest_features(dictionary.W_dec.float(), N_NEIGHBOURS)
            return {"indices": indices.numpy(), "cosines": cosines.numpy()}

        def places() -> Arrays:
            indices, cosines = (torch.from_numpy(near[key]) for key in ("indices", "cosines"))
            return {"places": feature_map(dictionary.W_dec, indices, cosines).numpy()}

        files = [work.open(name) for _, name in panels]
        names = [name for name in files[0].names if name != "activations"]
        found = {name: np.concatenate([file.read(name) for file in files]) for name in names}
        pairs = related_features(shards, text, panels, work)
        near = work.once("neighbours", neighbours)
        on_map = work.once("map", places)["places"]
        promoted = [logits[name].ravel() for name in ("top_ids", "bottom_ids") if logits]
        ids = np.unique(np.concatenate([np.unique(text.tokens), *promoted])).astype(np.int64)
        vocabulary = Vocabulary(ids, texts.single(ids.tolist()))
        columns: dict[str, object] = {
            "feature": np.arange(dictionary.d_sae, dtype=np.int32),
            **panel_columns(found, text, vocabulary),
            **direction_columns(dictionary, near["indices"], near["cosines"], on_map),
            **related_columns(pairs),
        }
        if logits:
            top = found["chosen"][:, : self.config.n_contexts]
            agreement = agreement_of_ids(logits["top_ids"], top, text, vocabulary)
            columns |= logit_columns(logits, agreement, vocabulary)
        return columns

    def _peaks(
        self, text: Text, panels: list[tuple[slice, str]], work: Work
    ) -> NDArray[np.integer]:
        """Return the tokens at the peaks of top contexts, (d_sae, context); −1 for none."""
        files = [work.open(name) for _, name in panels]
        chosen = np.concatenate([file.read("chosen") for file in files])
        chosen = chosen[:, : self.config.n_contexts]
        return np.where(chosen >= 0, text.tokens[chosen], -1)

    def _dials(
        self,
        columns: dict[str, object],
        promoted: tuple[Arrays, str | None],
        peaks: NDArray[np.integer],
        text: Text,
        model: LanguageModel,
        work: Work,
    ) -> dict[str, Any]:
        """Add the columns of dials, and return what the record says of them."""
        config, seed = self.config.dials, self.config.seed
        logits, without = promoted
        if config.n_features == 0:
            return {}
        try:
            require(
                without is None,
                f"they have no promoted tokens whose probability could be measured ({without})",
            )
            every = Candidates(
                self.dictionary,
                np.arange(self.dictionary.d_sae),
                np.asarray(columns["max_activation"]),
                logits["top_ids"],
                peaks,
            )
            require(len(every.alive) > 0, "none of them fires")
            neutral = neutral_texts(text, config, seed)
            some = replace(every, chosen=choose_to_score(config, model, every, neutral, work))
            bench = bench_of(config, model, some, neutral, seed)
        except UserError as error:
            say(f"analyze: features of {self.name} are not scored as dials, because {error}")
            return {"without_dials": str(error)}
        measured = measure_doses(config, bench, neutral[1:], work)
        found = verdicts(config, some, measured, seed)
        columns |= found.columns
        return {
            "n_scored": found.n_scored,
            "n_dials": found.n_dials,
            "n_weak_dials": found.n_weak,
            "median_dial_cost": found.median_cost,
            "stated_dose": config.stated_dose,
            "max_cost": config.max_cost,
            "n_nulls": config.n_nulls,
        }

    def _logits(
        self, dictionary: Dictionary, model: LanguageModel, work: Work
    ) -> tuple[Arrays, str | None]:
        """Return what features promote, or nothing and why that cannot be told."""
        try:
            matrix = unembedding(model.module, self.cache.site(dictionary.hook_name_out))
        except UserError as error:
            say(f"analyze: features of {self.name} have no promoted tokens: {error}")
            return {}, str(error)

        def compute() -> Arrays:
            found = extreme_logits(dictionary.W_dec, matrix, self.config.n_logits)
            return {name: tensor.numpy() for name, tensor in found._asdict().items()}

        return work.once("logits", compute), None

    def _record(self, text: Text, n_dead: int) -> AtlasRecord:
        dictionary = self.dictionary
        return AtlasRecord(
            digest=self.digest,
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
