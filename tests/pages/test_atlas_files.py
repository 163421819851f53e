"""The atlas as static files: what the tables say, reachable by script elements alone."""

import json
import math
import random
import re
from collections import Counter, defaultdict

import numpy as np
import pyarrow
import pytest
from support.atlas_samples import dial_columns, sample_record

from sae.atlas.labels import Labels
from sae.atlas.schema import CONTEXTS, FEATURES
from sae.pages.search import LISTED, SearchIndex, key_of, words_of
from sae.pages.site import BLOCK, write_labels_data, write_pareto_data, write_site

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!--",
    "&amp;",
    "\u2028\u2029",
    "\x00\x1f\x7f",
    "�",
    "\u202eevil\u200f",
    '"\\',
    "\U0001f600",
    "');",
]
WORDS = " the cat sat on 12 mats Élan naïve İstanbul 中文 foo_bar \U0001d400x".split(" ")
LISTS = {
    column.name: column.kind for column in FEATURES.columns.values() if "list" in column.kind
}
GROUPS = [("top", -1, 3), *(("band", band, 2) for band in (4, 3, 2, 1, 0)), ("silent", -1, 2)]


def made_tables(n=70, *, logits=True, text=tuple(WORDS + HOSTILE), seed=0):
    """Tables as an analysis writes them, with random content; every seventh feature is dead."""
    draw = random.Random(seed)

    def tokens(k):
        return [draw.choice(["", " "]) + draw.choice(text) for _ in range(k)]

    features, contexts = [], []
    for number in range(n):
        dead = number % 7 == 6
        k = 0 if dead else draw.randint(1, 10)
        lists = {
            name: tokens(k)
            if "string" in kind
            else [draw.random() if "float" in kind else draw.randrange(1000) for _ in range(k)]
            for name, kind in LISTS.items()
        }
        lists["histogram"] = [draw.randrange(9) for _ in range(50)]
        features.append(
            lists
            | {
                "feature": number,
                "label": f"label {number}",
                "density": 0.0 if dead else draw.random(),
                "n_active": 0 if dead else 5,
                "max_activation": 0.0 if dead else 10 * draw.random(),
                "mean_activation": math.nan if dead else draw.random(),
                "std_activation": draw.random(),
                "decoder_norm": 1.0,
                "encoder_norm": draw.random(),
                "n_documents": number,
                "top_document_share": draw.random(),
                "logit_sharpness": 1.0,
                "logit_agreement": draw.random(),
                "map_x": draw.random(),
                "map_y": draw.random(),
            }
        )
        for group, band, ranks in GROUPS[-1:] if dead else GROUPS:
            for rank in range(ranks):
                length = draw.randint(1, 9)
                acts = [draw.choice([0.0, 5 * draw.random()]) for _ in range(length)]
                peak = int(np.argmax(acts))
                contexts.append(
                    {
                        "feature": number,
                        "group": group,
                        "band": band,
                        "rank": rank,
                        "sequence": draw.randrange(10**6),
                        "position": 20 + peak,
                        "start": 20,
                        "activation": acts[peak],
                        "token_ids": [0] * length,
                        "tokens": tokens(length),
                        "activations": [0.0] * length if group == "silent" else acts,
                    }
                )
    columns = {
        name: [row[name] for row in features]
        for name in features[0]
        if logits or "logit" not in name
    }
    contexts = {name: [row[name] for row in contexts] for name in contexts[0]}
    return FEATURES.table(columns), CONTEXTS.table(contexts)


def site_of(folder, features, contexts, pareto=None, labels=None):
    labels = labels or Labels.all_automatic([f"label {i}" for i in range(len(features))])
    record = sample_record(len(features), 0, dictionary="made")
    write_site(folder, features, contexts, record, labels, pareto)
    return folder


def taken(folder, name):
    """What a script file hands over, after a look at whether it can do anything else."""
    content = (folder / "data" / f"{name}.js").read_bytes().decode("utf-8")
    assert content.count("\n") == 1
    assert not re.search("[<>&\u2028\u2029]", content)
    found = re.fullmatch(r'atlas\.take\("([^"]*)",(.*)\);\n', content, re.DOTALL)
    assert found[1] == name
    return json.loads(found[2])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    features, contexts = made_tables()
    return site_of(tmp_path_factory.mktemp("site"), features, contexts), features, contexts


