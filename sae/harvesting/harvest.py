"""One harvest: lay a cache out, stream the text in, and fill it, by one process or several."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae.base import duration, progress, read_object, require, say, write_json
from sae.base.processes import Processes
from sae.cache.stored import joined_stored, to_stored
from sae.cache.writer import CacheWriter
from sae.harvesting.artefact import Harvest
from sae.harvesting.config import HarvestConfig
from sae.models import LanguageModel, load_model, load_tokenizer
from sae.rows.reading import activations, check_sites, sites_of, tokenizer_digest
from sae.run import Run, make_together
from sae.text.tokens import check_text

_POLL_SECONDS = 0.1


def harvest(config: HarvestConfig, processes: Processes) -> None:
    """Harvest, or complete a harvest that was interrupted, or reuse a finished one.

    Several processes fill one cache, taking turns with its chunks; all of them call this.
    """
    asked = Harvest(config)
    if processes.rank > 0:
        if processes.share(None):
            _fill_share(asked, processes)
        return
    asked.check_place()

    def check(_: object) -> None:
        if asked.found() is None:
            check_text(config.data, lambda: load_tokenizer(config.model))
        check_sites(config)

    made = make_together(
        [asked], lambda _: _fill_share(asked, processes), command="harvest", check=check
    )
    if not made:
        processes.share(False)


def _fill_share(asked: Harvest, processes: Processes) -> None:
    """Fill a share of the chunks; the first process lays the cache out, and finishes it."""
    leads = processes.rank == 0
    known = None if leads else CacheWriter(asked.place)
    model = _model(asked, processes)
    writer = known or asked.found() or asked.laid_out(model)
    _check_same_model(asked, writer, model)
    with asked.text(writer, model) if leads else nullcontext() as text:
        if leads:
            processes.share(True)
        _fill(asked, writer, model, text, processes)
    processes.barrier()
    if leads:
        writer.finish()
        for hook, about in writer.attributes["hooks"].items():
            rows = about["training_rows"]
            special, sinks = rows["all"] - rows["text"], rows["sinks"]
            say(
                f"harvest: {hook}: of {rows['all']:,} training rows "
                f"{special / rows['all']:.2%} are special tokens or padding, "
                f"{sinks / rows['all']:.2%} attention sinks; both are left out of training"
            )
    processes.barrier()


def _model(asked: Harvest, processes: Processes) -> LanguageModel:
    """Load the model; each of several processes of a machine takes a GPU of its own."""
    config = asked.config.model
    several = processes.size > 1 and config.device in ("auto", "cuda")
    if several and torch.cuda.is_available():
        device = processes.local_rank % torch.cuda.device_count()
        config = replace(config, device=f"cuda:{device}")
    return load_model(config)


def _check_same_model(asked: Harvest, writer: CacheWriter, model: LanguageModel) -> None:
    for what, begun, now in (
        ("other weights", writer.model.weight_digest, model.record.weight_digest),
        ("another tokenizer", writer.attributes["tokenizer_digest"], tokenizer_digest(model)),
        ("another beginning token", writer.attributes["bos_token_id"], model.bos_token_id),
    ):
        require(
            begun == now,
            f"{asked.place} was begun with {what} of {asked.config.model.name} "
            f"({begun}, now {now}); choose another run=... or remove it",
        )


def _fill(
    asked: Harvest,
    writer: CacheWriter,
    model: LanguageModel,
    text: Future[None] | None,
    processes: Processes,
) -> None:
    """Compute and store the chunks of this process that are not there, as their text comes.

    `text` is on its way, if this process streams it in. Chunks that are there are read, if so
    asked, and computed again if damaged. The first process keeps the time that was spent.
    """
    sites, size = sites_of(asked.config, model), asked.config.sequences_a_batch(model.device)
    missing = writer.missing(
        verify=asked.config.verify, rank=processes.rank, n_ranks=processes.size
    )
    width = writer.plan.context_size
    todo = sum(c.stop - c.start for c in missing) * width
    share = sum(c.stop - c.start for c in writer.chunks()[processes.rank :: processes.size])
    if todo < share * width:
        say(
            f"harvest: {share * width - todo:,} tokens are finished already; the harvest "
            "continues"
        )
    pace = _Pace(Run.at(asked.config.run).harvest_timing if processes.rank == 0 else None, todo)
    with (
        writer.explained_full_disk(),
        progress(share * width, "harvest", "tok", share * width - todo) as bar,
        ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as disk,
    ):
        bar.disable = bar.disable or processes.rank > 0
        writing: Future[None] | None = None
        for planned in missing:
            chunk, tokens = _final(writer, planned, text)
            if tokens is None:
                break
            began = time.perf_counter()
            seen = activations(tokens, writer.documents(chunk) >= 0, model, sites, size)
            # One chunk is written while the next one is computed.
            if writing is not None:
                writing.result()
            writing = disk.submit(_store, writer, chunk, seen)
            n = (chunk.stop - chunk.start) * width
            pace.add(n, time.perf_counter() - began)
            bar.update(n)
        if writing is not None:
            writing.result()
        if text is not None:
            text.result()
            writer.refresh()


def _final(
    writer: CacheWriter, chunk: slice, text: Future[None] | None
) -> tuple[slice, NDArray[np.int32] | None]:
    """Return a chunk, cut where the text ends, with its tokens; None if it ends before."""
    while True:
        if text is not None and text.done():
            text.result()
        n = writer.plan.n_sequences
        found = slice(chunk.start, min(chunk.stop, n))
        if chunk.start >= n:
            return found, None
        tokens = writer.tokens(found)
        if tokens is not None:
            return found, tokens
        if writer.text_complete:
            raise writer.damaged_text()
        time.sleep(_POLL_SECONDS)
        writer.refresh()


def _store(writer: CacheWriter, chunk: slice, seen: list[dict[str, Tensor]]) -> None:
    # Each batch as it is stored, and then together: half the bytes that have to be moved.
    parts = {h: [to_stored(batch[h], writer.dtype) for batch in seen] for h in writer.hooks}
    writer.write_stored(chunk, ((h, joined_stored(stored)) for h, stored in parts.items()))


class _Pace:
    """Seconds spent on tokens, over all the times that the harvest was started."""

    def __init__(self, path: Path | None, todo: int) -> None:
        self._path, self._todo = path, todo
        self._seconds, self._tokens = 0.0, 0
        if path is not None and path.exists():
            spent = read_object(path, "remove it; only the time is forgotten")
            self._seconds = spent.maybe("seconds", float) or 0.0
            self._tokens = spent.maybe("tokens", int) or 0
        self._first = True

    def add(self, n_tokens: int, spent: float) -> None:
        self._seconds += spent
        self._tokens += n_tokens
        self._todo -= n_tokens
        if self._path is None:
            return
        if self._first and self._todo:
            seconds = self._todo / n_tokens * spent
            say(
                f"harvest: {n_tokens / spent:,.0f} tokens/s, so it will take about "
                f"{duration(seconds)} more"
            )
        self._first = False
        timing = {
            "seconds": self._seconds,
            "tokens": self._tokens,
            "tokens_per_second": self._tokens / self._seconds,
        }
        write_json(self._path, timing)
