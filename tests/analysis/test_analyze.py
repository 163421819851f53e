"""`sae analyze` as a stage: resumed, reused, refused, whatever the sizes of its pieces."""

import collections
import os
import shutil
import signal
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.figures import compared, made_figures
from support.files import unseal
from support.tokenizers import TEXTS, TOKENIZERS
from support.world import HOOK, cache_of, random_dictionary

import sae
from sae.analysis import features as feature_module
from sae.analysis import shards as shard_module
from sae.analysis.features import ContextSelection, feature_panels, related_features
from sae.analysis.shards import blocks, encode_cache, read_text
from sae.analysis.tables import context_pieces
from sae.analysis.work import Work
from sae.base.errors import UserError
from sae.base.files import only_process, read_json, write_json
from sae.dictionary import ACTIVATIONS, TopK
from sae.text.token_texts import TokenTexts

TABLES = ("features.parquet", "contexts.parquet", "labels.csv")


@pytest.fixture
def run(tiny_run, tmp_path):
    """A copy with the dictionary `strong` alone."""
    target = tmp_path / "run"
    shutil.copytree(tiny_run, target)
    shutil.rmtree(target / "dictionaries" / "weak")
    return target


def table_bytes(folder):
    return {name: (folder / name).read_bytes() for name in TABLES}


# Sparse encoding


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sparse_encoding_equals_the_dense_one(architecture, dtype):
    dictionary = random_dictionary(architecture)
    moved = {name: w.to(dtype) for name, w in dictionary.tensors.items()}
    dictionary = dictionary.with_weights(moved)
    x = torch.randn(700, 32, generator=torch.Generator().manual_seed(3)).to(dtype)
    support, values = dictionary.encode_sparse(x)
    assert values.dtype == dtype
    assert (values > 0).all()
    torch.testing.assert_close(support.matrix(values).to_dense(), dictionary.encode(x))


def test_sparse_encoding_of_fewer_positive_latents_than_k_keeps_them_alone():
    dictionary = random_dictionary("topk")
    low = replace(dictionary, b_enc=dictionary.b_enc - 3, activation=TopK(40))
    x = torch.randn(300, 32, generator=torch.Generator().manual_seed(3))
    support, values = low.encode_sparse(x)
    assert 0 < len(values) < 300 * 40
    torch.testing.assert_close(support.matrix(values).to_dense(), low.encode(x))


def test_a_negative_threshold_lets_no_negative_activation_through():
    dictionary = random_dictionary("jumprelu")
    negative = dictionary.with_weights({"threshold": dictionary.activation.threshold - 2})
    x = torch.randn(300, 32, generator=torch.Generator().manual_seed(3))
    support, values = negative.encode_sparse(x)
    torch.testing.assert_close(support.matrix(values).to_dense(), negative.encode(x))


# A cache and a dictionary made here


@pytest.fixture
def small_chunks(monkeypatch):
    """Caches that are made have five sequences a chunk."""
    monkeypatch.setattr("sae.cache.create.sequences_a_chunk", lambda _: 5)


def made_cache(path, n_sequences=60, context=16, d_in=32, **settings):
    draw = np.random.default_rng(5)
    tokens = draw.integers(1, 90, (n_sequences, context)).astype(np.int32)
    tokens[:, 0] = 0
    held_out = np.arange(n_sequences) >= n_sequences - 6
    x = torch.from_numpy(draw.standard_normal((n_sequences, context, d_in), np.float32))
    return cache_of(path, tokens, held_out, {HOOK: x}, **settings)


def everything(cache, dictionary, folder, rule, owner="x"):
    """The engine's arrays of all features, and its files."""
    work = Work(folder, owner)
    text = read_text(cache, work)
    shards = encode_cache(dictionary, cache, text, work)
    panels = feature_panels(rule, shards, text, work)
    pairs = related_features(shards, text, panels, work)
    files = [work.open(name) for _, name in panels]
    found = {name: np.concatenate([f.read(name) for f in files]) for name in files[0].names}
    return found | pairs, (text, shards, panels, work)


