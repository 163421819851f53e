"""An atlas for Neuronpedia: the folder that it imports in bulk.

The bulk layout is that of its public exports (docs.neuronpedia.org/api-and-data/exports) and of
SAEDashboard's `neuronpedia_export.py`: `{model}/{layer}-{set}/` with `release.jsonl`,
`model.jsonl`, `sourceset.jsonl`, `source.jsonl`, and `features/`, `activations/` and
`explanations/` of `batch-N.jsonl.gz`, 1,024 features a batch. Rows have the fields of its
database (`apps/webapp/prisma/schema.prisma`: Neuron, Activation, Explanation, Source,
SourceSet, SourceRelease, Model). What else is known of an atlas goes into the free field
`saelensConfig` of its source.
"""

import gzip
import hashlib
from collections.abc import Iterable
from pathlib import Path

from sae.atlas import AtlasRecord
from sae.base import progress
from sae.exchange.dashboards.neuronpedia_heads import heads
from sae.exchange.dashboards.new_folder import new_folder
from sae.exchange.dashboards.place import Place
from sae.exchange.dashboards.rows import Dashboard, Exported, Shown, dashboards, json_bytes

BATCH = 1024
"""Features a file of the bulk layout."""
BY_HAND, AUTOMATIC, EXPLANATION = "label by hand", "automatic label", "explanation"
"""What an explanation's notes say it is."""


def write_bulk(
    atlas: Exported, place: Place, folder: Path, sizes: tuple[int, int] = (0, 0)
) -> Path:
    """Write the layout that Neuronpedia imports; returns `{folder}/{model}/{source}`.

    A feature has one row, a context that is not silent has one, and so has a label or an
    explanation. Memory does not grow with the number of features beyond the table of them.

    Args:
        folder: where the model's folder goes.
        sizes: layers of the model, and neurons of each; zeros if they are not known.

    Raises:
        UserError: if the source's folder exists, or another process writes it.
    """
    target = folder / place.model_id / place.source
    with (
        new_folder(target) as temporary,
        progress(len(atlas.features), "export", "feature") as bar,
    ):
        for name, row in heads(atlas.record, place, sizes).items():
            (temporary / f"{name}.jsonl").write_bytes(json_bytes(row) + b"\n")
        for number, block in enumerate(dashboards(atlas, BATCH)):
            kinds = {
                "features": (_feature(atlas.record, place, one) for one in block),
                "activations": (_activation(*each) for each in _contexts(atlas, place, block)),
                "explanations": _explanations(atlas, place, block),
            }
            for kind, rows in kinds.items():
                _write_rows(temporary / kind / f"batch-{number}.jsonl.gz", rows)
            bar.update(len(block))
    return target


def _write_rows(path: Path, rows: Iterable[dict[str, object]]) -> None:
    path.parent.mkdir(exist_ok=True)
    # No name and no time inside, so that the same rows are the same bytes.
    with (
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=5, fileobj=raw, mtime=0) as file,
    ):
        for row in rows:
            file.write(json_bytes(row) + b"\n")


def _id(place: Place, *what: object) -> str:
    """25 characters that the same row has every time, as its database's ids look."""
    name = "/".join(map(str, (place.model_id, place.source, *what)))
    return "c" + hashlib.sha256(name.encode()).hexdigest()[:24]


def _feature(record: AtlasRecord, place: Place, one: Dashboard) -> dict[str, object]:
    x, y = one.place or (None, None)
    return {
        "modelId": place.model_id,
        "layer": place.source,
        "index": str(one.feature),
        "sourceSetName": place.source_set,
        "creatorId": place.creator_id,
        "maxActApprox": one.highest,
        "hasVector": False,
        "vector": [],
        "vectorLabel": None,
        "hookName": record.hook_name,
        "topkCosSimIndices": one.neighbours,
        "topkCosSimValues": one.cosines,
        **one.fields,
        "decoder_weights_dist": [],
        "umap_x": x,
        "umap_y": y,
    }


def _contexts(
    atlas: Exported, place: Place, block: list[Dashboard]
) -> Iterable[tuple[dict[str, object], Shown]]:
    """Every context, with what its row says besides."""
    for one in block:
        for number, context in enumerate(one.contexts):
            about: dict[str, object] = {
                "id": _id(place, "activation", one.feature, number),
                "modelId": place.model_id,
                "layer": place.source,
                "index": str(one.feature),
                "creatorId": place.creator_id,
                "dataSource": atlas.record.data,
            }
            yield about, context


def _activation(about: dict[str, object], context: Shown) -> dict[str, object]:
    known = context.sequence >= 0
    return {
        **about,
        "dataIndex": f"{context.sequence}:{context.start}" if known else None,
        "tokens": context.tokens,
        "values": context.values,
        "maxValue": context.values.max(),
        "maxValueTokenIndex": int(context.values.argmax()),
        "minValue": context.values.min(),
        "qualifyingTokenIndex": context.peak,
        "binMin": context.bin_min,
        "binMax": context.bin_max,
        "binContains": context.bin_contains,
        "dfaValues": [],
        "dfaTargetIndex": None,
        "dfaMaxValue": None,
        "lossValues": [],
        "logitContributions": None,
    }


def texts_of(atlas: Exported, feature: int) -> list[tuple[str, str]]:
    """What is said of a feature, and of which kind that is; of a dead one only by people."""
    label, explanation = atlas.labels.label[feature], atlas.labels.explanation[feature]
    found = []
    if label != atlas.labels.automatic[feature]:
        found.append((label, BY_HAND))
    elif label and atlas.features["density"][feature].as_py() > 0:
        found.append((label, AUTOMATIC))
    if explanation:
        found.append((explanation, EXPLANATION))
    return [(text.replace("\x00", "\ufffd"), kind) for text, kind in found]


def _explanations(
    atlas: Exported, place: Place, block: list[Dashboard]
) -> Iterable[dict[str, object]]:
    for one in block:
        for text, kind in texts_of(atlas, one.feature):
            yield {
                "id": _id(place, kind, one.feature),
                "modelId": place.model_id,
                "layer": place.source,
                "index": str(one.feature),
                "authorId": place.creator_id,
                "description": text,
                "notes": kind,
                # Names of methods and models that its database does not know are refused.
                "typeName": None,
                "explanationModelName": None,
            }
