"""SAEDashboard's JSON, written from an atlas and read: a folder of `batch-N.json`.

A file is one object, `model_id`, `layer`, `sae_set`, `sae_id_suffix` and `features`, of 128
features by default; beside them are `run_settings.json` and `skipped_indexes.json`
(`sae_dashboard/neuronpedia/neuronpedia_runner.py`, version 0.8). Its contexts are whole prompts
without their first token. The tokens that it was run on (`tokens_N.pt`) are not written: an
atlas holds contexts, not texts.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sae.atlas import AtlasRecord
from sae.base import UserError, require
from sae.exchange.dashboards.files import Row, numbered, parsed
from sae.exchange.dashboards.place import Place
from sae.exchange.dashboards.rows import Dashboard, Exported, Shown, json_bytes, write_features
from sae.exchange.dashboards.tables import Found
from sae.exchange.formats.parts import as_json

_BATCH = 128
_SETTINGS, _SKIPPED = "run_settings.json", "skipped_indexes.json"
FILES = ("batch-*.json", _SETTINGS, _SKIPPED)
"""Patterns of the files that are read."""
_HOOK = re.compile(r"blocks\.\d+\.(?:\w+\.)?hook_[a-z_]*[a-z]")


def write_dashboards(atlas: Exported, place: Place, folder: Path) -> None:
    """Write every feature of an atlas, dead ones too."""
    record = atlas.record
    head = {"model_id": place.model_id, "layer": place.layer, "sae_set": place.source_set}
    # What of its runner's settings holds for an atlas, and the record of that.
    settings = {
        "sae_set": place.source_set,
        "sae_path": record.hook_name,
        "np_sae_id_suffix": None,
        "np_set_name": None,
        "huggingface_dataset_path": record.data or "",
        "n_prompts_total": record.n_sequences,
        "n_tokens_in_prompt": record.context_size,
        "n_features_at_a_time": _BATCH,
        "n_quantiles": record.n_bands,
        "top_acts_group_size": record.n_contexts,
        "quantile_group_size": record.n_band_contexts,
        "model_id": place.model_id,
        "layer": place.layer,
        "sae_atlas_manifest": record.to_json(),
    }
    skipped = {**head, "layer": str(place.layer), "log_sparsity": -6, "skipped_indexes": []}

    def batch(number: int, block: list[Dashboard]) -> Iterator[tuple[str, bytes]]:
        features = [_feature(record, one) for one in block]
        found = {**head, "sae_id_suffix": None, "features": features}
        yield f"batch-{number}.json", json_bytes(found)

    beside = {_SETTINGS: as_json(settings), _SKIPPED: as_json(skipped)}
    write_features(atlas, folder, _BATCH, batch, beside, sealed=True)


def _feature(record: AtlasRecord, one: Dashboard) -> dict[str, object]:
    return {
        "feature_index": one.feature,
        **one.fields,
        "n_prompts_total": record.n_sequences,
        "n_tokens_in_prompt": record.context_size,
        "dataset": record.data or "",
        "decoder_weights_dist": [],
        "activations": [_activation(context) for context in one.contexts],
        "vector": [],
    }


def _activation(context: Shown) -> dict[str, object]:
    return {
        "bin_min": context.bin_min,
        "bin_max": context.bin_max,
        "bin_contains": context.bin_contains,
        "tokens": context.tokens,
        "values": context.values,
        "qualifying_token_index": context.peak,
        # What it writes where nothing is attributed to other tokens.
        "dfa_values": [],
        "dfa_maxValue": 0,
        "dfa_targetIndex": -1,
    }


def is_dashboards(folder: Path) -> bool:
    """Return whether there are SAEDashboard's files in a folder."""
    return bool(numbered(folder, ("json",)))


def read_dashboards(folder: Path, scratch: Path) -> Found:
    """Read what SAEDashboard, or `write_dashboards`, wrote.

    What does not fit in memory goes to `scratch`, an empty folder.

    Raises:
        UserError: for a file that is missing, damaged or of another form, in one sentence.
    """
    settings = _optional(folder / _SETTINGS)
    found = Found(scratch)
    found.record = settings.get("sae_atlas_manifest")
    first: dict[str, object] = {}
    for path in numbered(folder, ("json",)):
        batch, rows = _batch(path)
        # Files of another dictionary in one folder would be taken for one.
        names = {name: batch.get(name) for name in ("model_id", "layer", "sae_set")}
        first = first or names
        require(
            names == first,
            f"{path} is of {names}, and another file here of {first}; keep each in a folder of "
            "its own",
        )
        found.add_features(rows, "feature_index", path)
        found.add_contexts(_contexts(rows, path), path)
        for row in rows[:1]:
            of_row = ("n_prompts_total", "n_tokens_in_prompt", "dataset")
            settings = {name: row.get(name) for name in of_row} | settings
    skipped = _optional(folder / _SKIPPED).get("skipped_indexes") or []
    require(
        isinstance(skipped, list),
        f"{folder / _SKIPPED}: skipped_indexes is no list of features",
    )
    # Its runner writes the hook into the folder's name and often into the path.
    places = (str(settings.get("sae_path")), folder.resolve().name)
    hooks = [hook[0] for hook in map(_HOOK.search, places) if hook]
    found.skipped = skipped
    found.about = {
        "model_name": str(first.get("model_id")),
        "hook_name": hooks[0] if hooks else f"layer {first.get('layer')}",
        "data": settings.get("huggingface_dataset_path") or settings.get("dataset"),
        "n_sequences": settings.get("n_prompts_total"),
        "context_size": settings.get("n_tokens_in_prompt"),
    }
    return found


def _optional(path: Path) -> dict[str, Any]:
    found = parsed(path.read_bytes(), str(path)) if path.is_file() else {}
    require(isinstance(found, dict), f"{path} is not a JSON object; download it again")
    return dict(found)


def _batch(path: Path) -> tuple[Row, list[Row]]:
    try:
        found = parsed(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}); download it again") from error
    found = found if isinstance(found, dict) else {}
    require(
        not {"modelId", "source", "features"} <= set(found),
        f"{path} is a body for Neuronpedia's upload call, which cannot be read; give a "
        "folder that format=neuronpedia or format=saedashboard wrote",
    )
    rows = found.get("features")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(
            f"{path} has no list of features; give a folder that SAEDashboard wrote"
        )
    return found, rows


def _contexts(rows: list[Row], path: Path) -> Iterator[Row]:
    for row in rows:
        contexts = row.get("activations") or []
        if not isinstance(contexts, list) or not all(isinstance(c, dict) for c in contexts):
            raise UserError(
                f"{path}: activations of feature {row.get('feature_index')} are no list of "
                "objects"
            )
        for context in contexts:
            yield {
                "index": row.get("feature_index"),
                "tokens": context.get("tokens"),
                "values": context.get("values"),
                "binMin": context.get("bin_min"),
                "binMax": context.get("bin_max"),
                "qualifyingTokenIndex": context.get("qualifying_token_index"),
                "n_tokens_in_prompt": row.get("n_tokens_in_prompt"),
            }
