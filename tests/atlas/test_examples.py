"""The features that are shown first."""

import random

import pytest
from support.atlas_samples import context_rows, feature_columns, sample_record, sample_tables

from sae.atlas import Atlas, write_record
from sae.atlas.labels import Labels, write_labels
from sae.atlas.schema import CONTEXTS, FEATURES
from sae.atlas.subset import clearest_features
from sae.atlas.table import columns_of


def test_the_examples_are_the_clearest_features_with_their_best_contexts(tmp_path):
    features = feature_columns(
        random.Random(0), [0] * 40, [f == 5 for f in range(40)], hostile=False, logits=True
    )
    features["logit_agreement"] = [1.0 if f in (5, 11, 30) else 0.1 for f in range(40)]
    most = features["max_activation"]
    rows = [row for f in range(40) for row in context_rows(f, ["cat"], [], most[f])]
    table, contexts = sample_tables(features, rows)
    FEATURES.write(tmp_path, columns_of(table))
    CONTEXTS.write(tmp_path, columns_of(contexts))
    write_record(tmp_path, sample_record(40, 1))
    write_labels(tmp_path, Labels(features["label"], ["mine"] * 40, [""] * 40))
    examples = clearest_features(Atlas(tmp_path))
    assert len(examples) == 12
    assert {one.feature for one in examples[:2]} == {11, 30}
    assert most[examples[0].feature] >= most[examples[1].feature]
    for one in examples:
        assert one.label == "mine"
        assert one.promoted == [" cat", " kitten", " purr", " whisker", " paw"]
        strongest = [max(context.activations) for context in one.contexts]
        assert strongest == pytest.approx([one.max_activation, 0.985 * one.max_activation])
        for context in one.contexts:
            assert context.tokens[context.peak] == " cat"
