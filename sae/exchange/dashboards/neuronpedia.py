"""Neuronpedia: the folder that it imports in bulk, written and read, and bodies for uploads.

The bulk layout is that of its public exports (docs.neuronpedia.org/api-and-data/exports) and of
SAEDashboard's `neuronpedia_export.py`: `{model}/{layer}-{set}/` with `release.jsonl`,
`model.jsonl`, `sourceset.jsonl`, `source.jsonl`, and `features/`, `activations/` and
`explanations/` of `batch-N.jsonl.gz`, 1,024 features a batch. Rows have the fields of its
database (`apps/webapp/prisma/schema.prisma`: Neuron, Activation, Explanation, Source,
SourceSet, SourceRelease, Model). What else is known of an atlas goes into the free field
`saelensConfig` of its source.

The call is `POST /api/feature/upload-batch` with 1 to 128 features a body. One value that
the schema of its route refuses (`apps/webapp/app/api/feature/upload-batch/route.tsx`, read in
November 2026) refuses the whole body: an empty token, a quantile's share below zero, and names
of methods and models that its database does not know.
"""

import gzip
import hashlib
import io
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import count, islice
from pathlib import Path

from sae.atlas import AtlasRecord
from sae.base import UserError, require
from sae.exchange.dashboards.files import Row, feature_number, json_lines, numbered
from sae.exchange.dashboards.place import Place
from sae.exchange.dashboards.rows import (
    TOP,
    Dashboard,
    Exported,
    json_bytes,
    write_features,
)
from sae.exchange.dashboards.tables import AUTOMATIC, BY_HAND, EXPLANATION, Found

FILES = ("source.jsonl", "*/batch-*.jsonl*")
"""Patterns of the files that are read; others are for Neuronpedia alone."""
_ENDINGS = ("jsonl.gz", "jsonl")
_BATCH, _UPLOAD, _ROWS = 1024, 128, 4096
"""Features of a file, of an upload, and rows that are held as Python objects at once."""
_MOST_LOGITS, _MOST_TOKENS, _LONGEST_TEXT = 20, 1024, 512


def write_bulk(
    atlas: Exported, place: Place, folder: Path, sizes: tuple[int, int] = (0, 0)
) -> Path:
    """Write the layout that Neuronpedia imports; returns `{folder}/{model}/{source}`.

    A feature has one row, a context that is not silent has one, and so has a label or an
    explanation. Memory does not grow with the number of features beyond the table of them. The
    `sizes` are layers of the model, and neurons of each; zeros if they are not known.

    Raises:
        UserError: if the source's folder exists, or another process writes it.
    """
    target, record = folder / place.model_id / place.source, atlas.record
    heads = _release_and_model(record, place, sizes) | _set_and_source(record, place)
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    whose = {"creatorId": place.creator_id, "createdAt": now, "visibility": "PUBLIC"}
    heads["model"]["updatedAt"] = now

    def files(number: int, block: list[Dashboard]) -> Iterator[tuple[str, bytes]]:
        kinds = {
            "features": (_feature(record, place, one) for one in block),
            "activations": _activations(record, place, block),
            "explanations": _explanations(atlas, place, block),
        }
        for kind, rows in kinds.items():
            yield f"{kind}/batch-{number}.jsonl.gz", _compressed(rows)

    lines = {f"{name}.jsonl": json_bytes(row | whose) + b"\n" for name, row in heads.items()}
    write_features(atlas, target, _BATCH, files, lines, sealed=True)
    return target


def _compressed(rows: Iterable[Row]) -> bytes:
    raw = io.BytesIO()
    # No name and no time inside, so that the same rows are the same bytes.
    with gzip.GzipFile("", "wb", compresslevel=5, fileobj=raw, mtime=0) as file:
        for row in rows:
            file.write(json_bytes(row) + b"\n")
    return raw.getvalue()


def _owned(place: Place, feature: int, *what: object) -> Row:
    """Return what a feature's lines begin with; the id is the same each time, 25 characters."""
    name = "/".join(map(str, (place.model_id, place.source, *what)))
    own: Row = {"id": "c" + hashlib.sha256(name.encode()).hexdigest()[:24]} if what else {}
    return own | {"modelId": place.model_id, "layer": place.source, "index": str(feature)}


