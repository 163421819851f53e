"""`sae atlas VERB`: atlases for Neuronpedia and other tools, and atlases from these."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sae.analysis.atlas import FEATURES_FILE, MANIFEST_FILE, Atlas
from sae.analysis.labels import read_labels
from sae.base.errors import nearest, require
from sae.base.progress import say
from sae.commands.atlas_import import dictionary_beside, import_atlas
from sae.commands.verbs import Key, Show, Verb, among, run_verb
from sae.exchange.dashboards import (
    circuit_tracer,
    neuronpedia,
    neuronpedia_upload,
    saedashboard,
)
from sae.exchange.dashboards.place import DEFAULT_CREATOR, DEFAULT_CREATOR_ID, place_of
from sae.exchange.dashboards.rows import AtlasTables, alignment, unit_norms

FORMATS = ("neuronpedia", "upload", "saedashboard", "circuit_tracer")


def run(words: Sequence[str], show: Show) -> int:
    """Run a verb; the exit status.

    Args:
        words: what stands behind `sae atlas`.
        show: prints a line.

    Raises:
        UserError: for an unknown verb or key, a wrong value, and what the verbs refuse.
    """
    return run_verb("atlases for other tools, and from them", VERBS, words, show)


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
    """Write an atlas in the form of another tool.

    If the dictionary is in the same run, the neurons that features are aligned with are in it.

    Args:
        location: folder of the atlas, or of a run that has one.
        out: a new folder; for `neuronpedia` it may hold other models and sources.
        format: one of `FORMATS`.
        model_id: Neuronpedia's id of the model; made of the model's name if None.
        source: Neuronpedia's `LAYER-SET`; made of hook and dictionary if None.
        fold: whether activations and logits are those of unit decoder directions, as tools show
            them that load SAELens's folders; those of circuit-tracer never are.
        who: `creator` and `creator_id`, who it is shown as made by.

    Returns:
        The folder that was written.

    Raises:
        UserError: for an unfinished or damaged atlas, a folder that is there already, or ids
            that Neuronpedia does not take.
    """
    require(
        format in FORMATS,
        f"format={format} is unknown{nearest(format, FORMATS, 1)}; choose one of "
        f"{', '.join(FORMATS)}",
    )
    atlas, folder = _atlas(Path(location)), Path(out)
    place = place_of(atlas.manifest, model_id, source, **who)
    tables = _tables(atlas, fold=fold and format != "circuit_tracer")
    if format == "neuronpedia":
        return neuronpedia.write_bulk(tables, place, folder, _model_sizes(atlas.manifest))
    if format == "upload":
        written, left = neuronpedia_upload.write_uploads(tables, place, folder)
        say(f"atlas: {written:,} features to upload; {left:,} that never fire are left out")
    elif format == "saedashboard":
        saedashboard.write_dashboards(tables, place, folder)
    else:
        circuit_tracer.write_features(tables, place, folder)
    return folder


def _tables(atlas: Atlas, *, fold: bool) -> AtlasTables:
    """What dashboards are made of; `fold` as for `export_atlas`."""
    manifest = atlas.manifest
    label, explanation, by_hand = read_labels(atlas.folder).columns
    dictionary = dictionary_beside(atlas.folder)
    same = dictionary is not None and dictionary.digest == manifest["dictionary_digest"]
    if not same:
        say("atlas: without its dictionary beside it, aligned neurons are left out")
    features = atlas.feature_table()
    norms = np.ones(len(features), np.float32)
    if fold:
        measured = features["decoder_norm"].to_numpy().astype(np.float32)
        norms = unit_norms(measured, manifest.get("architecture"))
    aligned = None
    if dictionary is not None and same:
        aligned = alignment(dictionary.W_dec.float().cpu() / torch.from_numpy(norms)[:, None])
    folded = bool(manifest.get("folded")) or bool((norms != 1).any())
    return AtlasTables(
        manifest | {"folded": folded},
        features,
        atlas.context_batches(),
        (label, explanation, set(by_hand)),
        norms,
        aligned,
    )


def _model_sizes(manifest: dict[str, Any]) -> tuple[int, int]:
    """Layers of the model, and neurons of each; zeros if its config is not on this machine."""
    from transformers import AutoConfig

    here: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(str(manifest["model_name"]), **here)
    except (OSError, ValueError):
        return 0, 0
    config = config.get_text_config()
    names = [name for name in ("intermediate_size", "n_inner") if hasattr(config, name)]
    # Configs of GPT-2's kind leave it open where it is four times the width.
    neurons = (getattr(config, names[0]) or 4 * config.hidden_size) if names else 0
    return int(getattr(config, "num_hidden_layers", 0)), int(neurons)


def _atlas(location: Path) -> Atlas:
    """The atlas in a folder, or the only one of a run."""
    require(location.is_dir(), f"{location} is no folder; give an atlas, or a run that has one")
    if not (location / MANIFEST_FILE).exists():
        inside = sorted(path.parent for path in location.glob(f"atlas/[!.]*/{MANIFEST_FILE}"))
        require(
            len(inside) <= 1,
            f"{location} has {len(inside)} atlases; give one: {', '.join(map(str, inside))}",
        )
        require(
            bool(inside) or (location / FEATURES_FILE).exists(),
            f"{location} holds no atlas; give the folder of one, or a run for which sae "
            "analyze has made one",
        )
        location = inside[0] if inside else location
    return Atlas(location)


# The verbs


def _export(show: Show, location: str, out: str, **settings: Any) -> int:
    given = {key: value for key, value in settings.items() if value is not None}
    show(str(export_atlas(location, out, **given)))
    return 0


def _import(show: Show, location: str, out: str) -> int:
    atlas = import_atlas(location, out)
    show(f"{atlas.folder}: {atlas.manifest['d_sae']:,} features; look at {out}/index.html")
    return 0


_FLAGS = {"true": True, "false": False}
_EXPORT = (
    Key(
        "format",
        str.lower,
        ", ".join(FORMATS),
        "neuronpedia",
        "whose form: the folder that Neuronpedia imports, bodies for its upload call, "
        "SAEDashboard's JSON, or circuit-tracer's feature files",
    ),
    Key(
        "model_id",
        str,
        "a name",
        None,
        "Neuronpedia's id of the model, as gpt2-small; if null, made of the model's name",
    ),
    Key(
        "source",
        str,
        "LAYER-SET",
        None,
        "Neuronpedia's id of the source, as 8-res-jb; if null, made of the hook and the "
        "dictionary's name",
    ),
    Key(
        "fold",
        among(_FLAGS),
        "true or false",
        True,
        "activations of unit decoder directions, as tools show them that load SAELens's "
        "folders",
    ),
    Key("creator", str, "a name", DEFAULT_CREATOR, "who it is shown as made by"),
    Key(
        "creator_id",
        str,
        "an id",
        DEFAULT_CREATOR_ID,
        "the id of a user of Neuronpedia; by default the one whom SAEDashboard names",
    ),
)
VERBS = {
    verb.name: verb
    for verb in (
        Verb(
            "sae atlas",
            "export",
            "PATH OUT",
            "an atlas, or the one of a run, for Neuronpedia and other tools",
            "sae atlas export runs/default upload-here format=neuronpedia model_id=gpt2-small "
            "source=8-res-mine",
            _export,
            _EXPORT,
        ),
        Verb(
            "sae atlas",
            "import",
            "SRC OUT",
            "an atlas from a Neuronpedia export or SAEDashboard's JSON",
            "sae atlas import gpt2-small/8-res-jb runs/mine/atlas/res-jb",
            _import,
        ),
    )
}
