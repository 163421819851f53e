"""Documents in a fixed order, and rows that hold them whole, each on one side of the split."""

import csv
import gzip
import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from support.world import sentences

from sae.base.errors import UserError
from sae.text.embedded import EMBEDDED_TEXTS, miscellany
from sae.text.packing import Marks, TextCounts, TextPlan, document_digest, is_held_out, pack
from sae.text.source import DataConfig, check_source, documents
from sae.text.tokens import tokenized

FRACTION = 0.25
TEXTS = ["One line.", 'Two\nlines, a comma and "quotes"', "Größe: 3 µm — 水 🙂", "  spaced  "]


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_folder)


def random_documents(seed: int, n: int = 150) -> list[str]:
    """Texts of one to eighty words, some with rare characters, some repeated."""
    draw = random.Random(seed)
    texts = [
        sentence + draw.choice(["", "\n\n", " 水🙂", " é\t"])
        for words in (1, 5, 80)
        for sentence in sentences(n // 3, seed=seed * 10 + words, words=words)
    ]
    texts += draw.choices(texts, k=n // 5)
    draw.shuffle(texts)
    return texts


@dataclass
class Packed:
    """All rows of a text, as they end up in a cache."""

    tokens: np.ndarray
    documents: np.ndarray
    held_out: np.ndarray
    document_digests: np.ndarray
    counts: dict[str, int]


def packed(
    texts: Iterable[str],
    tokenizer: Any,
    width: int,
    bos: int | None = 0,
    n_tokens: int = 10**6,
    fraction: float = FRACTION,
    **others: Any,
) -> Packed:
    counts = TextCounts()
    blocks = list(
        pack(
            tokenized(texts, tokenizer, 0),
            TextPlan.of(n_tokens, width, fraction),
            others.pop("marks", Marks(() if bos is None else (bos,))),
            counts,
            held_out_fraction=fraction,
            **others,
        )
    )
    blocks.sort(key=lambda block: block.held_out)
    return Packed(
        np.concatenate([b.tokens for b in blocks]),
        np.concatenate([b.documents for b in blocks]),
        np.concatenate([np.full(len(b.tokens), b.held_out) for b in blocks]),
        counts.digests(),
        counts.summary(),
    )


def belongs_held_out(text: str) -> bool:
    """The split's rule, computed anew."""
    first = hashlib.sha256(text.encode()).digest()[:8]
    return int.from_bytes(first, "big") / 2**64 < FRACTION


def read_back(text: Packed, tokenizer: Any, bos: int | None) -> Iterator[tuple[bool, str]]:
    """Every document in order of its rows, as its side and what its tokens decode to."""
    for held_out in (False, True):
        tokens = text.tokens[text.held_out == held_out].reshape(-1)
        owners = text.documents[text.held_out == held_out].reshape(-1)
        assert (np.diff(owners) >= 0).all()
        for document in dict.fromkeys(owners.tolist()):
            ids = tokens[owners == document]
            yield held_out, tokenizer.decode(ids[ids != bos] if bos is not None else ids)


def cases() -> list[tuple[int, int, int | None]]:
    draw = random.Random(0)
    return [(seed, draw.randint(2, 70), draw.choice([0, 0, 1, None])) for seed in range(12)]


@pytest.mark.parametrize(("seed", "width", "bos"), cases())
def test_rows_hold_every_document_whole_in_order_and_on_its_side(tokenizer, seed, width, bos):
    texts = random_documents(seed)
    text = packed(texts, tokenizer, width, bos, n_tokens=10**6)
    # The text ends long before the rows do, so all of it is there up to the last row.
    for held_out in (False, True):
        expected = [t for t in dict.fromkeys(texts) if belongs_held_out(t) == held_out]
        found = [t for side, t in read_back(text, tokenizer, bos) if side == held_out]
        joined, whole = "".join(found), "".join(expected)
        # A character that the last row cuts in two decodes to �.
        assert whole.startswith(joined.rstrip("�"))
        assert found[:-1] == expected[: len(found) - 1]
        lost = len(tokenizer(whole[len(joined) :])["input_ids"])
        beginnings = len(expected) - len(found) + 2
        assert lost <= width + beginnings


@pytest.mark.parametrize(("seed", "width", "bos"), cases())
def test_no_document_is_on_both_sides_of_the_split(tokenizer, seed, width, bos):
    text = packed(random_documents(seed), tokenizer, width, bos, n_tokens=4000)
    train = set(text.documents[~text.held_out].flat)
    held_out = set(text.documents[text.held_out].flat)
    assert train
    assert held_out
    assert not train & held_out
    for document, digest in enumerate(text.document_digests.tolist()):
        side = digest / 2**64 < FRACTION
        assert (document in held_out) <= side
        assert (document in train) <= (not side)


@pytest.mark.parametrize("bos", [0, 1])
@pytest.mark.parametrize("width", [2, 3, 17, 64])
def test_every_row_and_every_document_starts_with_the_token(tokenizer, bos, width):
    text = packed(random_documents(5), tokenizer, width, bos, n_tokens=6000)
    assert (text.tokens[:, 0] == bos).all()
    begins = np.diff(text.documents, axis=1) != 0
    assert begins.any() or width == 2
    # Inside a row it stands where a document begins, and nowhere else.
    np.testing.assert_array_equal(text.tokens[:, 1:] == bos, begins)


def test_documents_and_digests_name_the_texts(tokenizer):
    texts = random_documents(7)
    text = packed(texts, tokenizer, 32, n_tokens=3000)
    by_digest = {document_digest(t): t for t in texts}
    for row, owners in zip(text.tokens, text.documents, strict=True):
        for owner in set(owners.tolist()):
            words = tokenizer.decode([t for t in row[owners == owner] if t != 0])
            assert words.strip("�") in by_digest[int(text.document_digests[owner])]


def test_a_document_that_comes_twice_is_there_once(tokenizer):
    texts = sentences(60, seed=3)
    once, thrice = (packed(t, tokenizer, 16) for t in (texts, [*texts, *texts, *texts[::-1]]))
    np.testing.assert_array_equal(once.tokens, thrice.tokens)
    np.testing.assert_array_equal(once.document_digests, thrice.document_digests)
    assert len(set(once.document_digests.tolist())) == len(once.document_digests) == 60


@pytest.mark.parametrize("width", [7, 32])
def test_all_rows_are_full_and_as_many_as_asked_for(tokenizer, width):
    text = packed(random_documents(2), tokenizer, width, n_tokens=40 * width)
    assert text.tokens.shape == text.documents.shape == (40, width)
    assert text.held_out.tolist() == [False] * 30 + [True] * 10
    assert (text.tokens >= 0).all()
    assert (text.documents >= 0).all()


def test_the_split_of_a_text_does_not_depend_on_its_company(tokenizer):
    texts = sentences(80, seed=4)
    forward, backward = (packed(t, tokenizer, 16) for t in (texts, texts[::-1]))

    def held_out(text: Packed) -> set[int]:
        return set(text.document_digests[np.unique(text.documents[text.held_out])].tolist())

    assert held_out(forward) | held_out(backward) <= {
        document_digest(t) for t in texts if belongs_held_out(t)
    }


@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.99])
def test_both_sides_get_a_row_at_any_fraction(tokenizer, fraction):
    texts = list(sentences(3000, seed=6, words=6))
    text = packed(texts, tokenizer, 8, n_tokens=16, fraction=fraction)
    assert text.held_out.tolist() == [False, True]


