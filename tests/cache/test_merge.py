"""Caches of chosen sequences of others: merged ones and samples."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from support.files import reworded

from sae.base.errors import UserError
from sae.cache.create import create_cache
from sae.cache.layout import ActivationCache, open_cache
from sae.cache.merge import copy_sequences, merge_caches, random_sequences
from sae.cache.store import only_writer
from sae.cache.text_writer import write_text
from sae.cache.writer import CacheWriter
from sae.models.record import ModelRecord
from sae.models.site import Site
from sae.rows.shuffle import select_rows
from sae.text.packing import RowBlock, TextPlan

CONTEXT = 8
HOOKS = {"h": 3, "out": 2}
DTYPES = ["float16", "bfloat16", "float32", "int8"]
MODEL = ModelRecord("tiny", "tiny", "w").to_json()


def digest_of(document: int, held_out: bool) -> int:
    """A digest on the side that `is_held_out` gives it for a tenth held out."""
    return document + 1 if held_out else (1 << 63) + document


def little(
    path: Path,
    seed: int,
    *,
    n_training: int = 70,
    n_held_out: int = 10,
    first_document: int | None = None,
    dtype: str = "float16",
    context: int = CONTEXT,
    hooks: dict[str, int] = HOOKS,
    compression: str = "none",
    **attributes: Any,
) -> ActivationCache:
    """A cache of three chunks; each document fills one row and a half, the rest is padding."""
    draw = np.random.default_rng(seed)
    first = 1000 * seed if first_document is None else first_document
    plan = TextPlan(n_training, n_held_out, context)
    n = plan.n_sequences
    tokens = draw.integers(1, 90, (n, context), dtype=np.int32)
    tokens[:, 0] = 0
    owners = [np.arange(many, dtype=np.int32) * 2 // 3 for many in (n_training, n_held_out)]
    owners[1] += owners[0][-1] + 1
    documents = np.repeat(np.concatenate(owners), context).reshape(n, context)
    documents[::5, context // 2 :] = -1
    n_trained = documents[:n_training].max() + 1
    digests = [digest_of(first + d, d >= n_trained) for d in range(documents.max() + 1)]
    about = {
        "digest": f"{seed} {dtype}",
        "model": MODEL,
        "tokenizer_digest": "t",
        "data": {"name": f"text {seed}", "held_out_fraction": 0.1},
        "special_token_ids": [0],
        "bos_token_id": 0,
        "code_version": "1",
    }
    writer = create_cache(
        path,
        [Site(name, name, "output", width) for name, width in hooks.items()],
        plan,
        dtype=dtype,
        compression=compression,
        attributes=about | attributes,
    )
    cut = slice(n_training), slice(n_training, n)
    blocks = [RowBlock(i == 1, tokens[rows], documents[rows]) for i, rows in enumerate(cut)]
    write_text(writer, blocks, lambda: np.array(digests, dtype=np.uint64))
    generator = torch.Generator().manual_seed(seed)
    for chunk in writer.chunks():
        shape = (chunk.stop - chunk.start, context)
        rows = {h: torch.randn(*shape, d, generator=generator) for h, d in hooks.items()}
        writer.write(chunk, rows)
    writer.finish()
    return open_cache(path)


def arrays(cache: ActivationCache, *names: str) -> list[np.ndarray]:
    group: Any = zarr.open_group(cache.location, mode="r")
    return [group[name][...] for name in names]


def stored_names(dtype: str) -> list[str]:
    kinds = ["activations", "norms", *(["scales"] if dtype == "int8" else [])]
    return ["tokens", *(f"{kind}/{hook}" for kind in kinds for hook in HOOKS)]


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[ActivationCache]:
    """Three caches that share nothing, of lengths that no chunk divides; not to be changed."""
    folder = tmp_path_factory.mktemp("sources")
    return [
        little(folder / "one.zarr", 1),
        little(folder / "two.zarr", 2, n_training=33, n_held_out=4),
        little(folder / "three.zarr", 3, n_training=1, n_held_out=65),
    ]


def locations(caches: list[ActivationCache]) -> list[str]:
    return [cache.location for cache in caches]


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_merge_holds_what_its_sources_store_bit_for_bit_training_first(
    tmp_path, dtype, compression
):
    settings = {"dtype": dtype, "compression": compression}
    one = little(tmp_path / "one.zarr", 1, **settings)
    two = little(tmp_path / "two.zarr", 2, n_training=33, n_held_out=4, **settings)
    merged = merge_caches(tmp_path / "out.zarr", [one.location, two.location])
    names = stored_names(dtype)
    for name, a, b, found in zip(
        names, *(arrays(c, *names) for c in (one, two, merged)), strict=True
    ):
        expected = np.concatenate([a[:70], b[:33], a[70:], b[33:]])
        assert found.dtype == expected.dtype, name
        assert found.tobytes() == expected.tobytes(), name
    assert merged.held_out.tolist() == [False] * 103 + [True] * 14
    assert merged.attributes["compression"] == compression


def test_the_statistics_of_a_merge_are_those_of_all_training_rows(sources, tmp_path):
    merged = merge_caches(tmp_path / "out.zarr", locations(sources))
    rows = []
    for cache in sources:
        x, tokens, documents = arrays(cache, "activations/h", "tokens", "documents")
        keep = (tokens != 0) & (documents >= 0) & ~cache.held_out[:, None]
        rows.append(x.astype(np.float64)[keep])
    expected = np.concatenate(rows)
    found = merged.statistics("h")
    np.testing.assert_allclose(found["mean"], expected.mean(0), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found["variance"], expected.var(0), rtol=1e-10)
    selection = select_rows(merged, "h", held_out=False, max_norm_multiple=None)
    assert selection.n_rows == len(expected)
    assert merged.attributes["hooks"]["h"]["training_rows"]["text"] == len(expected)


def owners(cache: ActivationCache) -> np.ndarray:
    """The digest of each token's document, (sequence, position); 0 for padding."""
    documents = cache.documents
    return np.where(documents >= 0, cache.document_digests[documents], 0)


