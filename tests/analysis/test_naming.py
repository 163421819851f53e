"""Automatic labels, made of what stands at a feature's peaks."""

import pyarrow
import pytest

from sae.analysis.naming import automatic_labels


def tables(*features):
    """Tables of features, each given as its contexts (text before, peak token, text after).

    Text beside the peaks is cut into tokens before each space.
    """
    rows, contexts = [], []
    for number, feature in enumerate(features):
        given = feature.pop("contexts", [])
        rows.append(
            {
                "density": 0.01,
                "n_active": len(given),
                "positions": [1] * 10,
                "top_tokens": sorted({peak for _, peak, _ in given}),
                "top_logit_tokens": [],
            }
            | feature
        )
        for rank, (before, peak, after) in enumerate(given):
            left, right = tokens(before), tokens(after)
            contexts.append(
                {
                    "feature": number,
                    "group": "top",
                    "rank": rank,
                    "position": 50 + len(left) if "at" not in feature else feature["at"],
                    "start": 50 if "at" not in feature else feature["at"] - len(left),
                    "tokens": [*left, peak, *right],
                }
            )
    schema = pyarrow.schema(
        {
            "feature": pyarrow.int32(),
            "group": pyarrow.string(),
            "rank": pyarrow.int32(),
            "position": pyarrow.int32(),
            "start": pyarrow.int32(),
            "tokens": pyarrow.list_(pyarrow.string()),
        }
    )
    columns = {key: [row[key] for row in rows] for key in rows[0] if key != "at"}
    return pyarrow.table(columns), pyarrow.Table.from_pylist(contexts, schema)


def tokens(text):
    found = [f" {word}" for word in text.split(" ")]
    found[0] = found[0][1:]
    return [token for token in found if token]


def label(contexts, **figures):
    """The label of one feature among others that fire on everything."""
    names = "stone paper glass field night water horse chair bread cloud".split()
    other = [
        (f"so was {a} of", f" {b}", f" {c} then")
        for a, b, c in zip(names, names[1:], names[2:], strict=False)
    ]
    others = [{"contexts": other[i:] + other[:i]} for i in range(len(other))]
    return automatic_labels(*tables({"contexts": contexts, **figures}, *others))[0]


FILLERS = "one two six ten red blue old new big wide".split()


def at(*peaks, before="so {} was", after=" {} then"):
    """Contexts with these peaks, different words around them."""
    return [
        (before.format(filler), peak, after.format(filler[::-1]))
        for peak, filler in zip(peaks, FILLERS, strict=False)
    ]


def test_a_word_at_every_peak_is_the_label_whatever_its_letter_case():
    assert label(at(" tax", " Tax", " tax", " TAX", before="so was {}")) == "“tax”"


def test_two_forms_of_a_word_are_both_named_the_commoner_first():
    peaks = at(" reason", " reason", " reasons", " Reasons", " reason", before="so was {}")
    assert label(peaks) == "“reason”, “reasons”"


def test_a_word_that_always_follows_another_is_named_with_it():
    assert label(at(*[" born"] * 5)) == "“was born”"


def test_an_abbreviation_is_named_whole():
    contexts = [(f"{filler} the U", ".", f" {filler[::-1]}") for filler in FILLERS[:5]]
    features, table = tables({"contexts": contexts})
    rows = table.to_pylist()
    for row in rows:  # U . S .
        row["tokens"][2:4] = [" U", ".", "S", "."]
        row["position"] += 2
    table = pyarrow.Table.from_pylist(rows, table.schema)
    assert automatic_labels(features, table) == ["“U.S.”"]


def test_a_word_cut_in_tokens_is_put_together():
    contexts = [(f"it {filler} un", "believ", "able so") for filler in FILLERS[:4]]
    assert label(contexts).startswith("“unbelievable”")


def test_a_part_of_different_words_is_shown_as_a_part():
    stems = "blazing hot thematical free".split()
    contexts = [(f"it {f} {s}", "ly", f" {f}") for s, f in zip(stems, FILLERS, strict=False)]
    assert label(contexts) == "“-ly” in blazingly, hotly, thematically"


