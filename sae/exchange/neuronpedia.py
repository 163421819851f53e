"""An atlas for Neuronpedia: the folder that it imports in bulk, or bodies for its upload call.

The bulk layout is that of its public exports (docs.neuronpedia.org/api-and-data/exports) and of
SAEDashboard's `neuronpedia_export.py`: `{model}/{layer}-{set}/` with `release.jsonl`,
`model.jsonl`, `sourceset.jsonl`, `source.jsonl`, and `features/`, `activations/` and
`explanations/` of `batch-N.jsonl.gz`, 1,024 features a batch. Rows have the fields of its
database (`apps/webapp/prisma/schema.prisma`: Neuron, Activation, Explanation, Source,
SourceSet, SourceRelease, Model). What else is known of an atlas goes into the free field
`saelensConfig` of its source.

The upload call is `POST /api/feature/upload-batch` with 1 to 128 features a body. One value that
the schema of its route refuses (`apps/webapp/app/api/feature/upload-batch/route.tsx`, read in
November 2026) refuses the whole body: an empty token, a quantile's share below zero, and names
of methods and models that its database does not know.
"""

import gzip
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae.base.errors import UserError, require
from sae.base.files import atomic_path
from sae.base.progress import progress
from sae.exchange.dashboard_rows import (
    TOP,
    AtlasTables,
    Dashboard,
    Shown,
    dashboards,
    json_bytes,
)
from sae.exchange.neuronpedia_heads import heads

BATCH = 1024
"""Features a file of the bulk layout."""
UPLOAD = 128
"""Features a call may upload."""
BY_HAND, AUTOMATIC, EXPLANATION = "label by hand", "automatic label", "explanation"
"""What an explanation's notes say it is."""
DEFAULT_CREATOR_ID = "clkht01d40000jv08hvalcvly"
"""Neuronpedia's own user, whom SAEDashboard names where nobody is named."""
_MOST_LOGITS, _MOST_TOKENS, _LONGEST_TEXT = 20, 1024, 512
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SOURCE = re.compile(r"\d{1,4}-[A-Za-z0-9][A-Za-z0-9._-]{0,120}")
_LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")
_KINDS = (("resid", "res"), ("mlp", "mlp"), ("attn", "att"))
_MODEL_IDS = {"gpt2": "gpt2-small"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where on Neuronpedia the features go, and whose they are."""

    model_id: str
    source: str
    """`{layer}-{source set}`."""
    creator: str = "sae-atlas"
    creator_id: str = DEFAULT_CREATOR_ID

    def __post_init__(self) -> None:
        require(
            _PART.fullmatch(self.model_id) is not None,
            f"model_id={self.model_id}; Neuronpedia's ids have letters, digits, dots, dashes "
            "and underscores, as gpt2-small",
        )
        require(
            _SOURCE.fullmatch(self.source) is not None,
            f"source={self.source}; Neuronpedia's are a layer, a dash and the name of a set, "
            "as 8-res-jb",
        )
        require(
            _PART.fullmatch(self.creator_id) is not None,
            f"creator_id={self.creator_id}; give the id of a user, letters and digits",
        )

    @property
    def layer(self) -> int:
        """The number that the source begins with."""
        return int(self.source.split("-", 1)[0])

    @property
    def source_set(self) -> str:
        """The source without its layer."""
        return self.source.split("-", 1)[1]


def place_of(
    manifest: dict[str, Any], model_id: str | None = None, source: str | None = None, **who: str
) -> Place:
    """Where an atlas goes; ids that are not given are made of its model, hook and name.

    Args:
        manifest: of the atlas.
        who: `creator` and `creator_id`.

    Raises:
        UserError: for ids that Neuronpedia does not take, or a hook that names no layer.
    """
    name = str(manifest["model_name"]).rstrip("/").split("/")[-1].lower()
    if source is None:
        hook = str(manifest["hook_name"])
        layer = _LAYER.search(hook)
        if layer is None:
            raise UserError(f"hook {hook} names no layer; give source=LAYER-SET, as 0-res-mine")
        out = manifest.get("hook_name_out")
        kind = next((short for word, short in _KINDS if word in hook), "sae")
        kind = "transcoder" if out not in (None, hook) else kind
        source = f"{layer[1]}-{kind}-{_slug(str(manifest['dictionary']).lower())}"
    return Place(model_id or _slug(_MODEL_IDS.get(name, name)), source, **who)


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:100] or "atlas"


def write_bulk(atlas: AtlasTables, place: Place, folder: Path) -> Path:
    """Write the layout that Neuronpedia imports; returns `{folder}/{model}/{source}`.

    A feature has one row, a context that is not silent has one, and so has a label or an
    explanation. Memory does not grow with the number of features beyond the table of them.

    Args:
        folder: where the model's folder goes.

    Raises:
        UserError: if the source's folder exists.
    """
    target = folder / place.model_id / place.source
    require(not target.exists(), f"{target} is there already; choose another or remove it")
    with (
        atomic_path(target) as temporary,
        progress(len(atlas.features), "export", "feature") as bar,
    ):
        temporary.mkdir()
        for name, row in heads(atlas.manifest, place).items():
            (temporary / f"{name}.jsonl").write_bytes(json_bytes(row) + b"\n")
        for number, block in enumerate(dashboards(atlas, BATCH)):
            kinds = {
                "features": (_feature(atlas.manifest, place, one) for one in block),
                "activations": (_activation(*each) for each in _contexts(atlas, place, block)),
                "explanations": _explanations(atlas, place, block),
            }
            for kind, rows in kinds.items():
                _write_rows(temporary / kind / f"batch-{number}.jsonl.gz", rows)
            bar.update(len(block))
    return target


def write_uploads(atlas: AtlasTables, place: Place, folder: Path) -> tuple[int, int]:
    """Write bodies for `POST /api/feature/upload-batch`, one a file.

    A feature needs a context there, so one that never fires is left out.

    Returns:
        Features written, and features left out.

    Raises:
        UserError: if the folder exists, or a context is longer than the call takes.
    """
    require(not folder.exists(), f"{folder} is there already; choose another or remove it")
    written, left, bodies = 0, 0, 0
    with (
        atomic_path(folder) as temporary,
        progress(len(atlas.features), "export", "feature") as bar,
    ):
        temporary.mkdir()
        for block in dashboards(atlas, UPLOAD):
            rows = [_upload(atlas, one) for one in block if one.contexts]
            if rows:
                body = {"modelId": place.model_id, "source": place.source, "features": rows}
                (temporary / f"batch-{bodies}.json").write_bytes(json_bytes(body))
                bodies += 1
            written, left = written + len(rows), left + len(block) - len(rows)
            bar.update(len(block))
    return written, left


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    # No name and no time inside, so that the same rows are the same bytes.
    with (
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=5, fileobj=raw, mtime=0) as file,
    ):
        for row in rows:
            file.write(json_bytes(row) + b"\n")


def _id(place: Place, *what: Any) -> str:
    """25 characters that the same row has every time, as its database's ids look."""
    name = "/".join(map(str, (place.model_id, place.source, *what)))
    return "c" + hashlib.sha256(name.encode()).hexdigest()[:24]


def _feature(manifest: dict[str, Any], place: Place, one: Dashboard) -> dict[str, Any]:
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
        "hookName": manifest["hook_name"],
        "topkCosSimIndices": one.neighbours,
        "topkCosSimValues": one.cosines,
        **one.fields,
        "decoder_weights_dist": [],
        "umap_x": x,
        "umap_y": y,
    }


