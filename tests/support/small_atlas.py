"""A run with an atlas that has just what a server needs of one."""

import json
import os
import shutil
import time
from pathlib import Path

from support.atlas_samples import sample_record
from support.server import Server

import sae
from sae.atlas.schema import FEATURES

DEAD = 63
"""The feature of the tiny run's dictionaries that its atlas calls dead."""
TEXT = "the river ran past the old mill where she kept seven grey cats"


def write_small_atlas(run: Path, name: str, **changes) -> Path:
    """What the server needs of an atlas, with a page that shows nothing."""
    dictionary = sae.load(str(run / "dictionaries" / name))
    folder, n = run / "atlas" / name, dictionary.d_sae
    (folder / "data" / "features").mkdir(parents=True)
    columns = {
        "feature": list(range(n)),
        "label": [f"automatic {i}" for i in range(n)],
        "max_activation": [3.0] * (n - 1) + [0.0],
    }
    FEATURES.write(folder, FEATURES.nothing(n) | columns)
    record = sample_record(
        n,
        1,
        dictionary=name,
        dictionary_digest=dictionary.digest,
        model_name=dictionary.model_name,
        hook_name=dictionary.hook_name,
        hook_name_out=dictionary.hook_name_out,
        n_rows=8192,
    )
    (folder / "atlas.json").write_text(json.dumps(record.to_json() | changes))
    page = '<!doctype html>\n<html lang="en"><head><script>"own"</script></head></html>'
    (folder / "index.html").write_text(page)
    (folder / "data/index.js").write_text(f'atlas.take("index",{list(range(3000))});\n')
    (folder / "data/features/00000.js").write_text('atlas.take("features/00000",{});\n')
    (folder / "data/labels.js").write_text('atlas.take("labels",{});\n')
    lines = [f"{i},automatic {i}," for i in range(n)]
    (folder / "labels.csv").write_text("\n".join(["feature,label,explanation", *lines, ""]))
    stamp = (folder / "labels.csv").stat().st_mtime_ns
    os.utime(folder / "data/labels.js", ns=(stamp, stamp))
    return folder


def copy_of(tiny_run: Path, target: Path, *dictionaries: str) -> Path:
    """The run, with an atlas of each of these dictionaries."""
    shutil.copytree(tiny_run, target)
    for name in dictionaries:
        write_small_atlas(target, name)
    return target


def ready(server: Server, name: str = "strong") -> dict:
    for _ in range(600):
        found = server.json(f"/atlas/{name}/api/status")
        if found["model"] != "loading":
            return found
        time.sleep(0.05)
    raise AssertionError("the model is still loading")
