"""Neuronpedia's bulk exports, read: its own, SAEDashboard's and those of `write_bulk`."""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from sae.base import UserError, require
from sae.exchange.dashboards.files import json_lines, numbered
from sae.exchange.dashboards.parts import feature_number
from sae.exchange.dashboards.tables import Collected, Found, Scratch

_ENDINGS = ("jsonl.gz", "jsonl")
_ROWS = 4096
"""Rows that are held as Python objects at once."""


def sources(folder: Path) -> list[Path]:
    """The folders of sources in `folder`, itself or up to two below: `{model}/{source}`."""
    found = [folder, *sorted(folder.glob("[!.]*")), *sorted(folder.glob("[!.]*/[!.]*"))]
    return [path for path in found if numbered(path / "features", _ENDINGS)]


def read_bulk(folder: Path, scratch: Path) -> Found:
    """Read a source in the bulk layout.

    The order of rows does not matter: Neuronpedia's own exports have features in that of their
    numbers as texts.

    Args:
        folder: with `features/` and `activations/`.
        scratch: an empty folder for what does not fit in memory.

    Raises:
        UserError: for a file that is missing, damaged or of another form, in one sentence.
    """
    source = _head(folder / "source.jsonl")
    config = source.get("saelensConfig")
    config = config if isinstance(config, dict) else {}
    metadata = config.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    ours = metadata.get("sae_atlas_manifest")
    collected, hook, of = Collected(Scratch(scratch)), metadata.get("hook_name"), None
    for path in numbered(folder / "features", _ENDINGS):
        for rows in _chunks(path):
            for row in rows:
                own = (row.get("modelId"), row.get("layer"))
                of = of or own
                require(
                    own == of,
                    f"{path} has features of {own[0]}/{own[1]} beside those of "
                    f"{of[0]}/{of[1]}; keep each source in a folder of its own",
                )
                hook = hook or row.get("hookName")
            collected.add_features(rows, "index", path)
    for path in numbered(folder / "activations", _ENDINGS):
        for rows in _chunks(path):
            size = source.get("num_tokens_in_prompt")
            for row in rows:
                row.setdefault("n_tokens_in_prompt", size)
            collected.add_contexts(rows, path)
    model_id, layer = of or ("unknown", "unknown")
    about = {
        "model_name": str(metadata.get("model_name") or model_id),
        "hook_name": str(hook or layer),
        "data": source.get("dataset"),
        "n_sequences": source.get("num_prompts"),
        "context_size": source.get("num_tokens_in_prompt"),
    }
    ours = ours if isinstance(ours, dict) else {}
    return Found(collected, about, ours, texts=_texts(folder))


def _head(path: Path) -> dict[str, object]:
    """The one row of a file; nothing if it is not there, for what it says is seldom needed."""
    return next(json_lines(path), {}) if path.is_file() else {}


def _chunks(path: Path) -> Iterator[list[dict[str, object]]]:
    rows = json_lines(path)
    while chunk := list(islice(rows, _ROWS)):
        yield chunk


def _texts(folder: Path) -> dict[int, list[tuple[str, str]]]:
    """Explanations of features in the order of the files."""
    found: dict[int, list[tuple[str, str]]] = {}
    for path in numbered(folder / "explanations", _ENDINGS):
        for row in json_lines(path):
            text = row.get("description")
            if not isinstance(text, str):
                raise UserError(f"{path} has an explanation without a description: {text!r}")
            words = " ".join(re.sub(r"[\x00-\x1f\x7f]", " ", text).split())
            feature = feature_number(row.get("index"), path)
            found.setdefault(feature, []).append((words, str(row.get("notes"))))
    return found