def test_every_token_of_a_merge_still_belongs_to_its_document(sources, tmp_path):
    merged = merge_caches(tmp_path / "out.zarr", locations(sources))
    expected = [owners(c)[c.held_out == side] for side in (False, True) for c in sources]
    assert np.array_equal(owners(merged), np.concatenate(expected))
    digests = np.concatenate([c.document_digests for c in sources])
    assert np.array_equal(merged.document_digests, digests)
    assert merged.attributes["data"]["documents"] == {"used": len(digests), "shared": 0}
    assert (merged.documents == -1).sum() == sum((c.documents == -1).sum() for c in sources)


def test_a_merge_keeps_what_is_known_of_its_sources(sources, tmp_path):
    about = merge_caches(tmp_path / "out.zarr", locations(sources)).attributes
    assert about["source"] == "merge"
    assert about["model"] == MODEL
    assert about["data"]["name"] == "text 1 + text 2 + text 3"
    assert about["data"]["held_out_fraction"] == 0.1
    parts = [(p["digest"], p["sequences"], p["data"]["name"]) for p in about["parts"]]
    assert parts == [
        (c.digest, c.n_sequences, f"text {i}") for i, c in enumerate(sources, start=1)
    ]


@pytest.mark.slow
def test_a_merge_of_merges_equals_the_merge_of_all(sources, tmp_path):
    pair = merge_caches(tmp_path / "pair.zarr", locations(sources[:2]))
    nested = merge_caches(tmp_path / "nested.zarr", [pair.location, sources[2].location])
    flat = merge_caches(tmp_path / "flat.zarr", locations(sources))
    names = [*stored_names("float16"), "documents", "document_digests", "statistics/h/mean"]
    for a, b in zip(arrays(nested, *names), arrays(flat, *names), strict=True):
        assert np.array_equal(a, b)
    inner = nested.attributes["parts"][0]["parts"]
    assert [part["digest"] for part in inner] == [c.digest for c in sources[:2]]