RULE = ContextSelection(n_top=3, n_band=2, n_silent=3, radius=4, seed=0)


@pytest.fixture
def sparse_dictionary():
    dictionary = random_dictionary("jumprelu", d_sae=96, hook_name=HOOK)
    return dictionary.with_weights({"threshold": dictionary.activation.threshold + 1})


@pytest.mark.slow
@pytest.mark.usefixtures("small_chunks", "two_threads")
def test_results_do_not_depend_on_the_sizes_of_shards_blocks_and_groups(
    tmp_path, sparse_dictionary, monkeypatch
):
    cache = made_cache(tmp_path / "c.zarr")
    expected, (_, shards, panels, _) = everything(
        cache, sparse_dictionary, tmp_path / "a", RULE
    )
    assert len(shards) == len(panels) == 1
    monkeypatch.setattr(shard_module, "SHARD_ROWS", 150)
    monkeypatch.setattr(feature_module, "BLOCK_ENTRIES", 1500)
    monkeypatch.setattr(feature_module, "PAIR_BYTES", 12 * 96 * 5)
    monkeypatch.setattr(feature_module, "GROUP_ENTRIES", 4000)
    found, (_, shards, panels, work) = everything(
        cache, sparse_dictionary, tmp_path / "b", RULE
    )
    assert len(shards) > 3
    assert len(panels) > 3
    assert len(list(work.folder.glob("related-*"))) > 15
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("stored", ["int8", "bfloat16", "float16"])
def test_caches_of_every_precision_are_read(tmp_path, sparse_dictionary, stored):
    cache = made_cache(tmp_path / "c.zarr", dtype=stored)
    found, _ = everything(cache, sparse_dictionary, tmp_path / "a", RULE)
    x = cache.read(HOOK, slice(0, cache.n_sequences)).float().flatten(0, 1)
    acts = sparse_dictionary.encode(x[torch.from_numpy(cache.text_rows()).flatten()])
    np.testing.assert_array_equal(found["n_active"], (acts > 0).sum(0).numpy())


@pytest.mark.usefixtures("small_chunks")
def test_few_rows_make_a_shard_where_many_features_fire(tmp_path, monkeypatch):
    cache = made_cache(tmp_path / "c.zarr")
    dense = random_dictionary("standard", hook_name=HOOK)
    monkeypatch.setattr(shard_module, "SHARD_ENTRIES", 4000)
    _, (_, shards, _, work) = everything(cache, dense, tmp_path / "a", RULE)
    assert len(shards) > 3
    assert all(work.open(s.name).length("columns") < 8000 for s in shards)


def test_blocks_of_features_are_consecutive_and_within_their_limits():
    counts = np.array([5, 9, 1, 1, 30, 0, 0, 2])
    found = blocks(counts, most=10, most_members=3)
    assert [(b.start, b.stop) for b in found] == [(0, 1), (1, 3), (3, 4), (4, 5), (5, 8)]


# What is drawn


def test_drawn_contexts_depend_on_the_seed_and_every_candidate_is_as_likely(
    tmp_path, sparse_dictionary
):
    cache = made_cache(tmp_path / "c.zarr", n_sequences=30)
    first, (_, _, _, work) = everything(cache, sparse_dictionary, tmp_path / "a", RULE)
    shutil.rmtree(work.folder)
    n, counts, silent = 600, collections.Counter(), collections.Counter()
    busiest = int(first["n_active"].argsort()[-20])
    one = ContextSelection(n_top=1, n_band=1, n_silent=1, radius=4, seed=0)
    work = Work(tmp_path / "b", "x")
    text = read_text(cache, work)
    shards = encode_cache(sparse_dictionary, cache, text, work)
    entries = shard_module.read_entries(
        slice(busiest, busiest + 1), shard_module.entry_counts(shards, work), shards, work
    )
    for seed in range(n):
        rule = ContextSelection(one.n_top, one.n_band, one.n_silent, one.radius, seed)
        chosen = feature_module._panel(rule, entries, text)["chosen"][0]
        counts[int(chosen[3])] += 1
        silent[int(chosen[-1])] += 1
    for found, possible in (
        (counts, band_candidates(entries, band=2, radius=4)),
        (silent, silent_candidates(entries, text, radius=4)),
    ):
        assert set(found) <= possible
        assert len(possible) > 5
        # Four standard deviations of chi-square with so many degrees of freedom.
        freedom, each = len(possible) - 1, n / len(possible)
        chi_square = sum((found[token] - each) ** 2 / each for token in possible)
        assert chi_square < freedom + 4 * (2 * freedom) ** 0.5
    assert set(counts) == band_candidates(entries, band=2, radius=4)