def near(found, given, digits=4):
    """Whether `found` is `given` to so many significant digits."""
    return [
        value if value is None else float(f"{value:.{digits}g}") for value in given
    ] == found


def test_the_index_has_every_feature_in_a_few_digits(made):
    folder, features, _ = made
    index = taken(folder, "index")
    assert index["manifest"] == sample_record(70, 0, dictionary="made").to_json()
    assert near(index["density"], features["density"].to_pylist())
    assert near(index["max"], features["max_activation"].to_pylist())
    assert near(index["agreement"], features["logit_agreement"].to_pylist(), 2)
    assert [value is None for value in index["mean"]] == [i % 7 == 6 for i in range(70)]
    assert index["documents"] == list(range(70))
    assert index["x"] == [round(4095 * x) for x in features["map_x"].to_pylist()]
    assert index["block"] == BLOCK
    assert index["has_logits"] is True
    files = {path.stem for path in (folder / "data" / "search").iterdir()}
    assert set(index["search"]) == files
    assert (folder / "index.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_block_says_of_its_features_what_the_tables_say(made):
    folder, features, contexts = made
    by_feature = defaultdict(list)
    for row in contexts.to_pylist():
        by_feature[row["feature"]].append(row)
    shown = 0
    for number in range(math.ceil(70 / BLOCK)):
        block = taken(folder, f"features/{number:05d}")
        assert block["first"] == number * BLOCK
        rows = features.slice(number * BLOCK, BLOCK).to_pylist()
        for row, found in zip(rows, block["features"], strict=True):
            strings = block["strings"]
            check_feature(row, found, strings)
            check_contexts(by_feature[row["feature"]], found["contexts"], strings)
            shown += 1
    assert shown == 70


def check_feature(row, found, strings):
    assert near([found["std"]], [row["std_activation"]])
    assert found["histogram"] == row["histogram"]
    assert found["positions"] == row["positions"]
    assert near([found["top_document"]], [row["top_document_share"]])
    assert [strings[i] for i in found["tokens"][::3]] == row["top_tokens"]
    assert found["tokens"][1::3] == row["top_token_counts"]
    assert near(found["tokens"][2::3], row["top_token_rates"])
    assert [strings[i] for i in found["top"][::2]] == row["top_logit_tokens"]
    assert near(found["top"][1::2], row["top_logits"])
    assert [strings[i] for i in found["bottom"][::2]] == row["bottom_logit_tokens"]
    assert found["neighbours"][::2] == row["neighbours"]
    assert near(found["neighbours"][1::2], row["neighbour_cosines"])
    assert near(found["correlated"][1::2], row["correlations"])
    assert found["coactive"][::3] == row["coactive"]
    assert near(found["coactive"][1::3], row["coactive_jaccard"])
    assert found["coactive"][2::3] == row["coactive_counts"]


def check_contexts(rows, found, strings):
    for row, context in zip(rows, found, strict=True):
        group, sequence, position, peak, tokens, acts = context
        assert group == (row["band"] if row["group"] == "band" else row["group"])
        assert (sequence, position) == (row["sequence"], row["position"])
        assert peak == row["position"] - row["start"]
        assert [strings[i] for i in tokens] == row["tokens"]
        active = [(i, a) for i, a in enumerate(row["activations"]) if a > 0]
        assert acts[::2] == [i for i, _ in active]
        assert near(acts[1::2], [a for _, a in active])


def test_common_tokens_get_the_shortest_numbers(made):
    block = taken(made[0], "features/00000")
    counts = Counter(n for f in block["features"] for c in f["contexts"] for n in c[4])
    first, last = range(5), range(len(block["strings"]) - 5, len(block["strings"]))
    assert sum(counts[n] for n in first) > sum(counts[n] for n in last)


def brute_force(features, contexts):
    """For every word how often it is in each feature's contexts, and whether it is a token."""
    weights = defaultdict(Counter)
    columns = [
        name for name in ("top_tokens", "top_logit_tokens") if name in features.column_names
    ]
    for row in features.select(["feature", *columns]).to_pylist():
        for word in {w for name in columns for token in row[name] for w in words_of(token)}:
            weights[word][row["feature"]] += 1000
    for row in contexts.to_pylist():
        if row["group"] == "top":
            for word in words_of("".join(row["tokens"])):
                weights[word][row["feature"]] += 1
    return {
        word: [f for f, _ in sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))]
        for word, found in weights.items()
    }