def test_documents_that_two_caches_share_are_counted(tmp_path):
    one = little(tmp_path / "one.zarr", 1, first_document=0)
    two = little(tmp_path / "two.zarr", 2, first_document=20)
    n_trained = len(np.unique(one.document_digests[one.document_digests >= 1 << 63]))
    merged = merge_caches(tmp_path / "out.zarr", locations([one, two]))
    both = np.intersect1d(one.document_digests, two.document_digests)
    assert n_trained - 20 <= len(both) < len(one.document_digests)
    assert merged.attributes["data"]["documents"] == {
        "used": len(one.document_digests) + len(two.document_digests),
        "shared": len(both),
    }


def test_a_document_that_comes_twice_in_one_cache_alone_is_not_shared(tmp_path, monkeypatch):
    one = little(tmp_path / "one.zarr", 1)
    # As an import has it, whose documents are sequences.
    monkeypatch.setitem(
        globals(), "digest_of", lambda d, held_out: (0 if held_out else 1 << 63) + 9000 + d // 2
    )
    two = little(tmp_path / "two.zarr", 2)
    assert len(np.unique(two.document_digests)) < len(two.document_digests)
    merged = merge_caches(tmp_path / "out.zarr", locations([one, two]))
    assert merged.attributes["data"]["documents"]["shared"] == 0


def test_a_document_on_both_sides_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    one = little(tmp_path / "one.zarr", 1, first_document=0)
    # As if an older version had split by another rule.
    monkeypatch.setitem(globals(), "digest_of", lambda document, _: (1 << 63) + document - 5)
    two = little(tmp_path / "two.zarr", 2, first_document=0)
    with pytest.raises(
        UserError,
        match=r"5 documents belong to the training text in one of .* and to the held-out",
    ):
        merge_caches(tmp_path / "out.zarr", locations([one, two]))
    assert not (tmp_path / "out.zarr").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "settings", "values"),
    [
        ("model's weights", {"model": MODEL | {"weight_digest": "other"}}, "w and other"),
        ("tokenizer", {"tokenizer_digest": "u"}, "t and u"),
        ("special tokens", {"special_token_ids": [0, 1]}, r"\[0\] and \[0, 1\]"),
        ("context_size", {"context": 9}, "8 and 9"),
        ("dtype", {"dtype": "int8"}, "float16 and int8"),
        ("hooks", {"hooks": {"h": 3}}, r"output of out, width 2\) and h [^,]*, width 3\)$"),
        ("hooks", {"hooks": {"h": 3, "out": 4}}, r"width 2\) and .*width 4\)$"),
        (
            "held_out_fraction",
            {"data": {"name": "x", "held_out_fraction": 0.2}},
            r"0\.1 and 0\.2",
        ),
    ],
)
def test_caches_that_do_not_belong_together_are_refused_with_both_values(
    sources, tmp_path, what, settings, values
):
    other = little(tmp_path / "other.zarr", 9, **settings)
    with pytest.raises(UserError, match=f"differ in their {what}: .*{values}"):
        merge_caches(tmp_path / "out.zarr", [sources[0].location, other.location])
    assert not (tmp_path / "out.zarr").exists()


@pytest.mark.slow
def test_unknown_weights_are_the_same_only_under_one_name(tmp_path):
    unknown = ModelRecord("a", "a").to_json()
    one = little(tmp_path / "one.zarr", 1, model=unknown)
    two = little(tmp_path / "two.zarr", 2, model=unknown | {"hub_id": "b"})
    three = little(tmp_path / "three.zarr", 3, model=unknown)
    with pytest.raises(UserError, match=r"weights: unknown \(a\) and unknown \(b\)"):
        merge_caches(tmp_path / "out.zarr", locations([one, two]))
    assert merge_caches(tmp_path / "out.zarr", locations([one, three])).n_sequences == 160