def band_candidates(entries, band, radius, context=16):
    acts = dict(zip(entries.tokens.tolist(), entries.values.tolist(), strict=True))
    highest = max(acts.values())
    found = []
    for token, value in acts.items():
        start = token // context * context
        stretch = range(max(start, token - radius), min(start + context, token + radius + 1))
        is_peak = max(stretch, key=lambda t: acts.get(t, 0.0)) == token
        if is_peak and int(np.ceil(value * 5 / highest)) - 1 == band:
            found.append(token)
    return set(found)


def silent_candidates(entries, text, radius, context=16):
    fires = set(entries.tokens.tolist())
    found = set()
    for token in np.flatnonzero(text.documents >= 0).tolist():
        start = token // context * context
        stretch = range(max(start, token - radius), min(start + context, token + radius + 1))
        if not fires.intersection(stretch):
            found.add(token)
    return found


# Tables


@pytest.mark.slow
def test_the_tables_are_read_by_pandas_polars_and_duckdb_in_one_line(run):
    import pandas as pd

    folder = sae.analyze(run=str(run)).folder
    assert len(pd.read_parquet(folder / "features.parquet")) == 64
    contexts = pd.read_parquet(folder / "contexts.parquet")
    assert "".join(contexts.tokens[0]).strip()
    polars = pytest.importorskip("polars")
    assert len(polars.read_parquet(folder / "features.parquet")) == 64
    assert len(polars.read_parquet(folder / "contexts.parquet")) == len(contexts)
    duckdb = pytest.importorskip("duckdb")
    query = f"select count(*), max(len(tokens)) from '{folder}/contexts.parquet'"
    assert duckdb.sql(query).fetchall() == [(len(contexts), 32)]


# Killed, shared, reused


def analyze_until(part, settings):
    """Analyze, and die by a signal once so many parts of the work are finished."""
    finished = []
    save = Work.save

    def counting(self, name, arrays):
        save(self, name, arrays)
        finished.append(name)
        if len(finished) == part:
            os.kill(os.getpid(), signal.SIGKILL)

    Work.save = counting
    shard_module.SHARD_ROWS = 2000
    feature_module.BLOCK_ENTRIES = 60_000
    sae.analyze(**settings)
    sys.exit(0)


@pytest.mark.slow
def test_a_killed_analysis_goes_on_to_the_same_bytes(run, processes, monkeypatch):
    settings = {"run": str(run)}
    monkeypatch.setattr(shard_module, "SHARD_ROWS", 2000)
    monkeypatch.setattr(feature_module, "BLOCK_ENTRIES", 60_000)
    whole = table_bytes(sae.analyze(**settings).folder)
    folder = run / "atlas" / "strong"
    shutil.rmtree(folder)
    died = 0
    for part in (1, 2, 3, 1, 2):
        child = processes.Process(target=analyze_until, args=(part, settings))
        child.start()
        child.join(120)
        died += child.exitcode == -signal.SIGKILL
        child.close()
        assert not folder.exists()
    assert died == 5
    # As a process leaves it that is killed while it writes the folder itself.
    (folder.parent / ".strong.0123abcd.partial").mkdir()
    sae.analyze(**settings)
    assert table_bytes(folder) == whole
    assert sorted(p.name for p in folder.parent.iterdir()) == [
        ".strong.lock",
        "strong",
        "strong.yaml",
    ]


def test_work_of_other_settings_is_not_gone_on_with(tmp_path):
    work = Work(tmp_path / "w", "one")
    work.save("part", {"x": np.arange(3)})
    assert Work(tmp_path / "w", "one").has("part")
    assert not Work(tmp_path / "w", "two").has("part")


