"""What a source is, told by what is there: clones, saved data sets, tables, texts, tokens."""

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from support.world import harvest_settings, sentences

import sae
from sae.base.errors import UserError
from sae.cache.layout import open_cache
from sae.cli import main
from sae.config.commands import chosen
from sae.config.compose import build
from sae.text import files
from sae.text.packing import TextCounts, pack
from sae.text.rows import Unreadable
from sae.text.source import DataConfig, check_source, documents
from sae.text.tokens import check_text, tokenized

TEXTS = sentences(12)
CARD = """---
license: mit
configs:
- config_name: news
  data_files:
  - split: train
    path: data/train-*
  - split: test
    path: data/test-*
- config_name: books
  data_files: books.jsonl
---
# A data set
"""


def read(name: Any, **options: Any) -> list[Any]:
    return list(documents(DataConfig(name=str(name), **options)))


def refused(name: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        check_source(DataConfig(name=str(name), **options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def jsonl(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def parquet(path: Path, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


# Folders


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clone")
    (folder / "README.md").write_text(CARD)
    for split in ("train", "test"):
        parquet(
            folder / f"data/{split}-00000-of-00001.parquet",
            text=[f"{split} {t}" for t in TEXTS],
            id=list(range(len(TEXTS))),
        )
    jsonl(folder / "books.jsonl", [{"text": text, "pages": 3} for text in TEXTS[:4]])
    (folder / ".git").mkdir()
    (folder / ".git/notes.md").write_text("no document")
    return folder


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_clone_of_a_hub_data_set_gives_what_load_dataset_gives(clone, split):
    expected = datasets.load_dataset(str(clone), "news", split=split, streaming=True)
    found = read(clone, subset="news", split=split)
    assert found == [row["text"] for row in expected]
    assert found == [f"{split} {text}" for text in TEXTS]
    # Whose files are of another kind, for which `load_dataset` itself takes the wrong reader.
    assert read(clone, subset="books") == TEXTS[:4]


def test_what_a_clone_has_not_is_refused_with_what_it_has(clone):
    assert "['news', 'books']" in refused(clone)
    assert "['news', 'books']" in refused(clone, subset="poems")
    assert "'train', 'test'" in refused(clone, subset="news", split="validation")
    said = refused(clone, subset="news", column="body")
    assert "data.column=body is not in" in said
    assert "it has text, id" in said
    assert "data.separator=x has no effect" in refused(clone, subset="news", separator="x")


def test_shards_make_a_data_set_without_a_card(clone):
    assert read(clone / "data", split="test") == [f"test {text}" for text in TEXTS]
    assert read(clone / "data") == [f"train {text}" for text in TEXTS]


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train[:25%]", range(3)),
        ("train[50%:]", range(6, 12)),
        ("train[2:5]", range(2, 5)),
        ("train[-2:]", range(10, 12)),
        ("train[4:4]+train[:1]", range(1)),
    ],
)
def test_a_part_of_a_split_has_the_rows_that_datasets_gives(clone, tmp_path, split, expected):
    table = datasets.Dataset.from_dict({"text": [f"train {text}" for text in TEXTS]})
    datasets.DatasetDict(train=table).save_to_disk(tmp_path)
    wanted = [f"train {TEXTS[i]}" for i in expected]
    assert read(clone, subset="news", split=split) == wanted
    assert read(tmp_path, split=split) == wanted
    file = str(clone / "data/train-00000-of-00001.parquet")
    same = datasets.load_dataset("parquet", data_files={"train": file}, split=split)
    assert list(same["text"]) == wanted


def test_a_part_that_cannot_be_known_or_is_empty_is_refused(clone):
    assert "count from the beginning" in refused(clone, subset="books", split="train[:10%]")
    assert "is not a split; give a name such as train" in refused(
        clone, subset="news", split="train[a:]"
    )
    said = refused(clone, subset="news", split="train[3:3]")
    assert "there is no document in the chosen text" in said
    assert "data.split=train[3:3]" in said


def test_what_save_to_disk_wrote_is_read_by_its_splits(tmp_path):
    one = datasets.Dataset.from_dict({"text": TEXTS, "n": list(range(12))})
    one.save_to_disk(tmp_path / "one")
    several = datasets.DatasetDict(train=one, test=one.select(range(3)))
    several.save_to_disk(tmp_path / "several")
    assert read(tmp_path / "one") == TEXTS
    assert read(tmp_path / "several") == TEXTS
    assert read(tmp_path / "several", split="test") == TEXTS[:3]
    assert "it has train, test" in refused(tmp_path / "several", split="dev")
    assert "one data set without splits" in refused(tmp_path / "one", split="train")
    assert "data.subset=x has no effect" in refused(tmp_path / "one", subset="x")
    assert "it has text, n" in refused(tmp_path / "one", column="body")


def test_files_that_look_like_splits_are_not_mixed_and_the_refusal_says_how_to_choose(tmp_path):
    for name in ("train", "test"):
        jsonl(tmp_path / f"{name}.jsonl", [{"text": name}])
    said = refused(tmp_path)
    assert "whose names suggest several splits (train, test)" in said
    assert f"data.name='{tmp_path}/**'" in said
    assert read(tmp_path, split="train") == ["train"]
    assert sorted(read(f"{tmp_path}/**")) == ["test", "train"]


def test_a_page_about_tables_is_no_document(tmp_path):
    jsonl(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS])
    (tmp_path / "README.md").write_text("# About\n")
    assert f"data.name='{tmp_path}/**/*.jsonl'" in refused(tmp_path)
    assert read(f"{tmp_path}/**/*.jsonl") == TEXTS
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# About\n")
    assert read(tmp_path) == TEXTS


def test_a_plain_folder_is_all_its_texts_but_hidden_ones(tmp_path):
    for name in ("b/2.txt", "1.txt", "3.md", ".git/x.md", "b/.ipynb_checkpoints/y.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "README.md").write_text("---\ntitle: notes\n---\nNotes\n")
    assert read(tmp_path) == [
        "1.txt",
        "3.md",
        "---\ntitle: notes\n---\nNotes\n",
        "b/2.txt",
    ]


IDLE = {
    "miscellany": ["column", "subset", "split", "separator", "one_document_a_line", "on_error"],
    "a.txt": ["column", "subset", "split"],
    "a.jsonl": ["subset", "split", "separator", "one_document_a_line"],
}
VALUES = {
    "column": "text",
    "subset": "x",
    "split": "train",
    "separator": "x",
    "one_document_a_line": True,
    "on_error": "skip",
}


@pytest.mark.parametrize("name", IDLE)
def test_an_option_without_effect_is_refused_and_all_others_are_read(tmp_path, name):
    (tmp_path / "a.txt").write_text("some text")
    jsonl(tmp_path / "a.jsonl", [{"text": "some text"}])
    source = name if name == "miscellany" else str(tmp_path / name)
    for option, value in VALUES.items():
        if option in IDLE[name]:
            assert f"data.{option}={value} has no effect on {source}" in refused(
                source, **{option: value}
            )
        else:
            check_source(DataConfig(name=source, **{option: value}))


def test_what_is_recorded_is_what_was_asked_for_and_identities_stay_as_they_were():
    plain = DataConfig(name="x")
    assert plain.record.to_json() == {"name": "x", "held_out_fraction": 0.1}
    # Of caches that were harvested before the newer keys were there.
    before = {"column": "text", "subset": None, "split": "train", "held_out_fraction": 0.1}
    assert plain.identity == {"name": "x", **before}
    assert DataConfig(name="x", column="text", split="train").identity == plain.identity
    assert sae.HarvestConfig().digest == "c4de9b7fd9b9e315"
    for option, value in VALUES.items():
        if value not in ("text", "train"):
            assert DataConfig(name="x", **{option: value}).identity != plain.identity


# Files


def test_every_kind_of_file_gives_the_same_texts(tmp_path):
    texts = ["plain", "two\nlines", 'comma, "quote"', "größe 水 🙂", "NA", "2020-01-01", "7"]
    rows = [{"id": i, "text": text} for i, text in enumerate(texts)]
    jsonl(tmp_path / "a.jsonl", rows)
    content = (tmp_path / "a.jsonl").read_bytes()
    half = content.index(b"\n") + 1
    packed = zstandard.compress(content[:half]) + zstandard.compress(content[half:])
    (tmp_path / "b.jsonl.zst").write_bytes(packed)
    (tmp_path / "c.ndjson.gz").write_bytes(gzip.compress(content))
    (tmp_path / "d.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "e.json").write_bytes(b"\xef\xbb\xbf" + content)
    (tmp_path / "f.json").write_text(json.dumps(texts))
    parquet(tmp_path / "g[1].parquet", text=texts, picture=[b"x"] * 7)
    for name, new in (("h.arrow", pa.ipc.new_stream), ("i.arrow", pa.ipc.new_file)):
        table = pa.table({"text": texts})
        with new(str(tmp_path / name), table.schema) as writer:
            writer.write_table(table)
    quoted = ['"' + text.replace('"', '""') + '"' for text in texts]
    for name, mark in (("j.csv", ","), ("k.tsv", "\t")):
        lines = [f"id{mark}text", *(f"{i}{mark}{text}" for i, text in enumerate(quoted))]
        (tmp_path / name).write_text("\r\n".join(lines), newline="")
    found = {path.name: read(path) for path in sorted(tmp_path.iterdir())}
    assert len(found) == 11
    assert found == dict.fromkeys(found, texts)


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_one_file_holds_many_documents_between_separators(tmp_path, monkeypatch, block):
    monkeypatch.setattr(files, "_BLOCK_BYTES", block)
    path = tmp_path / "stories.txt"
    stories = ["Once 水.\nThen.", "Twice.", "", "Für immer <|end"]
    path.write_bytes("<|endoftext|>".join(stories).replace("\n", "\r\n").encode())
    assert read(path, separator="<|endoftext|>") == stories
    assert len(read(path)) == 1
    path.write_bytes(b"a\n\nb\r\n\r\nc d\n\n\n\n\\n\n")
    assert read(path, separator=r"\n\n") == ["a", "b", "c d", "", "\\n\n"]
    assert read(path, separator=r"\\n") == ["a\n\nb\n\nc d\n\n\n\n"]
    path.write_bytes("one\nzwei ü\n\nthree\n".encode())
    assert read(path, one_document_a_line=True) == ["one", "zwei ü", "", "three"]


def test_separators_that_cannot_be_meant_are_refused(tmp_path):
    for options in ({"separator": ""}, {"separator": "\r\n"}):
        with pytest.raises(UserError, match="never stands between documents"):
            DataConfig(name="x.txt", **options)
    with pytest.raises(UserError, match="contradict each other"):
        DataConfig(name="x.txt", separator="x", one_document_a_line=True)


def test_a_value_that_hydra_cannot_read_is_refused_with_the_words_that_it_can(capsys):
    for value in ("<|endoftext|>", "x{y"):
        assert main(["harvest", f"data.separator={value}"]) == 2
        right = f"data.separator='{value}'"
        assert f'"{right}"' in capsys.readouterr().err
        found = build(chosen(["harvest"])[0], ["data=./x.txt", right])
        assert found.data.between == value


def test_a_pointer_of_git_lfs_is_not_read_as_text(tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n"
    for name in ("a.txt", "a.jsonl", "a.parquet"):
        (tmp_path / name).write_text(pointer)
        assert "run git lfs pull" in refused(tmp_path / name)


def test_columns_inside_others_and_shapes_of_conversations(tmp_path):
    path = tmp_path / "a.jsonl"
    jsonl(path, [{"translation": {"en": "hi", "de": "hallo"}}])
    assert read(path, column="translation.en") == ["hi"]
    told = [{"from": w, "value": w} for w in ("system", "human", "gpt")]
    jsonl(path, [{"conversations": told}])
    chat = [
        {"role": "system", "content": "system"},
        {"role": "user", "content": "human"},
        {"role": "assistant", "content": "gpt"},
    ]
    assert read(path, column="conversations") == [chat]
    parts = {"role": ["user"], "content": ["human"]}
    jsonl(path, [{"messages": parts}])
    assert read(path, column="messages") == [chat[1:2]]
    jsonl(path, [{"conversations": [{"from": "wizard", "value": "x"}]}])
    assert "line 1 has a message from wizard" in refused(path, column="conversations")


# What cannot be read


def test_broken_rows_are_refused_by_line_or_skipped_and_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    good = [json.dumps({"text": text}).encode() for text in TEXTS]
    bad = [
        b'{"text": "cut',
        b'{"body": "x"}',
        b'{"text": 7}',
        b'{"text": "\xff"}',
        b"[]",
        b'{"text": "\\ud800"}',
    ]
    for n, line in enumerate(bad):
        path.write_bytes(b"\n".join([good[0], b"", line, *good[1:]]))
        assert f"{path}, line 3" in caught(path)
        found = read(path, on_error="skip")
        assert [d for d in found if not isinstance(d, Unreadable)] == TEXTS, n
        (odd,) = (d for d in found if isinstance(d, Unreadable))
        assert f"{path}, line 3" in odd.reason
    path.write_bytes(b"\n".join(bad))
    assert "of 6 rows none is readable" in refused(path, on_error="skip")


def caught(path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as found:
        read(path, **options)
    return str(found.value)


def test_undecodable_texts_and_rows_of_tables_are_skipped_one_by_one(tmp_path):
    lines = tmp_path / "a.txt"
    lines.write_bytes(b"one\ntw\xff\nthree\n")
    assert "a.txt, line 2 is not readable as text in UTF-8" in caught(
        lines, one_document_a_line=True
    )
    kept = read(lines, one_document_a_line=True, on_error="skip")
    assert [type(d) for d in kept] == [str, Unreadable, str]
    table = tmp_path / "a.csv"
    table.write_text('text,n\none,1\ntwo,2,3\n"three\n",3\n')
    assert "a.csv, line 3 has 3 values, and the first line 2" in caught(table)
    kept = read(table, on_error="skip")
    assert [kept[0], type(kept[1]), kept[2]] == ["one", Unreadable, "three\n"]
    table.write_text('text,n\none,1\n"two,2\nthree,3\n')
    # All that is behind it is lost, and that is no row.
    assert "unexpected end" in caught(table, on_error="skip")
    table.write_text("body,n\none,1\n")
    assert "data.column=text is not in" in refused(table, on_error="skip")


def test_skipped_rows_are_counted_in_the_cache_and_said(tmp_path, tiny_model, capsys):
    text = tmp_path / "notes.jsonl"
    jsonl(text, [{"text": t} for t in sentences(60, words=30)])
    whole = text.read_bytes()
    at = whole.index(b"\n") + 1
    text.write_bytes(whole[:at] + b"{broken\n" + whole[at:])
    given = harvest_settings(tmp_path / "run", tiny_model, text)
    given |= {"n_tokens": 512, "context_size": 16, "text_workers": 0}
    with pytest.raises(UserError, match=r"notes\.jsonl, line 2 is not readable as json"):
        sae.harvest(**given | {"data": DataConfig(name=str(text))})
    skipping = DataConfig(name=str(text), on_error="skip")
    sae.harvest(**given | {"data": skipping, "run": str(tmp_path / "skip")})
    data = open_cache(tmp_path / "skip/cache.zarr").attributes["data"]
    assert data["documents"]["unreadable"] == 1
    assert data["on_error"] == "skip"
    said = capsys.readouterr().err
    assert f"; 1 unreadable were passed over, first {text}, line 2 is not readable" in said
    text.write_bytes(whole)
    sae.harvest(**given | {"data": DataConfig(name=str(text)), "run": str(tmp_path / "good")})
    good, skip = (open_cache(tmp_path / n / "cache.zarr") for n in ("good", "skip"))
    np.testing.assert_array_equal(good.tokens[:], skip.tokens[:])
    assert "unreadable" not in good.attributes["data"]["documents"]


# Tokens


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_folder)


def test_tokens_of_others_are_taken_as_they_are(tmp_path, tiny_model, tokenizer):
    texts = sentences(80, words=30)
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    parquet(tmp_path / "ids.parquet", input_ids=[[*one, 0, 0] for one in ids])
    padded = [[1] * len(one) + [0, 0] for one in ids]
    parquet(
        tmp_path / "masked.parquet",
        input_ids=[[*one, 0, 0] for one in ids],
        attention_mask=padded,
    )
    jsonl(tmp_path / "text.jsonl", [{"text": text} for text in texts])
    found = list(tokenized(documents(tokens(tmp_path / "masked.parquet")), tokenizer, 0))
    assert [one.tolist() for _, one in found] == ids
    assert len({digest for digest, _ in found}) == len(set(map(tuple, ids)))
    raw = list(tokenized(documents(tokens(tmp_path / "ids.parquet")), tokenizer, 0))
    assert [one.tolist() for _, one in raw] == [[*one, 0, 0] for one in ids]
    given = harvest_settings(tmp_path / "run", tiny_model, tmp_path)
    given |= {"n_tokens": 512, "context_size": 16, "text_workers": 0}
    sae.harvest(**given | {"data": tokens(tmp_path / "masked.parquet")})
    cache = open_cache(tmp_path / "run/cache.zarr")
    # The documents lie in the cache as they came, behind the token that begins one.
    rows, owners = cache.tokens[:].reshape(-1), cache.documents[:].reshape(-1)
    first = rows[owners == 0]
    assert first[:1].tolist() == [cache.bos_token_id]
    assert first[first != cache.bos_token_id].tolist() in ids


def tokens(path: Path) -> DataConfig:
    return DataConfig(name=str(path), column="input_ids")


@pytest.mark.parametrize("wrong", [-1, 10**6, 2**40])
def test_tokens_of_another_tokenizer_are_refused_before_a_model_is_loaded(
    tmp_path, tokenizer, wrong
):
    parquet(tmp_path / "ids.parquet", input_ids=[[1, wrong]])
    with pytest.raises(UserError, match="the text was tokenised for another model"):
        check_text(tokens(tmp_path / "ids.parquet"), lambda: tokenizer)
    parquet(tmp_path / "other.parquet", labels=[[1, 2]])
    said = refused(tmp_path / "other.parquet", column="labels")
    assert "or of tokens (input_ids or tokens)" in said


def test_a_mark_that_a_document_brings_itself_is_not_doubled():
    from sae.text.packing import Marks, TextPlan

    ids = np.array([5, 1, 2, 9], np.int32)
    bare = np.array([1, 2], np.int32)
    both = [(0, ids), (2**64 - 1, bare)]
    blocks = list(
        pack(both, TextPlan(1, 1, 4), Marks((5,), (9,)), TextCounts(), held_out_fraction=0.5)
    )
    assert [block.tokens.tolist() for block in blocks] == [[[5, 1, 2, 9]], [[5, 1, 2, 9]]]
