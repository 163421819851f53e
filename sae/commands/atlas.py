"""`sae atlas VERB`: atlases for Neuronpedia and other tools, and atlases from these."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae.analysis.map import N_NEIGHBOURS, feature_map
from sae.analysis.naming import automatic_labels
from sae.atlas.atlas import Atlas
from sae.commands.verbs import Key, Show, Verb, among, run_verb
from sae.exchange.dashboards import importing
from sae.exchange.dashboards.exporting import FORMATS, export_atlas
from sae.exchange.dashboards.place import DEFAULT_CREATOR, DEFAULT_CREATOR_ID
from sae.reporting.site import write_site


def run(words: Sequence[str], show: Show) -> int:
    """Run a verb; the exit status.

    Args:
        words: what stands behind `sae atlas`.
        show: prints a line.

    Raises:
        UserError: for an unknown verb or key, a wrong value, and what the verbs refuse.
    """
    return run_verb("atlases for other tools, and from them", VERBS, words, show)


def import_atlas(location: str | Path, out: str | Path) -> Atlas:
    """Read dashboards of another tool as an atlas, with labels, map and pages like ours.

    Raises:
        UserError: as `sae.exchange.dashboards.importing.import_atlas`.
    """
    makers = importing.Makers(automatic_labels, N_NEIGHBOURS, feature_map, write_site)
    return importing.import_atlas(location, out, makers)


# The verbs


def _export(show: Show, location: str, out: str, **settings: Any) -> int:
    given = {key: value for key, value in settings.items() if value is not None}
    show(str(export_atlas(location, out, **given)))
    return 0


def _import(show: Show, location: str, out: str) -> int:
    atlas = import_atlas(location, out)
    show(f"{atlas.folder}: {atlas.record.d_sae:,} features; look at {out}/index.html")
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