def test_about_the_asked_share_of_texts_is_held_out():
    digests = [document_digest(str(i)) for i in range(4000)]
    assert abs(np.mean([is_held_out(d, 0.1) for d in digests]) - 0.1) < 0.02


def test_reading_ends_once_the_rows_are_full(tokenizer):
    asked = []

    def endless() -> Iterator[str]:
        for i, text in enumerate(sentences(100_000, seed=8, words=2)):
            asked.append(i)
            yield text

    packed(endless(), tokenizer, 16, n_tokens=320)
    assert len(asked) < 2000


@pytest.mark.parametrize("texts", [[], ["tiny"], ["", ""]])
def test_a_text_that_fills_no_row_is_refused_with_advice(tokenizer, texts):
    with pytest.raises(UserError, match=r"too short.*give more text or a smaller context_size"):
        packed(texts, tokenizer, 16)


def write_jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps({"n": 1, "text": t}) + "\n" for t in TEXTS))


def write_json(path: Path) -> None:
    path.write_text(json.dumps([{"text": t} for t in TEXTS]))


def write_csv(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["id", "text"], *([i, t] for i, t in enumerate(TEXTS))])


def write_parquet(path: Path) -> None:
    pq.write_table(pa.table({"text": TEXTS}), path)


def write_gz(path: Path) -> None:
    write_jsonl(path)
    path.write_bytes(gzip.compress(path.read_bytes()))


def write_zst(path: Path) -> None:
    write_jsonl(path)
    path.write_bytes(zstandard.compress(path.read_bytes()))


WRITERS: dict[str, Callable[[Path], None]] = {
    "a.jsonl": write_jsonl,
    "a.json": write_json,
    "a.csv": write_csv,
    "a.parquet": write_parquet,
    "a.jsonl.gz": write_gz,
    "a.jsonl.zst": write_zst,
}


