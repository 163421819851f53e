"""One harvest: lay a cache out, stream the text in, and fill it, by one process or several."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from sae.base import check_free_space, check_writable, code_version, plain, require, say
from sae.base.files import free_space
from sae.base.processes import Processes
from sae.cache.create import create_cache, find_cache
from sae.cache.store import local_folder, only_writer, sweep
from sae.cache.writer import CacheWriter, bytes_needed
from sae.harvesting.fill import fill
from sae.harvesting.text_stream import TextStream
from sae.models import LanguageModel, ModelConfig, load_model, measured
from sae.rows.reading import (
    Reading,
    activations,
    check_sites,
    marks_of,
    sites_of,
    tokenizer_digest,
)
from sae.run import make_together
from sae.text.packing import TextPlan
from sae.text.source import DataConfig, check_source


@dataclass(frozen=True, slots=True)
class Harvest:
    """A cache that is to be made: an artefact of a run."""

    reading: Reading
    place: str
    """Its folder, or its address in an object store."""
    digest: str
    """Identifies what it is to hold."""
    n_tokens: int
    compression: str
    verify: bool
    """Whether what is there already is read back."""
    timing_path: Path
    """Where the time that was spent is kept."""

    def is_current(self) -> bool:
        """Return whether the cache is there, whole and undamaged.

        Raises:
            UserError: if something else is there.
        """
        writer = find_cache(self.place, self.digest)
        return writer is not None and writer.intact(verify=self.verify)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be the only process that writes it, with what killed ones left removed."""
        with only_writer(self.place):
            sweep(self.place)
            yield


def harvest(asked: Harvest, processes: Processes) -> None:
    """Harvest, or complete a harvest that was interrupted, or reuse a finished one.

    Several processes fill one cache, taking turns with its chunks; all of them call this.
    """
    if processes.rank > 0:
        _follow(asked, processes)
        return
    folder = local_folder(asked.place)
    if folder is not None:
        check_writable(folder.parent)
        _check_apart(folder, asked.reading.data)

    def check(_: object) -> None:
        if find_cache(asked.place, asked.digest) is None:
            check_source(asked.reading.data)
        check_sites(asked.reading)

    made = make_together(
        [asked], lambda _: _lead(asked, processes), command="harvest", check=check
    )
    if not made:
        processes.share(False)


def _lead(asked: Harvest, processes: Processes) -> None:
    """Lay out the cache, stream the text in, fill a share of the chunks, and finish."""
    model = load_model(_on_own_device(asked.reading.model, processes))
    writer = find_cache(asked.place, asked.digest) or _create(asked, model)
    _check_same_model(asked, writer, model)
    with _text(asked, writer, model) as text:
        processes.share(True)
        _fill(asked, writer, model, text, processes)
    processes.barrier()
    writer.finish()
    _say_what_rows(writer)
    processes.barrier()


def _follow(asked: Harvest, processes: Processes) -> None:
    """Fill a share of the chunks of the cache that the first process has laid out."""
    if not processes.share(None):
        return
    writer = CacheWriter(asked.place)
    model = load_model(_on_own_device(asked.reading.model, processes))
    _check_same_model(asked, writer, model)
    _fill(asked, writer, model, None, processes)
    processes.barrier()
    processes.barrier()


def _check_apart(cache: Path, data: DataConfig) -> None:
    """Refuse a cache inside the folder of its text: its own files would be read as text."""
    text = Path(data.name).expanduser()
    require(
        not (text.is_dir() and text.resolve() in cache.resolve().parents),
        f"{cache} would be inside data.name={data.name}, and be read as text; choose another "
        "run=... or name a folder of text alone",
    )


def _on_own_device(config: ModelConfig, processes: Processes) -> ModelConfig:
    """A GPU for each process of a machine, where there are several."""
    several = processes.size > 1 and config.device in ("auto", "cuda")
    if several and torch.cuda.is_available():
        device = processes.local_rank % torch.cuda.device_count()
        return replace(config, device=f"cuda:{device}")
    return config


def _check_same_model(asked: Harvest, writer: CacheWriter, model: LanguageModel) -> None:
    """Refuse to mix activations of two models in one cache."""
    for what, begun, now in (
        ("weights", writer.model.weight_digest, model.record.weight_digest),
        ("tokenizer", writer.attributes["tokenizer_digest"], tokenizer_digest(model)),
    ):
        require(
            begun == now,
            f"{asked.place} was begun with other {what} of {asked.reading.model.name} "
            f"({begun}, now {now}); choose another run=... or remove it",
        )


def _create(asked: Harvest, model: LanguageModel) -> CacheWriter:
    reading = asked.reading
    sites = measured(model.module, sites_of(reading, model))
    plan = TextPlan.of(asked.n_tokens, reading.context_size, reading.data.held_out_fraction)
    n_tokens = plan.n_sequences * plan.context_size
    needed = bytes_needed(n_tokens, [site.width for site in sites], reading.dtype)
    folder = local_folder(asked.place)
    free = "" if folder is None else f", {free_space(folder) / 1e9:.0f} GB are free"
    say(
        f"harvest: {asked.n_tokens:,} tokens of {reading.data.name} through "
        f"{reading.model.name} at {', '.join(site.hook_name for site in sites)}; "
        f"{needed / 1e9:.2f} GB on disk{free}"
    )
    if folder is not None:
        check_free_space(folder, needed)
    return create_cache(
        asked.place,
        sites,
        plan,
        dtype=reading.dtype,
        compression=asked.compression,
        attributes={
            "digest": asked.digest,
            "model": model.record.to_json(),
            "tokenizer_digest": tokenizer_digest(model),
            "data": plain(reading.data),
            "one_document_a_row": reading.one_document_a_row,
            "bos_token_id": model.bos_token_id,
            "special_token_ids": model.special_token_ids,
            "code_version": code_version(),
        },
    )


@contextmanager
def _text(
    asked: Harvest, writer: CacheWriter, model: LanguageModel
) -> Iterator[TextStream | None]:
    """The text on its way into the cache; None if it is there."""
    complete = writer.text_complete
    if complete and (not asked.verify or writer.text_intact()):
        yield None
        return
    stream = TextStream(
        asked.place,
        asked.reading.data,
        model.tokenizer,
        marks_of(model),
        n_workers=asked.reading.text_workers,
        one_document_a_row=asked.reading.one_document_a_row,
    )
    with stream:
        if complete:
            # Damaged: no chunk is filled from it before it is whole again.
            stream.finish()
        yield stream


def _fill(
    asked: Harvest,
    writer: CacheWriter,
    model: LanguageModel,
    text: TextStream | None,
    processes: Processes,
) -> None:
    compute = partial(
        activations,
        model=model,
        sites=sites_of(asked.reading, model),
        batch_size=asked.reading.sequences_a_batch(model.device),
    )
    fill(writer, compute, text, processes, verify=asked.verify, timing_path=asked.timing_path)


def _say_what_rows(writer: CacheWriter) -> None:
    """Which of the training rows later commands read, and which they leave out."""
    for hook, about in writer.attributes["hooks"].items():
        rows = about["training_rows"]
        special, sinks = rows["all"] - rows["text"], rows["sinks"]
        say(
            f"harvest: {hook}: of {rows['all']:,} training rows {special / rows['all']:.2%} "
            f"are special tokens or padding, {sinks / rows['all']:.2%} attention sinks; both "
            "are left out of training"
        )