def _contexts(
    atlas: AtlasTables, place: Place, block: list[Dashboard]
) -> Iterable[tuple[dict[str, Any], Shown]]:
    """Every context, with what its row says besides."""
    for one in block:
        for number, context in enumerate(one.contexts):
            about = {
                "id": _id(place, "activation", one.feature, number),
                "modelId": place.model_id,
                "layer": place.source,
                "index": str(one.feature),
                "creatorId": place.creator_id,
                "dataSource": atlas.manifest.get("data"),
            }
            yield about, context


def _activation(about: dict[str, Any], context: Shown) -> dict[str, Any]:
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


def _texts(atlas: AtlasTables, feature: int) -> list[tuple[str, str]]:
    """What is said of a feature, and of which kind that is; of a dead one only by people."""
    label, explanation, by_hand = atlas.labels
    found = []
    if feature in by_hand:
        found.append((label[feature], BY_HAND))
    elif label[feature] and atlas.features["density"][feature].as_py() > 0:
        found.append((label[feature], AUTOMATIC))
    if explanation[feature]:
        found.append((explanation[feature], EXPLANATION))
    return [(text.replace("\x00", "\ufffd"), kind) for text, kind in found]


def _explanations(
    atlas: AtlasTables, place: Place, block: list[Dashboard]
) -> Iterable[dict[str, Any]]:
    for one in block:
        for text, kind in _texts(atlas, one.feature):
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


def _upload(atlas: AtlasTables, one: Dashboard) -> dict[str, Any]:
    """A feature as the upload call takes it, no more of anything than it allows."""
    longest = max(len(context.tokens) for context in one.contexts)
    require(
        longest <= _MOST_TOKENS,
        f"feature {one.feature} has a context of {longest} tokens, and an upload takes "
        f"{_MOST_TOKENS}; run sae analyze with context_radius={_MOST_TOKENS // 2 - 1} or less",
    )
    logits = {}
    for name, sign in (("topLogits", "pos"), ("bottomLogits", "neg")):
        pairs = zip(one.fields[f"{sign}_str"], one.fields[f"{sign}_values"], strict=True)
        rows = [{"token": _some(token), "value": value} for token, value in pairs]
        logits[name] = rows[:_MOST_LOGITS]
    return {
        "index": one.feature,
        "density": one.fields["frac_nonzero"],
        **logits,
        "explanations": [
            {"text": _cut(text)} for text, _ in _texts(atlas, one.feature) if text
        ],
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
    """A token that is not empty: half a character, say, is one that cannot be seen."""
    return token or "\u200b"


def _cut(text: str) -> str:
    """As much of a text as a call takes; it counts in UTF-16, and half a character is none."""
    return text.encode("utf-16-le")[: 2 * _LONGEST_TEXT].decode("utf-16-le", "ignore")