@pytest.mark.slow
def test_a_cache_from_before_sites_were_recorded_is_of_one_kind_with_one_of_today(tmp_path):
    one, two = little(tmp_path / "one.zarr", 1), little(tmp_path / "two.zarr", 2)
    hooks = two.attributes["hooks"]
    for hook in hooks.values():
        hook["d_in"] = hook.pop("width")
        del hook["in_stream"]
    reworded(Path(two.location), hooks=hooks)
    for order in ([one.location, two.location], [two.location, one.location]):
        merged = merge_caches(tmp_path / "out.zarr", order)
        assert merged.sites == one.sites
        shutil.rmtree(tmp_path / "out.zarr")


def test_the_order_in_which_hooks_were_named_does_not_matter(sources, tmp_path):
    turned = little(tmp_path / "t.zarr", 9, hooks={"out": 2, "h": 3})
    merged = merge_caches(tmp_path / "out.zarr", [sources[0].location, turned.location])
    assert merged.hook_names == ["h", "out"]
    (a,), (b,), (found,) = (arrays(c, "activations/out") for c in (sources[0], turned, merged))
    assert np.array_equal(found, np.concatenate([a[:70], b[:70], a[70:], b[70:]]))


def test_one_cache_given_twice_is_refused(sources, tmp_path):
    shutil.copytree(sources[0].location, tmp_path / "copy.zarr")
    for again in (sources[0].location, str(tmp_path / "copy.zarr")):
        with pytest.raises(UserError, match="is the same cache as"):
            merge_caches(tmp_path / "out.zarr", [*locations(sources), again])
    with pytest.raises(UserError, match="at least two caches"):
        merge_caches(tmp_path / "out.zarr", [sources[0].location])


def test_a_merge_into_one_of_its_sources_leaves_it_as_it_is(sources, tmp_path):
    folder = tmp_path / "copy.zarr"
    shutil.copytree(sources[0].location, folder)
    before = tree(folder)
    with pytest.raises(UserError, match=r"copy\.zarr holds a cache of another"):
        merge_caches(folder, [folder, sources[1].location])
    assert tree(folder) == before


def test_a_merge_that_another_process_is_writing_is_refused(sources, tmp_path):
    with (
        only_writer(tmp_path / "out.zarr"),
        pytest.raises(UserError, match="is writing to this cache"),
    ):
        merge_caches(tmp_path / "out.zarr", locations(sources))


@pytest.mark.slow
def test_a_merge_that_ended_early_goes_on_to_the_same_bytes(sources, tmp_path, monkeypatch):
    merge_caches(tmp_path / "whole.zarr", locations(sources))
    out = tmp_path / "out.zarr"
    original = CacheWriter.write_stored
    for n in range(3):
        written = []

        def dying(self, chunk, found, n=n, written=written):
            if len(written) == n:
                raise KeyboardInterrupt
            written.append(chunk)
            original(self, chunk, found)

        monkeypatch.setattr(CacheWriter, "write_stored", dying)
        with pytest.raises(KeyboardInterrupt):
            merge_caches(out, locations(sources))
        assert not CacheWriter(out).complete
        # What a process leaves that is killed inside a write.
        (out / "norms" / "h" / f"c.{n}.0123.partial").write_bytes(b"half")
    monkeypatch.setattr(CacheWriter, "write_stored", original)
    merge_caches(out, locations(sources))
    assert tree(out) == tree(tmp_path / "whole.zarr")


@pytest.mark.slow
def test_a_merge_that_is_there_is_reused_and_damage_to_it_repaired(sources, tmp_path, capsys):
    out = tmp_path / "out.zarr"
    merge_caches(out, locations(sources))
    whole = tree(out)
    times = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    merge_caches(out, locations(sources))
    assert "is finished already and is reused" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == times
    for name in whole:
        if "/c" in name:
            raw = bytearray(whole[name])
            raw[len(raw) // 2] ^= 4
            (out / name).write_bytes(raw)
            merge_caches(out, locations(sources))
            assert tree(out) == whole, name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["activations/h", "tokens", "documents"])