def test_what_follows_or_is_promoted_comes_after_an_arrow():
    able = at(*[" able"] * 5, before="so was {}", after=" to {}")
    assert label(able) == "“able” → “to”"
    people = at(*[" people"] * 5, before="so was {}")
    promoted = [" who", "who", " Who", " whom", "xyz"]
    assert label(people, top_logit_tokens=promoted) == "“people” → “who”"


def test_different_words_in_texts_of_one_matter_are_named_by_the_texts():
    contexts = [
        (f"the film actor {f}", f" {peak}", f" {f} director")
        for peak, f in zip("sat ran fell woke rose".split(), FILLERS, strict=False)
    ]
    found = label(contexts)
    assert found.startswith("in texts with ")
    assert all(word in found for word in ("film", "actor", "director"))


def test_features_that_would_be_called_alike_are_told_apart_by_what_stands_before():
    after_cities = at(*[","] * 4, before="so {} was")
    cities, months = (
        [(f"it {f} {name}", ",", f" {f}") for name, f in zip(names, FILLERS, strict=False)]
        for names in ("Paris Rome Berlin Oslo".split(), "May June July March".split())
    )
    found = automatic_labels(
        *tables({"contexts": cities}, {"contexts": months}, {"contexts": after_cities})
    )
    assert found == ["“,” after Paris, Rome, Berlin", "“,” after May, June, July", "“was,”"]


def test_kinds_of_tokens_have_a_name():
    assert label(at("19", "7", "254", "31", before="so was {} ")).startswith(
        "numbers: “19”, “7”"
    )
    assert label(at(" Ann", " Carl", " Eve", " Kim", before="so was {}")).startswith(
        "capitalised"
    )
    assert label(at("�", " �", "�", "x")) == "parts of characters"
    assert label(at(";", "!", "?)", "—", before="so was {}")).startswith("signs: “;”")


def test_a_part_of_a_character_is_named_by_the_character_or_as_a_part():
    def parts(*whole):
        features, table = tables({"contexts": at(*[" x"] * len(whole), before="so {}")})
        rows = table.to_pylist()
        for row, character in zip(rows, whole, strict=True):
            place = row["position"] - row["start"]
            row["tokens"][place : place + 1] = [" ", "", "", character]
            row["position"] += 1
        return automatic_labels(features, pyarrow.Table.from_pylist(rows, table.schema))

    assert parts(*"龘龘龘龘") == ["“龘”"]
    assert parts(*"龘靐齉爨") == ["parts of characters"]


def test_words_with_marks_and_pictures_with_joiners_stay_whole():
    contexts = [(f"{f} हि", "न्दी", f" {f[::-1]}") for f in FILLERS[:4]]
    assert label(contexts) == "“हिन्दी”"
    family = "👨\u200d👩\u200d👧"
    assert label(at(*[f" {family}"] * 4, before="so was {}")) == f"“{family}”"


def test_a_feature_that_fires_after_a_word_says_so():
    peaks = at(" cat", " tree", " stone", " wind", before="{} of")
    assert label(peaks) == "after “of”: cat, tree, stone"


def test_dead_dense_and_first_features_are_called_so():
    assert label([], n_active=0, density=0.0) == "dead"
    assert (
        label(at(*[" the"] * 4, before="so was {}"), density=0.62) == "on 62% of tokens · “the”"
    )
    first = label(at(*[" the"] * 4, before="so was {}"), at=2, positions=[9] + [0] * 9)
    assert first == "at the start of the text · “the”"


@pytest.mark.parametrize(
    "token",
    [
        *"\n\t\x00\u202e\u2028\u0301\U0001f600�+-@ '",
        "   ",
        "\n" * 30,
        "=1+1",
        "e" * 300,
        "",
        "<b>",
    ],
)
def test_a_label_is_one_short_visible_line_and_no_formula(token):
    for before in ("so {} was", "so was {}"):
        found = label(at(*[token] * 6, before=before))
        assert 0 < len(found) <= 60
        assert found.isprintable()
        assert found == found.strip()
        assert found[0] not in "=+-@'"


def test_labels_do_not_need_logits_or_top_contexts():
    features, contexts = tables(
        {"contexts": at(*[" tax"] * 4, before="so was {}")}, {"n_active": 3}
    )
    features = features.drop_columns(["top_logit_tokens"])
    assert automatic_labels(features, contexts) == ["“tax”", "active"]
    assert automatic_labels(features, contexts.slice(0, 0)) == ["“tax”", "active"]
