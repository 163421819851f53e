"""The report of a demo: everything that came out of it, on one page."""

from pathlib import Path
from typing import Any

from sae.atlas import Atlas, clearest_features
from sae.base import read_json, write_json, write_text
from sae.cache.layout import ActivationCache
from sae.cache.store import stored_bytes
from sae.pages.compare import training_curves
from sae.pages.page import render_page
from sae.run import Run


def cache_figures(run: Run, cache: ActivationCache) -> dict[str, Any]:
    """Return what a report says of the activations: where they are from and how many."""
    (hook_name,) = cache.hook_names
    text = cache.text_rows()
    timing = read_json(run.harvest_timing)
    size = stored_bytes(cache.location)
    return {
        "hook_name": hook_name,
        "d_in": cache.d_in(hook_name),
        "cache": {
            "n_tokens": int(text.size),
            "tokens_per_second": timing["tokens_per_second"],
            "n_sequences": len(text),
            "context_size": cache.context_size,
            "n_training_rows": int(text[~cache.held_out].sum()),
            "n_held_out_rows": int(text[cache.held_out].sum()),
            "data": cache.text.name,
            "dtype": cache.attributes["dtype"],
            "bytes": size,
        },
    }


def export_figures(folder: Path) -> dict[str, Any]:
    """Return what a report says of an export: its files, and how others load them."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    (inner,) = (p for p in folder.iterdir() if p.is_dir())
    return {
        "folder": str(folder),
        "files": [
            {"name": str(p.relative_to(folder)), "bytes": p.stat().st_size} for p in files
        ],
        "load": [
            f'import sae\ndictionary = sae.load("{inner}")',
            f'from sae_lens import SAE\ndictionary = SAE.load_from_disk("{inner}")',
            f'import pandas\nfeatures = pandas.read_parquet("{folder}/features.parquet")',
        ],
    }


def write_report(run: Run, report: dict[str, Any], atlas: Atlas, names: list[str]) -> None:
    """Write the report of a demo, as `report.json` and `report.html`."""
    write_json(run.report_data, report)
    curves = training_curves(run, names, report["chosen"]["id"])
    page = render_page(report, clearest_features(atlas), curves)
    write_text(run.report, page)