def search(folder):
    """All words of the index with their counts and features."""
    found = {}
    for key in taken(folder, "index")["search"]:
        for word, entry in taken(folder, f"search/{key}").items():
            assert key_of(word) == key
            assert word not in found
            found[word] = entry
    return found


def test_search_finds_what_a_look_at_every_row_finds_best_first(made):
    folder, features, contexts = made
    expected = brute_force(features, contexts)
    assert len(expected) > 50
    assert search(folder) == {word: [len(f), *f] for word, f in expected.items()}


def test_words_are_runs_of_letters_and_digits_of_any_script():
    assert words_of("The CAT's foo_bar, naïve-ÉLAN 3.14 中文\u2028x") == (
        "the cat ' s foo _ bar , naïve - élan 3 . 14 中 文 中文 x".split()
    )
    assert words_of("a" * 50) == ["a" * 40]
    assert words_of("हिन्दी cafe\u0301 مَرْحَبًا") == ["हिन्दी", "café", "مَرْحَبًا"]


def test_signs_and_scripts_without_spaces_are_found_by_characters_and_their_pairs():
    assert words_of("a!==b") == ["a", "!", "=", "=", "!=", "==", "b"]
    assert words_of("iPhone手机的") == ["iphone", "手", "机", "的", "手机", "机的"]
    assert words_of("น้ำ") == ["น", "้", "ำ", "น้", "้ำ"]
    assert words_of("👩\u200d🚀 ❤\ufe0f") == ["👩", "🚀", "👩\u200d", "\u200d🚀", "❤"]


@pytest.mark.parametrize(
    ("word", "key"),
    {
        "re": "72-65",
        "reason": "72-65",
        "7": "37",
        "中文": "g-4e2",
        "丰": "g-4e3",
        "!=": "g-2",
        "😀": "g-1f60",
        "\U0001d400x": "d835-dc00",
        "a\U0001d400": "61-d835",
    }.items(),
)
def test_a_word_is_in_the_file_of_its_first_two_units_and_a_pair_in_one_of_many(word, key):
    assert key_of(word) == key


def test_a_word_of_very_many_features_lists_the_best_and_says_how_many_there_are():
    index = SearchIndex()
    for feature in range(2 * LISTED):
        index.add(
            feature, ["the"] if feature == 500 else [], "the then" if feature else "the the"
        )
    ((key, words),) = index.files()
    assert key == "74-68"
    assert words["the"] == [2 * LISTED, 500, 0, *range(1, LISTED - 1)]
    assert words["then"][0] == 2 * LISTED - 1


def test_a_file_of_very_many_words_stays_small():
    index = SearchIndex()
    text = " ".join(f"co{i}" for i in range(1000))
    for feature in range(10_000, 10_200):
        index.add(feature, [], text)
    ((_, words),) = index.files()
    assert all(entry[0] == 200 and len(entry) > 10 for entry in words.values())
    assert len(json.dumps(words, separators=(",", ":"))) < 220_000


def test_hostile_text_arrives_as_text_and_as_nothing_else(tmp_path):
    features, contexts = made_tables(8, text=HOSTILE)
    half = "half \ud83d pair"
    label = [*HOSTILE[:7], half]
    labels = Labels([*label[:3], "automatic", *label[4:]], label, [HOSTILE[0]] * 8)
    pareto = {"criterion": HOSTILE[0] + half, "l0": math.nan}
    site_of(tmp_path, features, contexts, pareto, labels)
    assert taken(tmp_path, "labels") == {
        "label": label,
        "explanation": [HOSTILE[0]] * 8,
        "by_hand": [3],
    }
    assert taken(tmp_path, "pareto") == {"criterion": HOSTILE[0] + half, "l0": None}
    strings = taken(tmp_path, "features/00000")["strings"]
    assert {s.strip(" ") for s in strings} == {s.strip(" ") for s in HOSTILE}
    assert {"script", "evil"} <= set(search(tmp_path))