def _feature(record: AtlasRecord, place: Place, one: Dashboard) -> Row:
    x, y = one.place or (None, None)
    return {
        **_owned(place, one.feature),
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


def _activations(record: AtlasRecord, place: Place, block: list[Dashboard]) -> Iterator[Row]:
    for one in block:
        for number, context in enumerate(one.contexts):
            place_in_text = f"{context.sequence}:{context.start}"
            yield {
                **_owned(place, one.feature, "activation", one.feature, number),
                "creatorId": place.creator_id,
                "dataSource": record.data,
                "dataIndex": place_in_text if context.sequence >= 0 else None,
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


def _texts(atlas: Exported, feature: int) -> list[tuple[str, str]]:
    """Return what is said of a feature and its kind; of dead ones people alone speak."""
    label, explanation = atlas.labels.label[feature], atlas.labels.explanation[feature]
    found = []
    if label != atlas.labels.automatic[feature]:
        found.append((label, BY_HAND))
    elif label and atlas.features["density"][feature].as_py() > 0:
        found.append((label, AUTOMATIC))
    if explanation:
        found.append((explanation, EXPLANATION))
    return [(text.replace("\x00", "\ufffd"), kind) for text, kind in found]


def _explanations(atlas: Exported, place: Place, block: list[Dashboard]) -> Iterator[Row]:
    for one in block:
        for text, kind in _texts(atlas, one.feature):
            yield {
                **_owned(place, one.feature, kind, one.feature),
                "authorId": place.creator_id,
                "description": text,
                "notes": kind,
                # Names of methods and models that its database does not know are refused.
                "typeName": None,
                "explanationModelName": None,
            }


def _about(record: AtlasRecord) -> str:
    return f"{record.dictionary} at {record.hook_name} of {record.model_name}"


def _release_and_model(
    record: AtlasRecord, place: Place, sizes: tuple[int, int]
) -> dict[str, Row]:
    model = record.model_name
    return {
        "release": {
            "name": place.source_set,
            "description": _about(record),
            "descriptionShort": record.dictionary,
            "urls": [],
            "creatorName": place.creator,
            "creatorNameShort": place.creator,
            "isNewUi": False,
            "featured": False,
            "defaultUmapSourceIds": [],
        },
        "model": {
            "id": place.model_id,
            "displayName": model.split("/")[-1],
            "displayNameShort": model.split("/")[-1],
            "instruct": "instruct" in model.lower() or model.endswith("-it"),
            "inferenceEnabled": False,
            "layers": sizes[0],
            "neuronsPerLayer": sizes[1],
            "owner": model.split("/")[0] if "/" in model else "",
        },
    }


def _set_and_source(record: AtlasRecord, place: Place) -> dict[str, Row]:
    config = {
        "architecture": record.architecture,
        "d_in": record.d_in,
        "d_sae": record.d_sae,
        "metadata": {
            "model_name": record.model_name,
            "hook_name": record.hook_name,
            "hook_name_out": record.hook_name_out,
            "sae_atlas_manifest": record.to_json(),
        },
    }
    return {
        "sourceset": {
            "modelId": place.model_id,
            "name": place.source_set,
            "hasDashboards": True,
            "description": _about(record),
            "type": "",
            "creatorName": place.creator,
            "urls": [],
            "releaseName": place.source_set,
            "defaultRange": 1,
            "defaultShowBreaks": True,
            "showDfa": False,
            "showCorrelated": True,
            "showHeadAttribution": False,
            "showUmap": False,
        },
        "source": {
            "id": place.source,
            "modelId": place.model_id,
            "setName": place.source_set,
            "hasDashboards": True,
            "inferenceEnabled": False,
            "saelensConfig": config,
            "hasUmap": False,
            "hasUmapLogSparsity": False,
            "hasUmapClusters": False,
            "num_prompts": record.n_sequences,
            "num_tokens_in_prompt": record.context_size,
            "dataset": record.data,
        },
    }


def sources(folder: Path) -> list[Path]:
    """Return the sources in `folder`: itself, or up to two below, as `{model}/{source}`."""
    found = [folder, *sorted(folder.glob("[!.]*")), *sorted(folder.glob("[!.]*/[!.]*"))]
    return [path for path in found if numbered(path / "features", _ENDINGS)]


def read_bulk(folder: Path, scratch: Path) -> Found:
    """Read a source in the bulk layout.

    The order of rows does not matter: Neuronpedia's own exports have features in that of their
    numbers as texts. What does not fit in memory goes to `scratch`, an empty folder.

    Raises:
        UserError: for a file that is missing, damaged or of another form, in one sentence.
    """
    head = folder / "source.jsonl"
    # It may be missing, for what it says is seldom needed.
    source = next(json_lines(head), {}) if head.is_file() else {}
    metadata = _object(_object(source, "saelensConfig"), "metadata")
    size = source.get("num_tokens_in_prompt")
    found, hook, of = Found(scratch), metadata.get("hook_name"), None
    for path, rows in _chunks(folder / "features"):
        for row in rows:
            own = (row.get("modelId"), row.get("layer"))
            of = of or own
            require(
                own == of,
                f"{path} has features of {own[0]}/{own[1]} beside those of {of[0]}/{of[1]}; "
                "put each source into a folder of its own",
            )
            hook = hook or row.get("hookName")
        found.add_features(rows, "index", path)
    for path, rows in _chunks(folder / "activations"):
        found.add_contexts(({"n_tokens_in_prompt": size, **row} for row in rows), path)
    model_id, layer = of or ("unknown", "unknown")
    found.about = {
        "model_name": str(metadata.get("model_name") or model_id),
        "hook_name": str(hook or layer),
        "data": source.get("dataset"),
        "n_sequences": source.get("num_prompts"),
        "context_size": size,
    }
    found.record = metadata.get("sae_atlas_manifest")
    found.texts = _explained(folder / "explanations")
    return found


def _object(row: Row, key: str) -> Row:
    found = row.get(key)
    return found if isinstance(found, dict) else {}


def _chunks(folder: Path) -> Iterator[tuple[Path, list[Row]]]:
    for path in numbered(folder, _ENDINGS):
        rows = json_lines(path)
        while chunk := list(islice(rows, _ROWS)):
            yield path, chunk


def _explained(folder: Path) -> dict[int, list[tuple[str, str]]]:
    found: dict[int, list[tuple[str, str]]] = {}
    for path, rows in _chunks(folder):
        for row in rows:
            text = row.get("description")
            if not isinstance(text, str):
                raise UserError(f"{path} has an explanation without a description: {text!r}")
            words = " ".join(re.sub(r"[\x00-\x1f\x7f]", " ", text).split())
            feature = feature_number(row.get("index"), path)
            found.setdefault(feature, []).append((words, str(row.get("notes"))))
    return found


def write_uploads(atlas: Exported, place: Place, folder: Path) -> tuple[int, int]:
    """Write bodies for the upload call, one a file; returns features written, and left out.

    A feature needs a context there, so one that never fires is left out.

    Raises:
        UserError: if the folder exists, another process writes it, or a context is longer
            than the call takes.
    """
    numbers, written = count(), 0

    def body(_: int, block: list[Dashboard]) -> Iterator[tuple[str, bytes]]:
        nonlocal written
        rows = [_upload(atlas, one) for one in block if one.contexts]
        written += len(rows)
        if rows:
            found = {"modelId": place.model_id, "source": place.source, "features": rows}
            yield f"batch-{next(numbers)}.json", json_bytes(found)

    write_features(atlas, folder, _UPLOAD, body)
    return written, len(atlas.features) - written


def _upload(atlas: Exported, one: Dashboard) -> Row:
    """Return a feature as the upload call takes it, no more of anything than it allows."""
    longest = max(len(context.tokens) for context in one.contexts)
    require(
        longest <= _MOST_TOKENS,
        f"feature {one.feature} has a context of {longest} tokens, but an upload takes at "
        f"most {_MOST_TOKENS}; run sae analyze with context_radius={_MOST_TOKENS // 2 - 1} "
        "or less",
    )
    logits = {}
    for name, sign in (("topLogits", "pos"), ("bottomLogits", "neg")):
        pairs = zip(one.fields[f"{sign}_str"], one.fields[f"{sign}_values"], strict=True)
        rows = [{"token": _some(token), "value": value} for token, value in pairs]
        logits[name] = rows[:_MOST_LOGITS]
    # The call counts in UTF-16, and half a character is none.
    units = [text.encode("utf-16-le") for text, _ in _texts(atlas, one.feature) if text]
    texts = [unit[: 2 * _LONGEST_TEXT].decode("utf-16-le", "ignore") for unit in units]
    return {
        "index": one.feature,
        "density": one.fields["frac_nonzero"],
        **logits,
        "explanations": [{"text": text} for text in texts],
        "activations": [
            {
                "tokens": [_some(token) for token in context.tokens],
                "values": context.values,
                "quantileMin": context.bin_min,
                "quantileMax": context.bin_max,
                "quantileFraction": None
                if context.bin_contains == TOP
                else context.bin_contains,
            }
            for context in one.contexts
        ],
    }


def _some(token: str) -> str:
    """Return a token that is not empty: half a character, say, is one that cannot be seen."""
    return token or "\u200b"
