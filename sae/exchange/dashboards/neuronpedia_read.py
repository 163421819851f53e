"""Neuronpedia's bulk exports, read: its own, SAEDashboard's and those of `write_bulk`."""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from sae.base import UserError, require
from sae.exchange.dashboards.files import Row, feature_number, json_lines, numbered
from sae.exchange.dashboards.tables import Found

_ENDINGS = ("jsonl.gz", "jsonl")
_ROWS = 4096
"""Rows that are held as Python objects at once."""


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
                "keep each source in a folder of its own",
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
    found.texts = _texts(folder / "explanations")
    return found


def _object(row: Row, key: str) -> Row:
    found = row.get(key)
    return found if isinstance(found, dict) else {}


def _chunks(folder: Path) -> Iterator[tuple[Path, list[Row]]]:
    for path in numbered(folder, _ENDINGS):
        rows = json_lines(path)
        while chunk := list(islice(rows, _ROWS)):
            yield path, chunk


def _texts(folder: Path) -> dict[int, list[tuple[str, str]]]:
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
