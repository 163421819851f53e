"""`sae atlas export | import`: atlases to and from Neuronpedia and other tools."""

from dataclasses import dataclass
from pathlib import Path

from sae.analysis.map import N_NEIGHBOURS, feature_map
from sae.analysis.naming import automatic_labels
from sae.atlas import Atlas
from sae.base import show
from sae.exchange.dashboards import importing
from sae.exchange.dashboards.exporting import export_atlas
from sae.exchange.dashboards.place import DEFAULT_CREATOR, DEFAULT_CREATOR_ID
from sae.pages.site import write_site


@dataclass(frozen=True, kw_only=True, slots=True)
class AtlasExportConfig:
    """Write an atlas in the form of another tool."""

    atlas: str
    """The folder of an atlas, or of a run that has one."""
    out: str
    """The folder to write. With `format=neuronpedia` it may already hold other models and
    sources."""
    format: str = "neuronpedia"
    """Form to write: `neuronpedia`, the folder that Neuronpedia imports; `upload`, the bodies
    for its upload call; `saedashboard`, SAEDashboard's JSON; or `circuit_tracer`,
    circuit-tracer's feature files."""
    model_id: str | None = None
    """Neuronpedia's id of the model, such as `gpt2-small`. By default it is made of the model's
    name."""
    source: str | None = None
    """Neuronpedia's id of the source, such as `8-res-jb`. By default it is made of the hook and
    the dictionary's name."""
    fold: bool = True
    """Write activations for decoder directions of norm one, as they are shown by tools that
    load SAELens's folders."""
    creator: str = DEFAULT_CREATOR
    """Name that is shown as the maker of the atlas."""
    creator_id: str = DEFAULT_CREATOR_ID
    """Id of a user of Neuronpedia. By default it is the one that SAEDashboard uses."""


def export(config: AtlasExportConfig) -> Path:
    """Write the atlas, and return the folder that was written."""
    folder = export_atlas(
        config.atlas,
        config.out,
        config.format.lower(),
        config.model_id,
        config.source,
        fold=config.fold,
        creator=config.creator,
        creator_id=config.creator_id,
    )
    show(str(folder))
    return folder


@dataclass(frozen=True, kw_only=True, slots=True)
class AtlasImportConfig:
    """Make an atlas, with its tables and pages, from the dashboards of another tool."""

    folder: str
    """Folder of an export of Neuronpedia, or of SAEDashboard's JSON."""
    out: str
    """The folder of the new atlas. `RUN/atlas/NAME` puts it into a run."""


def import_(config: AtlasImportConfig) -> Atlas:
    """Write the atlas with labels, a map and pages like ours, and return it."""
    makers = importing.Makers(automatic_labels, N_NEIGHBOURS, feature_map, write_site)
    atlas = importing.import_atlas(config.folder, config.out, makers)
    features = f"{atlas.record.d_sae:,} features"
    show(f"{atlas.folder}: {features}; look at {config.out}/index.html")
    return atlas
