"""An analyzed run whose atlas goes to other tools and comes back."""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch

import sae
from sae.atlas.atlas import Atlas
from sae.atlas.labels import read_labels, write_labels
from sae.dictionary.files import load_dictionary, save_dictionary

LABEL, EXPLANATION = "my own words, = not a formula", "Fires where somebody wrote, twice."
PLACE = {"model_id": "tiny-llama", "source": "1-res-mine"}


def spread_norms(folder: Path) -> None:
    """Give directions norms of their own, as dictionaries of other tools have them."""
    one = load_dictionary(folder)
    norms = torch.linspace(0.5, 3, one.d_sae)
    weights = {
        "W_enc": one.W_enc / norms,
        "b_enc": one.b_enc / norms,
        "W_dec": one.W_dec * norms[:, None],
    }
    shutil.rmtree(folder)
    save_dictionary(one.with_weights(weights), folder)


@pytest.fixture(name="atlas", scope="session")
def atlas_fixture(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    """Of the dictionary `strong`, labelled here and there; not to be changed."""
    run = tmp_path_factory.mktemp("dashboards") / "run"
    shutil.copytree(tiny_run, run)
    shutil.rmtree(run / "dictionaries" / "weak")
    spread_norms(run / "dictionaries" / "strong")
    sae.analyze(
        run=str(run), n_contexts=5, n_band_contexts=2, n_silent=2, context_radius=6, n_logits=7
    )
    found = Atlas(run / "atlas" / "strong")
    labels = read_labels(found.folder)
    live = [i for i, n in enumerate(found.feature_table()["n_active"].to_pylist()) if n]
    labels.label[live[0]] = LABEL
    labels.explanation[live[1]] = EXPLANATION
    write_labels(found.folder, labels)
    return found


def lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of compressed JSON lines."""
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()))


def seen(atlas: Atlas) -> Any:
    """The contexts of an atlas that are not silent."""
    table = atlas.context_table()
    return table.filter(pyarrow.compute.not_equal(table["group"], "silent"))


def same(one: Any, other: Any) -> bool:
    """Whether two columns hold the same, numbers to the last bit."""
    if one.type != other.type:
        return False
    if pyarrow.types.is_floating(one.type):
        pairs = one.to_numpy(), other.to_numpy()
        return bool(np.array_equal(*pairs, equal_nan=True))
    return bool(one.to_pylist() == other.to_pylist())


def import_atlas(folder: Path, out: Path) -> Atlas:
    """What `sae atlas import FOLDER OUT` makes."""
    return sae.atlas_import(folder=str(folder), out=str(out))
