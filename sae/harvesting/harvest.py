"""One harvest: lay a cache out, stream the text in, and fill it, by one process or several."""

from contextlib import nullcontext
from dataclasses import replace

import torch

from sae.base import require, say
from sae.base.processes import Processes
from sae.cache.writer import CacheWriter
from sae.harvesting.artefact import Harvest
from sae.harvesting.config import HarvestConfig
from sae.harvesting.fill import fill
from sae.models import LanguageModel, load_model
from sae.rows.reading import check_sites, tokenizer_digest
from sae.run import make_together
from sae.text.source import check_source


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
            check_source(config.data)
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
        fill(asked, writer, model, text, processes)
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
    """The model, on a GPU of its own for each process of a machine, where there are several."""
    config = asked.config.model
    several = processes.size > 1 and config.device in ("auto", "cuda")
    if several and torch.cuda.is_available():
        device = processes.local_rank % torch.cuda.device_count()
        config = replace(config, device=f"cuda:{device}")
    return load_model(config)


def _check_same_model(asked: Harvest, writer: CacheWriter, model: LanguageModel) -> None:
    for what, begun, now in (
        ("weights", writer.attributes["model"]["weight_digest"], model.record.weight_digest),
        ("tokenizer", writer.attributes["tokenizer_digest"], tokenizer_digest(model)),
    ):
        require(
            begun == now,
            f"{asked.place} was begun with other {what} of {asked.config.model.name} "
            f"({begun}, now {now}); choose another run=... or remove it",
        )