DAMAGE = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda _: b"",
    "flipped": lambda content: content[:-9] + bytes([content[-9] ^ 4]) + content[-8:],
    "without digests": lambda content: content,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_parts_are_computed_anew_by_themselves(tmp_path, sparse_dictionary, damage):
    cache = made_cache(tmp_path / "c.zarr")
    expected, (*_, work) = everything(cache, sparse_dictionary, tmp_path / "a", RULE)
    parts = sorted(work.folder.glob("*.safetensors"))
    assert len(parts) >= 3
    for part in parts:
        part.write_bytes(DAMAGE[damage](part.read_bytes()))
    if damage == "without digests":
        unseal(work.folder)
    again = Work(tmp_path / "a", "x")
    assert [again.has(part.stem) for part in parts] == [False] * len(parts)
    found, _ = everything(cache, sparse_dictionary, tmp_path / "a", RULE)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "7"])
def test_work_of_nobody_knows_whom_starts_anew(tmp_path, content):
    Work(tmp_path / "w", "one").save("part", {"x": np.arange(3)})
    (tmp_path / "w" / "work.json").write_text(content)
    assert not Work(tmp_path / "w", "one").has("part")


def test_two_analyses_of_one_dictionary_do_not_run_at_once(run):
    lock = run / "atlas" / ".strong.lock"
    with only_process(lock, UserError), pytest.raises(UserError, match="is being made by"):
        sae.analyze(run=str(run))


@pytest.mark.slow
def test_a_reused_atlas_shows_labels_and_a_comparison_that_came_later(run):
    atlas = sae.analyze(run=str(run))
    stamp = (atlas.folder / "features.parquet").stat().st_mtime_ns
    labels = (atlas.folder / "labels.csv").read_text(encoding="utf-8").splitlines()
    labels[1] = "0,named by hand,"
    (atlas.folder / "labels.csv").write_text("\n".join(labels) + "\n", encoding="utf-8")
    pareto = compared(made_figures("strong", k=7), made_figures("another", k=9), max_l0=17)
    write_json(run / "pareto.json", pareto.to_json())
    sae.analyze(run=str(run))
    assert (atlas.folder / "features.parquet").stat().st_mtime_ns == stamp
    assert "named by hand" in (atlas.folder / "data" / "labels.js").read_text(encoding="utf-8")
    shown = (atlas.folder / "data" / "pareto.js").read_text(encoding="utf-8")
    assert "with an L0 of at most 17" in shown
    assert '"current":"strong"' in shown
    # Points are placed and named as in a report.
    assert '"series":"standard","label":"k = 9"' in shown
    # A new atlas of the same dictionary keeps what people wrote.
    sae.analyze(run=str(run), n_contexts=3)
    assert "named by hand" in (atlas.folder / "labels.csv").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_report_leads_to_an_atlas_that_came_later(run):
    sae.eval(run=str(run), n_behaviour_tokens=64)
    assert read_json(run / "report.json")["atlases"] == {}
    page = run / "report.html"
    assert '"atlases":{}' in page.read_text(encoding="utf-8")
    sae.analyze(run=str(run), dictionary="strong")
    assert read_json(run / "report.json")["atlases"] == {"strong": "atlas/strong/index.html"}
    assert '"strong":"atlas/strong/index.html"' in page.read_text(encoding="utf-8")


# Bad input


@pytest.mark.slow
def test_an_older_or_half_written_atlas_is_refused_by_readers_and_mended_by_analyze(run):
    atlas = sae.analyze(run=str(run))
    path = atlas.folder / "atlas.json"
    record = atlas.record
    unseal(atlas.folder)
    write_json(path, {k: v for k, v in read_json(path).items() if k != "format"})
    with pytest.raises(UserError, match="atlas format 1, this is format 2; run sae analyze"):
        atlas.features()
    sae.analyze(run=str(run))
    assert atlas.record == record
    path.unlink()
    with pytest.raises(UserError, match=r"is not a finished atlas .* run sae analyze"):
        sae.steer(run=str(run))
    sae.analyze(run=str(run))
    (atlas.folder / "contexts.parquet").unlink()
    sae.analyze(run=str(run))
    assert len(atlas.contexts()) > 0


