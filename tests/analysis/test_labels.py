"""Automatic labels, and the file in which people write better ones."""

import csv
import json

import pyarrow
import pyarrow.parquet
import pytest

from sae.analysis.labels import (
    Labels,
    carry_labels,
    read_labels,
    set_label,
    write_labels,
)
from sae.analysis.naming import automatic_labels
from sae.base.errors import UserError


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


# --- labels.csv --------------------------------------------------------------------------


def atlas(folder, automatic=("“a”", "“b”", "dead"), digest="one"):
    folder.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(
        pyarrow.table({"label": list(automatic)}), folder / "features.parquet"
    )
    (folder / "atlas.json").write_text(json.dumps({"dictionary_digest": digest}))
    write_labels(folder, Labels.all_automatic(list(automatic)))
    return folder


def test_labels_that_nobody_touched_are_the_automatic_ones(tmp_path):
    labels = read_labels(atlas(tmp_path / "a"))
    assert labels.label == ["“a”", "“b”", "dead"]
    assert labels.explanation == ["", "", ""]
    assert labels.by_hand == []
    (tmp_path / "a" / "labels.csv").unlink()
    assert read_labels(tmp_path / "a") == labels


HOSTILE = [
    "=1+1",
    "'=x",
    "'plain",
    "a,b;c\t",
    'say "hi"',
    "two\nlines",
    "-tion",
    "</script>",
    "\x00",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_written_is_read_again(tmp_path, text):
    folder = atlas(tmp_path / "a")
    labels = read_labels(folder)
    labels.label[1] = labels.explanation[2] = text.strip()
    write_labels(folder, labels)
    assert read_labels(folder) == labels
    with (folder / "labels.csv").open(encoding="utf-8", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell[:1] in set("=+-@")]


def test_a_lone_surrogate_does_not_spoil_the_file(tmp_path):
    folder = atlas(tmp_path / "a")
    set_label(folder, 0, "half \ud800 sign \U0001f600")
    assert read_labels(folder).label[0] == "half � sign \U0001f600"


@pytest.mark.parametrize(
    "content",
    [
        "feature,label,explanation\n1,mine,because\n",
        "\ufefffeature,label,explanation\r\n1,mine,because\r\n",
        "feature;label;explanation\r\n1;mine;because\r\n",
        "Feature\tLabel\texplanation\n1\tmine\tbecause\n",
        "label,explanation,feature,\n\nmine,because, 1 ,\n,,,\n",
        'feature,label,explanation\n2,,\n"1","mine","because"',
    ],
    ids=["plain", "bom and crlf", "semicolons", "tabs", "other order", "quoted"],
)
def test_a_file_from_a_spreadsheet_is_understood(tmp_path, content):
    folder = atlas(tmp_path / "a")
    (folder / "labels.csv").write_bytes(content.encode())
    labels = read_labels(folder)
    assert labels.label == ["“a”", "mine", "dead"]
    assert labels.explanation == ["", "because", ""]
    assert labels.by_hand == [1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"feature,label\n0,a\n3,b\n", "line 3: '3' is no feature.*0 to 2"),
        (b"feature,label\n-1,a\n", "line 2: '-1' is no feature"),
        (b"feature,label\none,a\n", "line 2: 'one' is no feature"),
        (b"feature,label\n,a\n", "line 2: '' is no feature"),
        (b"feature,label\n1,a\n\n1,b\n", "line 4: feature 1 has a row already, at line 2"),
        (b'feature,label\n1,"a\nb\n', "line 2: .*end of data"),
        (b'feature,label\n1,"a\nb"\n7,c\n', "line 4: '7'"),
        (b"feature,label\n1,a\n2,caf\xe9\n", "line 3: not UTF-8"),
        (b"feature,label\n1,one, two\n", "line 2: .*' two'.* in no column"),
        (b"feature,label,score\n1,a,3\n", "line 1: column 'score' is unknown"),
        (b"feature,label,label\n1,a,b\n", "line 1: column 'label' is unknown or there twice"),
        (b"1,mine,\n", "line 1: column '1' is unknown"),
        (b"feature,explanation\n1,a\n", "line 1: no column 'label'"),
    ],
)
def test_a_broken_line_is_named(tmp_path, content, message):
    folder = atlas(tmp_path / "a")
    (folder / "labels.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"labels\.csv, " + message):
        read_labels(folder)


def test_a_folder_without_tables_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"features\.parquet is missing"):
        read_labels(tmp_path)


def test_one_label_is_set_and_taken_back_beside_what_others_wrote(tmp_path):
    folder = atlas(tmp_path / "a")
    (folder / "labels.csv").write_text("feature,label,explanation\n0,zero,why\n")
    assert set_label(folder, 1, "  one\nline ").label == ["zero", "one line", "dead"]
    assert read_labels(folder).by_hand == [0, 1]
    assert set_label(folder, 1, " ").label == ["zero", "“b”", "dead"]
    assert read_labels(folder).explanation == ["why", "", ""]
    with pytest.raises(UserError, match="feature=3; the atlas has features 0 to 2"):
        set_label(folder, 3, "x")


def test_labels_by_hand_outlive_a_new_analysis_of_the_same_dictionary(tmp_path):
    old, new = atlas(tmp_path / "old"), tmp_path / "new"
    labels = set_label(old, 1, "mine")
    labels.explanation[0] = "seen in poems"
    write_labels(old, labels)
    new.mkdir()
    carried = carry_labels(old, new, ["“A”", "“B”", "dead"], "one")
    assert carried.label == ["“A”", "mine", "dead"]
    assert carried.explanation == ["seen in poems", "", ""]
    atlas_of_new = pyarrow.table({"label": ["“A”", "“B”", "dead"]})
    pyarrow.parquet.write_table(atlas_of_new, new / "features.parquet")
    assert read_labels(new) == carried


def test_labels_by_hand_of_another_dictionary_are_kept_beside_again_and_again(tmp_path):
    folder = atlas(tmp_path / "0")
    for step, digest in enumerate(["two", "one", "two"], start=1):
        set_label(folder, 0, f"hand {step}")
        new = atlas(tmp_path / str(step), digest=digest)
        assert carry_labels(folder, new, ["x", "y", "z"], digest).by_hand == []
        folder = new
    kept = {path.name: path.read_text() for path in folder.glob("labels-*.csv")}
    assert sorted(kept) == ["labels-one-2.csv", "labels-one.csv", "labels-two.csv"]
    assert "hand 1" in kept["labels-one.csv"]
    assert "hand 2" in kept["labels-two.csv"]
    assert "hand 3" in kept["labels-one-2.csv"]


def test_untouched_labels_of_another_dictionary_are_not_kept(tmp_path):
    old, new = atlas(tmp_path / "old"), tmp_path / "new"
    new.mkdir()
    carry_labels(old, new, ["x"], "two")
    carry_labels(tmp_path / "nowhere", new, ["x"], "two")
    assert [path.name for path in new.iterdir()] == ["labels.csv"]


def test_a_broken_file_is_never_thrown_away(tmp_path):
    old, new = atlas(tmp_path / "old"), tmp_path / "new"
    new.mkdir()
    (old / "labels.csv").write_text("my notes\n")
    with pytest.raises(UserError, match="line 1"):
        carry_labels(old, new, ["x", "y", "z"], "one")
    carry_labels(old, new, ["x"], "two")
    assert (new / "labels-one.csv").read_text() == "my notes\n"