@pytest.mark.parametrize("lost", [False, True])
def test_a_damaged_source_is_refused_and_named(tmp_path, name, lost):
    one, two = (little(tmp_path / f"{i}.zarr", i) for i in (1, 2))
    file = next((tmp_path / "2.zarr" / name).glob("c.0*"))
    raw = bytearray(file.read_bytes())
    raw[3] ^= 1
    file.unlink()
    if not lost:
        file.write_bytes(raw)
    with pytest.raises(UserError, match=rf"2\.zarr: .*{name} .*(damaged|missing)"):
        merge_caches(tmp_path / "out.zarr", locations([one, two]))


def test_no_whole_array_of_tokens_or_norms_is_ever_held(sources, tmp_path, monkeypatch):
    for name in ("tokens", "documents"):
        monkeypatch.setattr(ActivationCache, name, property(lambda _: pytest.fail("whole")))
    monkeypatch.setattr(ActivationCache, "norms", lambda *_: pytest.fail("whole"))
    merge_caches(tmp_path / "out.zarr", locations(sources))
    chosen = random_sequences(sources[0], 20, 0)
    copy_sequences(tmp_path / "sample.zarr", [(sources[0], chosen)], source="sample")


@pytest.mark.parametrize("n", [2, 7, 40, 80])
def test_a_sample_holds_distinct_sequences_of_both_sides_in_their_share(sources, n):
    cache = sources[0]
    chosen = random_sequences(cache, n, seed=4)
    assert len(set(chosen.tolist())) == n
    assert chosen.tolist() == sorted(chosen)
    assert cache.held_out[chosen].sum() == max(1, round(n * 10 / 80))
    assert np.array_equal(chosen, random_sequences(cache, n, seed=4))
    if n < 80:
        assert not np.array_equal(chosen, random_sequences(cache, n, seed=5))


def test_samples_reach_every_sequence(sources):
    seen = Counter(
        i for seed in range(200) for i in random_sequences(sources[0], 8, seed).tolist()
    )
    assert len(seen) == 80
    assert max(seen.values()) < 50


@pytest.mark.parametrize("n", [0, 81])
def test_a_sample_of_more_than_there_is_or_of_nothing_is_refused(sources, n):
    with pytest.raises(UserError, match=f"n={n}"):
        random_sequences(sources[0], n, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sample_keeps_its_rows_bit_for_bit_and_only_their_documents(tmp_path, dtype):
    cache = little(tmp_path / "one.zarr", 1, dtype=dtype)
    chosen = random_sequences(cache, 37, seed=0)
    sample = copy_sequences(tmp_path / "out.zarr", [(cache, chosen)], source="sample")
    names = stored_names(dtype)
    for a, found in zip(arrays(cache, *names), arrays(sample, *names), strict=True):
        assert found.tobytes() == a[chosen].tobytes()
    assert np.array_equal(owners(sample), owners(cache)[chosen])
    used = np.unique(owners(cache)[chosen])
    assert np.array_equal(np.unique(sample.document_digests), used[used > 0])
    assert len(used) < len(cache.document_digests)
    (part,) = sample.attributes["parts"]
    assert (part["sequences"], part["of"]) == (37, 80)


def test_other_sequences_are_another_cache(sources, tmp_path):
    cache, out = sources[0], tmp_path / "out.zarr"
    copy_sequences(out, [(cache, random_sequences(cache, 20, 0))], source="sample")
    with pytest.raises(UserError, match="holds a cache of another"):
        copy_sequences(out, [(cache, random_sequences(cache, 20, 1))], source="sample")


def test_a_selection_without_one_side_is_refused(sources, tmp_path):
    with pytest.raises(UserError, match="3 sequences for training and 0 held out"):
        copy_sequences(tmp_path / "o.zarr", [(sources[0], np.arange(3))], source="sample")


def test_a_merge_that_does_not_fit_the_disk_is_refused_before_it_begins(
    sources, tmp_path, monkeypatch
):
    monkeypatch.setattr("sae.base.files.free_space", lambda _: 1000)
    with pytest.raises(UserError, match=r"out\.zarr: .* GB are needed"):
        merge_caches(tmp_path / "out.zarr", locations(sources))
    assert not (tmp_path / "out.zarr").exists()