def texts_of(path: Path, **others: Any) -> list[str]:
    return list(documents(DataConfig(name=str(path), **others)))


@pytest.mark.parametrize("name", WRITERS)
def test_a_local_file_gives_its_documents_in_order(tmp_path, name):
    WRITERS[name](tmp_path / name)
    assert texts_of(tmp_path / name) == TEXTS
    assert texts_of(tmp_path) == TEXTS


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.txt.gz"])
def test_a_text_file_is_one_document(tmp_path, name):
    content = "First paragraph.\n\nSecond paragraph,\nof two lines: 水.\n"
    raw = content.encode()
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    assert texts_of(tmp_path / name) == [content]


def test_a_folder_is_read_file_by_file_in_the_order_of_names(tmp_path):
    for name in ("b/2.txt", "a/z/3.txt", "a/1.txt", "c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    write_jsonl(tmp_path / "b" / "1.jsonl")
    (tmp_path / "a" / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "a" / "empty.txt").write_bytes(b"")
    expected = ["a/1.txt", "a/z/3.txt", *TEXTS, "b/2.txt", "c.txt"]
    assert texts_of(tmp_path) == expected
    assert texts_of(tmp_path) == expected


def test_another_column_is_read_when_it_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "inside", "text": "not this"}\n')
    assert texts_of(tmp_path, column="body") == ["inside"]
    with pytest.raises(
        UserError, match=r"data\.column=content is not in .*a\.jsonl, line 1; it has body"
    ):
        texts_of(tmp_path, column="content")


def test_rows_without_text_are_left_out_and_counted(tmp_path, tokenizer):
    rows = [{"text": t} for t in sentences(20)] + [{"text": ""}, {"text": None}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = packed(documents(DataConfig(name=str(tmp_path))), tokenizer, 16)
    assert (found.counts["used"], found.counts["empty"]) == (20, 2)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("latin.txt", "Grö".encode("latin-1") * 5),
        ("broken.jsonl", b'{"text": "one"}\n{"text": \n'),
        ("broken.json", b"[{"),
        ("broken.parquet", b"PAR1 and no more"),
        ("broken.jsonl.gz", gzip.compress(b'{"text": "one"}\n' * 99, mtime=0)[:-20]),
        ("broken.jsonl.zst", zstandard.compress(b'{"text": "one"}\n' * 99)[:-9]),
        ("no.txt.gz", b"not compressed at all"),
        ("no.jsonl.zst", b"not compressed at all"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_that_cannot_be_read_is_named_in_one_sentence(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}(, line \d)? is not readable as") as caught:
        texts_of(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_without_text_is_refused_before_anything_is_loaded(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match=r"holds no text; give files ending in \.txt"):
        check_source(DataConfig(name=str(tmp_path)))


def test_a_hub_data_set_offline_is_one_sentence():
    for name in ("nobody/such-text", "miscelany"):
        with pytest.raises(UserError, match="could not be downloaded from the Hub") as caught:
            next(documents(DataConfig(name=name)))
        assert "\n" not in str(caught.value)
    assert "nearest: miscellany" in str(caught.value)


def test_impossible_settings_are_refused():
    for fraction in (0, 1, -0.1):
        with pytest.raises(UserError, match=r"data\.held_out_fraction=.* is impossible"):
            DataConfig(held_out_fraction=fraction)
    with pytest.raises(UserError, match=r"data\.name is empty"):
        DataConfig(name="")


def test_the_embedded_miscellany_takes_turns_between_files_and_drops_repeats(
    tmp_path, monkeypatch
):
    folder = tmp_path / "sae_probes" / "data" / "cleaned_data"
    folder.mkdir(parents=True)
    long, short = sentences(6, seed=1, words=60), sentences(30, seed=2, words=12)
    for name, texts in (("a", long), ("b", [*short, *long[:2], "tiny", short[0]])):
        lines = "prompt\n" + "".join(f'"{t}"\n' for t in texts)
        (folder / f"{name}.csv.zst").write_bytes(zstandard.compress(lines.encode()))
    monkeypatch.setattr("sae.text.embedded.package_folder", lambda requirement: tmp_path)
    found = list(miscellany())
    assert sorted(found) == sorted([*long, *short])
    assert found == list(documents(DataConfig(name="miscellany")))
    given = {True: 0, False: 0}
    for text in found[:20]:
        given[text in long] += len(text)
        assert abs(given[True] - given[False]) <= 2 * max(map(len, long))
    assert set(EMBEDDED_TEXTS) == {"miscellany", "factbook"}
