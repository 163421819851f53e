"""The report of a demo: everything that came out of it, on one page."""

from pathlib import Path
from typing import Any

from sae.base import read_object
from sae.cache.layout import ActivationCache
from sae.cache.store import stored_bytes
from sae.pages.compare import say_comparison, write_page
from sae.pages.pareto import Pareto
from sae.run import Run


def write_report(
    location: str,
    cache: ActivationCache,
    pareto: Pareto,
    exported: Path,
    more: dict[str, Any],
) -> dict[str, Any]:
    """Write the report of a demo, as `report.json` and `report.html`, say and return it.

    Args:
        location: folder of the run.
        more: what steering gave, and the time that stages took.
    """
    run = Run.at(location)
    report = {
        "run": location,
        "model_name": cache.model.hub_id,
        **_cache_figures(run, cache),
        **pareto.for_page(),
        **more,
        "export": _export_figures(exported),
    }
    write_page(run, report)
    say_comparison(pareto)
    return report


def _cache_figures(run: Run, cache: ActivationCache) -> dict[str, Any]:
    (hook_name,) = cache.hook_names
    text = cache.text_rows()
    timing = read_object(run.harvest_timing, "remove it; only the time is forgotten")
    return {
        "hook_name": hook_name,
        "d_in": cache.d_in(hook_name),
        "cache": {
            "n_tokens": int(text.size),
            "tokens_per_second": timing.get("tokens_per_second", float),
            "n_sequences": len(text),
            "context_size": cache.context_size,
            "n_training_rows": int(text[~cache.held_out].sum()),
            "n_held_out_rows": int(text[cache.held_out].sum()),
            "data": cache.text.name,
            "dtype": cache.attributes["dtype"],
            "bytes": stored_bytes(cache.location),
        },
    }


def _export_figures(folder: Path) -> dict[str, Any]:
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
