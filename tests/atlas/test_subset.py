"""The tables of an atlas without some of its features."""

import random

import numpy as np
import pytest
from support.atlas_samples import context_rows, feature_columns, sample_record, sample_tables

from sae.atlas import Atlas, write_record
from sae.atlas.labels import Labels, read_labels, write_labels
from sae.atlas.schema import CONTEXTS, FEATURES
from sae.atlas.subset import write_subset
from sae.atlas.table import columns_of


@pytest.mark.slow
def test_features_are_numbered_anew_and_lists_name_those_that_are_left(tmp_path):
    atlas, kept = tmp_path / "atlas", np.array([f for f in range(40) if f % 3])
    atlas.mkdir()
    columns = feature_columns(
        random.Random(0), [0] * 40, [False] * 40, hostile=False, logits=True
    )
    rows = [row for f in range(40) for row in context_rows(f, ["cat"], [], 1.0)]
    for schema, table in zip((FEATURES, CONTEXTS), sample_tables(columns, rows), strict=True):
        schema.write(atlas, columns_of(table))
    write_record(atlas, sample_record(40, 0))
    labels = Labels.all_automatic(list(columns["label"]))
    labels.label[4] = "mine"
    write_labels(atlas, labels)
    (tmp_path / "few").mkdir()
    write_subset(Atlas(atlas), kept, tmp_path / "few")
    found = FEATURES.read(tmp_path / "few").to_pylist()
    old = Atlas(atlas).features()
    assert [row["original_feature"] for row in found] == kept.tolist()
    assert [row["feature"] for row in found] == list(range(len(kept)))
    listed = 0
    for row in found:
        before = old[row["original_feature"]]
        for column in FEATURES.columns.values():
            if not column.names_features:
                continue
            there = [i for i, other in enumerate(before[column.name]) if other % 3]
            assert kept[row[column.name]].tolist() == [before[column.name][i] for i in there]
            for name in FEATURES.beside(column.name):
                assert row[name] == [before[name][i] for i in there]
            listed += len(there)
    assert listed > 100
    contexts = CONTEXTS.read(tmp_path / "few").to_pylist()
    assert [row["original_feature"] for row in contexts] == [
        row["feature"] for row in Atlas(atlas).contexts() if row["feature"] % 3
    ]
    assert all(kept[row["feature"]] == row["original_feature"] for row in contexts)
    assert read_labels(tmp_path / "few").by_hand == [2]
    lines = (tmp_path / "few" / "feature_map.csv").read_text().splitlines()
    assert lines[:3] == ["feature,original_feature", "0,1", "1,2"]
