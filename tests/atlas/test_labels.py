"""`labels.csv`: what people write into it, edit with other programs and want to keep."""

import csv

import pytest
from support.atlas_samples import sample_record

from sae.atlas.atlas import write_record
from sae.atlas.labels import (
    Labels,
    carry_labels,
    read_labels,
    set_label,
    write_labels,
)
from sae.atlas.schema import FEATURES
from sae.base.errors import UserError


def write_features(folder, labels):
    """A feature table of which nothing is known but these labels."""
    FEATURES.write(folder, FEATURES.nothing(len(labels)) | {"label": labels})


def atlas(folder, automatic=("“a”", "“b”", "dead"), digest="one"):
    folder.mkdir(exist_ok=True)
    write_features(folder, list(automatic))
    write_record(folder, sample_record(len(automatic), 1, dictionary_digest=digest))
    write_labels(folder, Labels.all_automatic(list(automatic)))
    return folder


def test_labels_that_nobody_touched_are_the_automatic_ones(tmp_path):
    labels = read_labels(atlas(tmp_path / "a"))
    assert labels.label == ["“a”", "“b”", "dead"]
    assert labels.explanation == ["", "", ""]
    assert labels.by_hand == []
    (tmp_path / "a" / "labels.csv").unlink()
    assert read_labels(tmp_path / "a") == labels


# Zero width: space, joiner, word joiner, byte order mark, soft hyphen; turning the direction;
# blanks that str.strip() knows not; blank letters; a mark on nothing.
UNSEEN = "\u200b\u200d\u2060\ufeff\u00ad\u202e\u2066\u200f\u3164\u2800\u034f\ufe0f\x00"


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
    *(f"{unseen}=1+1" for unseen in UNSEEN),
    "\uff1d1+1",
    "\ufe661+1",
    "\u200b'\u202e\uff20SUM(1)",
    "a\u200b=1",
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
    assert not [cell for cell in cells if computed(cell)]


def computed(cell: str) -> bool:
    """As a spreadsheet might: it drops what it does not draw, and reads full width as plain."""
    drawn = [c for c in cell if c not in UNSEEN]
    return "".join(drawn).translate({0xFF1D: "=", 0xFE66: "=", 0xFF20: "@"})[:1] in tuple(
        "=+-@"
    )


def test_a_label_begins_with_something_to_be_seen(tmp_path):
    folder = atlas(tmp_path / "a")
    assert set_label(folder, 0, f"{UNSEEN[:8]} cats").label[0] == "cats"
    # What is not seen at all is no label.
    assert set_label(folder, 0, "\u200b \ufeff\u3164").label[0] == "“a”"
    # A sign that joins what stands beside it stays, and a vowel sign of its own.
    for label in (
        "\u0915\u094d\u200d\u0937",
        "\u093e is a vowel",
        "\U0001f469\u200d\U0001f680",
    ):
        assert set_label(folder, 0, label).label[0] == label


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
    write_features(new, ["“A”", "“B”", "dead"])
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
