"""An atlas written in the form of another tool: what `sae atlas export` does."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from sae.atlas import FEATURES, Atlas, AtlasRecord, read_labels
from sae.base import nearest, require, say
from sae.exchange.dashboards import circuit_tracer, neuronpedia, saedashboard
from sae.exchange.dashboards.columns import rescaled, unit_norms
from sae.exchange.dashboards.folders import atlas_at, dictionary_beside
from sae.exchange.dashboards.place import place_of
from sae.exchange.dashboards.rows import Exported, alignment

if TYPE_CHECKING:
    import pyarrow

FORMATS = ("neuronpedia", "upload", "saedashboard", "circuit_tracer")


def export_atlas(
    location: str | Path,
    out: str | Path,
    format: str = "neuronpedia",
    model_id: str | None = None,
    source: str | None = None,
    *,
    fold: bool = True,
    **who: str,
) -> Path:
    """Write an atlas in the form of another tool, and return the folder that was written.

    If the dictionary is in the same run, the neurons that features are aligned with are in it.

    Args:
        location: folder of the atlas, or of a run that has one.
        out: a new folder; for `neuronpedia` it may hold other models and sources.
        format: one of `FORMATS`.
        fold: whether activations and logits are those of unit decoder directions, as tools show
            them that load SAELens's folders; those of circuit-tracer never are.
        who: `creator` and `creator_id`; ids that are not given are made, see `place_of`.

    Raises:
        UserError: for an atlas that is not whole, a folder that is there, or wrong ids.
    """
    require(
        format in FORMATS,
        f"format={format} is unknown{nearest(format, FORMATS, 1)}; choose one of "
        f"{', '.join(FORMATS)}",
    )
    atlas, folder = atlas_at(Path(location)), Path(out)
    place = place_of(atlas.record, model_id, source, **who)
    exported = _exported(atlas, fold=fold and format != "circuit_tracer")
    if format == "neuronpedia":
        return neuronpedia.write_bulk(exported, place, folder, _model_sizes(exported.record))
    if format == "upload":
        written, left = neuronpedia.write_uploads(exported, place, folder)
        say(f"atlas: {written:,} features to upload; {left:,} that never fire are left out")
    elif format == "saedashboard":
        saedashboard.write_dashboards(exported, place, folder)
    else:
        circuit_tracer.write_feature_files(exported, place, folder)
    return folder


def _exported(atlas: Atlas, *, fold: bool) -> Exported:
    import pyarrow

    record = atlas.record
    dictionary = dictionary_beside(atlas.folder)
    if dictionary is None or dictionary.digest != record.dictionary_digest:
        say(
            "atlas: aligned neurons are left out, because the dictionary is not beside the "
            "atlas"
        )
        dictionary = None
    features = atlas.feature_table()
    norms = np.ones(len(features), np.float32)
    if fold:
        norms = unit_norms(features["decoder_norm"].to_numpy(), record.architecture)

    def contexts() -> Iterator["pyarrow.Table"]:
        for batch in atlas.context_batches():
            yield pyarrow.table(rescaled(pyarrow.Table.from_batches([batch]), norms, fold=True))

    unit = torch.from_numpy(norms)[:, None]
    return Exported(
        replace(record, folded=record.folded or bool((norms != 1).any())),
        FEATURES.table(rescaled(features, norms, fold=True)),
        contexts(),
        read_labels(atlas.folder),
        {} if dictionary is None else alignment(dictionary.W_dec.float().cpu() / unit),
    )


def _model_sizes(record: AtlasRecord) -> tuple[int, int]:
    """Layers of the model, and neurons of each; zeros if its config is not on this machine."""
    from transformers import AutoConfig

    here: dict[str, object] = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(record.model_name, **here)
    except Exception:  # Of a library, about somebody's file: any of them means the same.
        return 0, 0
    config = config.get_text_config()
    names = [name for name in ("intermediate_size", "n_inner") if hasattr(config, name)]
    # Configs of GPT-2's kind leave it open where it is four times the width.
    neurons = (getattr(config, names[0]) or 4 * config.hidden_size) if names else 0
    return int(getattr(config, "num_hidden_layers", 0)), int(neurons)
