"""What the report of a demo says of its activations and of its export."""

from pathlib import Path
from typing import Any

from sae.base import read_json
from sae.cache.layout import ActivationCache
from sae.cache.store import stored_bytes
from sae.run import Run


def cache_figures(run: Run, cache: ActivationCache) -> dict[str, Any]:
    """Return where the activations are from, and how many there are."""
    (hook_name,) = cache.hook_names
    text = cache.text_rows()
    timing = read_json(run.harvest_timing)
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
            "bytes": stored_bytes(cache.location),
        },
    }


def export_figures(folder: Path) -> dict[str, Any]:
    """Return the files of an export, and how other tools load them."""
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