def test_more_contexts_than_sequences_are_refused_before_the_model_is_loaded(run, monkeypatch):
    monkeypatch.setattr("sae.analysis.analyze.recorded_model", None)
    with pytest.raises(UserError, match=r"n_contexts=257.* has 256; give n_contexts=256"):
        sae.analyze(run=str(run), n_contexts=257)


def test_a_dictionary_without_a_live_feature_has_an_atlas_that_says_so(run, capsys):
    from sae.dictionary.files import load_dictionary, save_dictionary

    folder = run / "dictionaries" / "strong"
    dictionary = load_dictionary(folder)
    dictionary.b_enc.fill_(-1e6)
    shutil.rmtree(folder)
    save_dictionary(dictionary, folder)
    atlas = sae.analyze(run=str(run))
    assert "no feature of strong fires" in capsys.readouterr().err
    assert atlas.record.n_dead == 64
    row = atlas.features()[5]
    assert row["density"] == row["max_activation"] == 0
    assert row["correlated"] == row["coactive"] == row["top_tokens"] == []
    assert len(row["neighbours"]) == 10
    assert {c["group"] for c in atlas.contexts()} == {"silent"}
    # Every stretch is silent, so as many are found as were asked for.
    assert len(atlas.contexts()) == 4 * 64


@pytest.mark.slow
def test_memory_does_not_grow_with_the_tokens(tmp_path, processes):
    peaks = []
    for n_sequences in (512, 4 * 512):
        cache = made_cache(tmp_path / f"{n_sequences}.zarr", n_sequences, context=128)
        found = processes.Queue()
        child = processes.Process(
            target=peak_of_analysis, args=(cache.location, tmp_path / "work", found)
        )
        child.start()
        peaks.append(found.get(timeout=300))
        child.join()
    assert peaks[1] - peaks[0] < 40 << 20, peaks


def peak_of_analysis(location, folder, found):
    """Bytes by which the peak of the anonymous memory exceeds what a first, small run had."""
    import resource

    dictionary = random_dictionary("topk", d_sae=2048, hook_name=HOOK)
    shard_module.SHARD_ROWS = 16_384
    feature_module.BLOCK_ENTRIES = 1 << 17
    feature_module.GROUP_ENTRIES = 1 << 17
    feature_module.PAIR_BYTES = 4 << 20
    everything(sae.open_cache(location), dictionary, folder, RULE, owner=location)
    found.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


# The text of contexts


def test_contexts_read_as_the_tokenizer_decodes_their_sequence(tmp_path, sparse_dictionary):
    tokenizer, size = TOKENIZERS["Llama"](), 24
    (ids,) = tokenizer(["\n".join(TEXTS.values()) * 3], add_special_tokens=False)["input_ids"]
    tokens = np.array(ids[: len(ids) // size * size], np.int32).reshape(-1, size)
    x = torch.randn(*tokens.shape, 32, generator=torch.Generator().manual_seed(3))
    held_out = np.arange(len(tokens)) > 1
    cache = cache_of(tmp_path / "cache.zarr", tokens, held_out, {HOOK: x})
    _, (text, _, panels, work) = everything(cache, sparse_dictionary, tmp_path / "w", RULE)
    (piece,) = context_pieces(panels, work, RULE, text, TokenTexts(tokenizer))
    compared = 0
    for sequence, start, shown in zip(
        piece["sequence"], piece["start"], piece["tokens"].to_pylist(), strict=True
    ):
        row = tokens[sequence].tolist()
        before, whole = (
            tokenizer.decode(row[:end], clean_up_tokenization_spaces=False) if end else ""
            for end in (start, start + len(shown))
        )
        # A character that an edge cuts is tested with the texts of tokens.
        if "\ufffd" not in before + whole:
            assert before + "".join(shown) == whole
            compared += 1
    assert compared > 200
