"""Whether promoted tokens stand where a feature fires, told by ids and by texts alike."""

import numpy as np
from support.atlas_samples import sample_tables

from sae.atlas.directions import logit_agreement, word_numbers
from sae.atlas.schema import FEATURES, LOGITS
from sae.atlas.table import columns_of
from sae.exchange.dashboards.columns import agreement_of_texts


def test_words_are_equal_whatever_their_case_and_the_spaces_around_them():
    a, b, c, d = word_numbers([" Cat", "cat ", "cats", "CAT"]).tolist()
    assert a == b == d != c


def test_the_share_is_of_contexts_whose_peak_or_next_token_is_promoted():
    promoted = np.array([[3, 7], [5, -1], [8, 8]])
    # At the peak, right after it, nowhere; and a missing token, which is no promoted one.
    near = np.array([[3, 0], [1, 7], [1, 2], [0, -2]])
    found = logit_agreement(promoted, np.array([0, 0, 0, 1]), near)
    assert found.tolist() == [2 / 3, 0, 0]


def context(feature, tokens, peak, group="top", start=10):
    return {
        "feature": feature,
        "group": group,
        "band": -1,
        "rank": 0,
        "sequence": 0,
        "position": start + peak,
        "start": start,
        "activation": 1.0,
        "token_ids": None,
        "tokens": tokens,
        "activations": [1.0] * len(tokens),
    }


def test_texts_alone_tell_it_too():
    rows = [
        context(0, ["a", " Cat", "b"], 1),
        context(0, ["a", "b", "x"], 1),
        context(0, ["x", "b", "c"], 1),
        context(0, ["cat"], 0, group="band"),
        context(2, ["a", "sat"], 1),
        context(2, ["sat", "a", "on"], 1),
    ]
    logits = [column.name for column in FEATURES.columns.values() if column.group == LOGITS]
    columns = FEATURES.nothing(4) | FEATURES.nothing(4, logits)
    columns |= {
        "top_logit_tokens": [["cat", "X "], ["a"], ["SAT", "mat", "hat"], []],
        "top_logits": [[2.0, 1.0], [1.0], [3.0, 2.0, 1.0], []],
    }
    features, contexts = sample_tables(columns, rows)
    assert agreement_of_texts(features, contexts).tolist() == [2 / 3, 0, 1 / 2, 0]
    # As many promoted tokens as none.
    none = FEATURES.table(columns_of(features) | {"top_logit_tokens": [[]] * 4})
    assert agreement_of_texts(none, contexts).tolist() == [0] * 4