def test_a_dictionary_that_does_not_write_into_the_stream_has_no_logits(tmp_path):
    features, contexts = made_tables(10, logits=False)
    site_of(tmp_path, features, contexts)
    index = taken(tmp_path, "index")
    assert (index["has_logits"], index["agreement"]) == (False, [])
    assert {
        str(f["top"] + f["bottom"]) for f in taken(tmp_path, "features/00000")["features"]
    } == {"[]"}


def test_dials_are_told_of_the_features_that_were_scored_and_of_no_others(tmp_path):
    features, contexts = made_tables(40)
    maxima = features["max_activation"].to_pylist()
    table = FEATURES.table(
        {name: features[name] for name in features.column_names} | dial_columns(maxima)
    )
    site_of(tmp_path, table, contexts)
    rows = table.to_pylist()
    scored = [row for row in rows if row["dial_verdict"]]
    assert 0 < len(scored) < 40
    dials = taken(tmp_path, "index")["dials"]
    assert dials["feature"] == [row["feature"] for row in scored]
    assert dials["verdict"] == [
        ["none", "weak", "dial"].index(row["dial_verdict"]) for row in scored
    ]
    assert near(dials["score"], [row["dial_score"] for row in scored], 3)
    assert near(dials["dose"], [row["dial_strength"] for row in scored], 3)
    block = taken(tmp_path, "features/00000")
    for row, found in zip(rows, block["features"], strict=False):
        figures = [row[name] for name in block["dial_columns"]]
        assert (
            found["dial"] is None
            if not row["dial_verdict"]
            else near(found["dial"], figures, 3)
        )


def test_a_dictionary_that_was_not_scored_has_no_dials(made):
    index, block = taken(made[0], "index"), taken(made[0], "features/00000")
    assert {len(column) for column in index["dials"].values()} == {0}
    assert {found["dial"] for found in block["features"]} == {None}


def test_a_dictionary_without_a_live_feature_has_a_page(tmp_path):
    features, contexts = made_tables(7)
    features, contexts = features.slice(6), contexts.slice(0, 0)
    site_of(tmp_path, features, contexts)
    assert taken(tmp_path, "index")["search"] == []
    (found,) = taken(tmp_path, "features/00000")["features"]
    assert found["contexts"] == found["tokens"] == []


def test_tokens_stored_once_and_in_chunks_give_the_same_files(tmp_path, made):
    _, features, contexts = made
    kinds = {"tokens": pyarrow.list_(pyarrow.dictionary(pyarrow.int32(), pyarrow.string()))}
    fields = [pyarrow.field(f.name, kinds.get(f.name, f.type)) for f in contexts.schema]
    encoded = pyarrow.Table.from_pylist(contexts.to_pylist(), pyarrow.schema(fields))
    pieces = pyarrow.concat_tables([encoded.slice(0, 301), encoded.slice(301)])
    site_of(tmp_path, features, pieces)
    for path in sorted((made[0] / "data").rglob("*.js")):
        assert path.read_bytes() == (tmp_path / path.relative_to(made[0])).read_bytes()


def test_labels_and_siblings_are_rewritten_alone(tmp_path):
    features, contexts = made_tables(3)
    site_of(tmp_path, features, contexts)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    write_labels_data(tmp_path, Labels(["x", "b", "c"], ["a", "b", "c"], ["", "", ""]))
    write_pareto_data(tmp_path, {"current": "made"})
    after = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert {p.name for p in after if after[p] != before.get(p)} == {"labels.js", "pareto.js"}
    assert set(after) == set(before)
    assert taken(tmp_path, "pareto") == {"current": "made"}
