"""`labels.csv`: what people write into it, edit with other programs and want to keep."""

import contextlib
import csv
import os
import threading

import pytest
from support.atlas_samples import sample_record

from sae.atlas import labels as label_module
from sae.atlas import write_record
from sae.atlas.labels import (
    Labels,
    carry_labels,
    read_labels,
    replace_atlas,
    set_label,
    write_labels,
)
from sae.atlas.schema import FEATURES
from sae.base import exchange, remove_unfinished, whole
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
        (b"feature,label\n0,a\n3,b\n", "line 3: '3' is not a feature.*0 to 2"),
        (b"feature,label\n-1,a\n", "line 2: '-1' is not a feature"),
        (b"feature,label\none,a\n", "line 2: 'one' is not a feature"),
        (b"feature,label\n,a\n", "line 2: '' is not a feature"),
        (b"feature,label\n1,a\n\n1,b\n", "line 4: feature 1 is already described in line 2"),
        (b'feature,label\n1,"a\nb\n', "line 2: .*end of data"),
        (b'feature,label\n1,"a\nb"\n7,c\n', "line 4: '7'"),
        (b"feature,label\n1,a\n2,caf\xe9\n", "line 3: the text is not UTF-8"),
        (b"feature,label\n1,one, two\n", "line 2: .*' two'.* belongs to no column"),
        (b"feature,label,score\n1,a,3\n", "line 1: column 'score' is unknown"),
        (b"feature,label,label\n1,a,b\n", "line 1: column 'label' is unknown or occurs twice"),
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


# An atlas that replaces another one


def begun(place, automatic=("“A”", "“B”", "dead"), digest="one"):
    """A new atlas beside the one at `place`, with the labels that it had a while ago."""
    new = atlas(place.with_name(f".{place.name}.0123abcd.partial"), automatic, digest)
    carry_labels(place, new, list(automatic), digest)
    return new


def shown(folder, labels):
    (folder / "shown").write_text(" ".join(labels.label))


def test_a_label_given_while_an_analysis_works_is_in_the_new_atlas_and_on_its_page(tmp_path):
    place = atlas(tmp_path / "a")
    set_label(place, 0, "before")
    new = begun(place)
    set_label(place, 0, "")
    set_label(place, 1, "meanwhile")
    replace_atlas(new, place, shown)
    assert read_labels(place).label == ["“A”", "meanwhile", "dead"]
    assert (place / "shown").read_text() == "“A” meanwhile dead"


def test_what_an_editor_saves_in_the_very_moment_is_kept_beside(tmp_path, monkeypatch, capsys):
    place = atlas(tmp_path / "a")
    new = begun(place)

    def saved_just_before(one, other):
        (place / "labels.csv").write_text("feature,label\n1,last words\n")
        exchange(one, other)

    monkeypatch.setattr(label_module, "exchange", saved_just_before)
    replace_atlas(new, place, shown)
    assert (place / "labels-one.csv").read_text() == "feature,label\n1,last words\n"
    assert f"are in {place / 'labels-one.csv'}" in capsys.readouterr().err


def test_labels_of_another_dictionary_are_kept_once_however_often_they_are_carried(tmp_path):
    place = atlas(tmp_path / "a", digest="two")
    set_label(place, 0, "mine")
    new = begun(place)
    replace_atlas(new, place, shown)
    assert [path.name for path in place.glob("labels-*")] == ["labels-two.csv"]
    assert "mine" in (place / "labels-two.csv").read_text()


def test_labels_outlive_a_damaged_table_beside_them(tmp_path):
    place = atlas(tmp_path / "a", ["“A”", "“B”", "dead"])
    set_label(place, 1, "mine")
    (place / "features.parquet").write_bytes(b"half a table")
    replace_atlas(begun(place), place, shown)
    assert read_labels(place).by_hand == [1]
    assert read_labels(place).label[1] == "mine"


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("step", range(6))
def test_whoever_dies_while_an_atlas_is_replaced_loses_no_label(
    tmp_path, monkeypatch, at_once, step
):
    class Died(BaseException):
        pass

    place, calls = atlas(tmp_path / "a"), []
    new = begun(place)
    set_label(place, 1, "mine")

    def dying(function):
        def called(*arguments):
            if len(calls) >= step:
                raise Died
            calls.append(function)
            return function(*arguments)

        return called

    with monkeypatch.context() as patch, contextlib.suppress(Died):
        call = whole._call
        patch.setattr(whole, "_call", dying(lambda *a: at_once and call(*a)))
        for name in ("rename", "replace"):
            patch.setattr(os, name, dying(getattr(os, name)))
        replace_atlas(new, place, shown)
    remove_unfinished(tmp_path, "a")
    assert read_labels(place).label[1] == "mine"
    assert not [p for p in tmp_path.iterdir() if p.name not in ("a", ".a.labels.lock")]


def test_a_label_waits_while_an_atlas_is_replaced(tmp_path):
    place = atlas(tmp_path / "a")
    writer = threading.Thread(target=set_label, args=(place, 1, "mine"))
    with label_module.locked(label_module._lock(place)):
        writer.start()
        writer.join(0.1)
        assert writer.is_alive()
        assert read_labels(place).by_hand == []
    writer.join()
    assert read_labels(place).label[1] == "mine"
