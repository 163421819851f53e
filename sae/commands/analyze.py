"""`sae analyze`: how often every feature of a dictionary fires, where, and what it promotes."""

from pathlib import Path
from typing import TYPE_CHECKING

from sae.analysis.analyze import Analysis, AnalyzeConfig
from sae.analysis.dials import DialConfig
from sae.atlas import Atlas, AtlasRecord, Labels, read_labels, replace_atlas
from sae.base import say
from sae.cache.layout import open_cache
from sae.evaluation.seeds import other_seeds
from sae.pages.compare import link_atlases, others_of
from sae.pages.site import write_labels_data, write_pareto_data, write_site
from sae.rows.origin import check_same_origin
from sae.run import Run, keep_settings, make

if TYPE_CHECKING:
    import pyarrow

__all__ = ["AnalyzeConfig", "DialConfig", "run"]


def run(config: AnalyzeConfig) -> Atlas:
    """Make the atlas, or reuse one made from the same dictionary, cache and settings.

    Labels that people wrote into the one that is replaced are taken over. A killed analysis
    goes on where it stopped.
    """
    run = Run.at(config.run)
    cache = open_cache(config.cache_location)
    name, dictionary = run.load_at(config.dictionary, config.k, "analyze")
    check_same_origin(name, dictionary, cache)
    others = other_seeds(run, name, dictionary, cache)
    analysis = Analysis(config, cache, name, dictionary, others)
    atlas = Atlas(run.atlas(name))
    wanted = analysis.digest

    def pages(
        folder: Path,
        features: "pyarrow.Table",
        contexts: "pyarrow.Table",
        record: AtlasRecord,
        labels: Labels,
    ) -> None:
        write_site(folder, features, contexts, record, labels, others_of(run, name))

    work = run.atlases / f".{name}.work"

    def build(folder: Path) -> None:
        analysis.write(folder, atlas.folder, work, pages)

    def replace(new: Path, old: Path) -> None:
        replace_atlas(new, old, write_labels_data)

    made = make(
        atlas.folder,
        lambda: atlas.digest == wanted,
        build,
        command="analyze",
        work=work,
        replace=replace,
    )
    if made:
        keep_settings(config, "analyze", atlas.folder)
    if made:
        say(f"analyze: {atlas.folder} is written; look at it with: sae serve {config.run}")
    else:
        # What may have changed beside a reused atlas: its labels, the run's other dictionaries.
        write_labels_data(atlas.folder, read_labels(atlas.folder))
        write_pareto_data(atlas.folder, others_of(run, name))
    link_atlases(run)
    return atlas
