"""Which features to steer with: by what they do to the output, or by their contexts."""

from support.feature_rows import row

from sae.atlas.choice import choose_by_agreement, choose_dials


def test_features_are_chosen_by_the_rule():
    rows = [
        row(0, agreement=0.2),
        row(1, agreement=0.9),
        row(2, density=0.5, agreement=1.0),
        row(3, agreement=0.9, sharpness=5.0),
        row(
            4, agreement=1.0, tokens=["!", "?", "ing", "ed", " of", " to", " a", " x", ".", ","]
        ),
        row(5, agreement=0.8, tokens=[" WordB0"] + [f" other{i}" for i in range(9)]),
    ]
    assert choose_by_agreement(rows, 3) == [3, 1, 0]
    assert choose_by_agreement([*rows, row(6, density=0)], 9) == [3, 1, 0, 2, 4, 5]


def test_words_of_any_script_count_as_words():
    hindi, chinese = [" नमस्ते", " दुनिया"] * 5, ["今天", "公园"] * 5
    parts = ["<0xE4><0xBD>", "ing", " ,", "!"] * 3
    rows = [row(0, agreement=1.0, tokens=parts)]
    rows += [row(n, agreement=0.5, tokens=tokens) for n, tokens in ((1, hindi), (2, chinese))]
    assert choose_by_agreement(rows, 2) == [1, 2]


def dial(feature, verdict="dial", score=0.1, **more):
    return row(feature, **more) | {"dial_verdict": verdict, "dial_score": score}


def test_dials_are_chosen_by_their_score_and_words_come_before_what_is_none():
    rows = [
        dial(0, score=0.2),
        dial(1, score=0.5),
        dial(2, score=0.9, tokens=["!", "?", "ing", "ed", " of", " to", " a", " x", ".", ","]),
        dial(3, "weak", 0.004),
        dial(4, "none", 0.7),
        dial(5, "", float("nan")),
        dial(6, score=0.1, tokens=[" WordB0"] + [f" other{i}" for i in range(9)]),
    ]
    assert choose_dials(rows, 2) == [1, 0]
    # One that shares a token comes behind the other dials; 5 was not scored.
    assert choose_dials(rows, 9) == [1, 0, 2, 6, 3, 4]
