"""A cache that is to be harvested: looked for, laid out, and its text streamed into it."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sae.base import (
    check_free_space,
    check_writable,
    code_version,
    free_space,
    require,
    say,
)
from sae.cache.create import create_cache, find_cache
from sae.cache.store import is_littered, local_folder, only_writer
from sae.cache.text_writer import write_text
from sae.cache.writer import CacheWriter, bytes_needed
from sae.harvesting.config import HarvestConfig
from sae.models import LanguageModel, measured
from sae.rows.reading import sites_of, tokenizer_digest
from sae.text.packing import TextCounts, TextPlan, pack
from sae.text.tokens import encoded


@dataclass(frozen=True, slots=True)
class Harvest:
    """A cache that is to be made: an artefact of a run."""

    config: HarvestConfig

    @property
    def place(self) -> str:
        """The cache's folder, or its address in an object store."""
        return self.config.cache_location

    def found(self) -> CacheWriter | None:
        """Return what is there of it; something else is refused."""
        return find_cache(self.place, self.config.digest, self.config.digest_before)

    def is_current(self) -> bool:
        """Return whether the cache is there, whole and undamaged."""
        writer = self.found()
        return writer is not None and writer.intact(verify=self.config.verify)

    def is_littered(self) -> bool:
        """Return whether killed processes left something of it on this machine's disks."""
        return is_littered(self.place)

    def held(self) -> AbstractContextManager[None]:
        """Be the only process that writes it, with what killed ones left removed."""
        return only_writer(self.place)

    def check_place(self) -> None:
        """Refuse a folder that cannot be written, or one whose files would be read as text."""
        folder, name = local_folder(self.place), self.config.data.name
        if folder is None:
            return
        check_writable(folder.parent)
        text = Path(name).expanduser()
        require(
            not (text.is_dir() and text.resolve() in folder.resolve().parents),
            f"{folder} would be inside data.name={name} and would itself be read as text; "
            "choose another run=..., or give a folder that only holds text",
        )

    def laid_out(self, model: LanguageModel) -> CacheWriter:
        """Lay out the empty cache, if there is room for it, and say what it will hold."""
        config = self.config
        sites = measured(model.module, sites_of(config, model))
        plan = TextPlan.of(config.n_tokens, config.context_size, config.data.held_out_fraction)
        n_tokens = plan.n_sequences * plan.context_size
        needed = bytes_needed(n_tokens, [site.width for site in sites], config.dtype)
        folder = local_folder(self.place)
        free = "" if folder is None else f", {free_space(folder) / 1e9:.0f} GB are free"
        say(
            f"harvest: {config.n_tokens:,} tokens of {config.data.name} through "
            f"{config.model.name} at {', '.join(site.hook_name for site in sites)}; "
            f"{needed / 1e9:.2f} GB on disk{free}"
        )
        if folder is not None:
            check_free_space(folder, needed)
        return create_cache(
            self.place,
            sites,
            plan,
            dtype=config.dtype,
            compression=config.compression,
            attributes={
                "digest": config.digest,
                "model": model.record.to_json(),
                "tokenizer_digest": tokenizer_digest(model),
                "data": config.data.record.to_json(),
                "one_document_a_row": config.one_document_a_row,
                "bos_token_id": model.bos_token_id,
                "special_token_ids": model.special_token_ids,
                "code_version": code_version(),
            },
        )

    @contextmanager
    def text(self, writer: CacheWriter, model: LanguageModel) -> Iterator[Future[None] | None]:
        """Have a thread stream the text in, ahead of the model; None if it is there."""
        complete, stopped = writer.text_complete, threading.Event()
        if complete and (not self.config.verify or writer.text_intact()):
            yield None
            return
        with ThreadPoolExecutor(1, "text") as thread:
            # Opened once more, for the thread: zarr's objects keep what they have read.
            own = CacheWriter(self.place)
            text = thread.submit(_stream, self.config, own, model, stopped)
            try:
                if complete:
                    # Damaged: no chunk is filled from it before it is whole again.
                    text.result()
                yield text
            finally:
                stopped.set()


def _stream(
    config: HarvestConfig, writer: CacheWriter, model: LanguageModel, stopped: threading.Event
) -> None:
    counts, data = TextCounts(), config.data
    blocks = pack(
        encoded(data, model.tokenizer, config.text_workers, stopped),
        writer.planned,
        model.marks,
        counts,
        held_out_fraction=data.held_out_fraction,
        one_document_a_row=config.one_document_a_row,
    )
    write_text(writer, blocks, counts.digests, counts.summary)
    found, planned = writer.plan.n_sequences, writer.planned.n_sequences
    width = writer.plan.context_size
    if found < planned:
        say(
            f"harvest: the text ended after {found * width:,} of {planned * width:,} tokens; "
            "the cache is as much smaller"
        )
    left_out = {
        "repeated": counts.repeated,
        "empty": counts.empty,
        "not needed any more": counts.unneeded,
    }
    reasons = ", ".join(f"{n:,} {reason}" for reason, n in left_out.items() if n)
    say(
        f"harvest: {counts.used:,} documents used"
        + (f", left out {reasons}" if reasons else "")
        + (f"; {counts.tokens_cut:,} tokens cut at the end" if counts.tokens_cut else "")
        + counts.said_unreadable
    )
