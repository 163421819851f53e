"""Activations as SAELens's data sets: the real SAELens reads ours, and we read SAELens's."""

import json

import numpy as np
import pytest
import torch
from support.files import flip

import sae
from sae.base.errors import UserError
from sae.cache.create import create_cache
from sae.cache.layout import open_cache
from sae.cache.text_writer import write_text
from sae.dictionary.metadata import metadata_of
from sae.exchange import activations
from sae.exchange.activations import export_to_hf, import_from_saelens
from sae.models.record import ModelRecord
from sae.models.site import Site
from sae.text.packing import RowBlock, TextPlan

RESID, MLP = "blocks.1.hook_resid_post", "blocks.1.mlp.hook_post"
HOOKS = [
    Site(RESID, "model.layers.1", "output", 32),
    Site(MLP, "model.layers.1.mlp", "output", 64),
]
CONTEXT = 16
ATTRIBUTES = {
    "digest": "0123",
    "model": ModelRecord("tiny", "tiny", "w").to_json(),
    "tokenizer_digest": "t",
    "data": {"name": "notes", "held_out_fraction": 0.1},
    "special_token_ids": [0],
}


def block(held_out, start, n):
    tokens = np.arange(start * CONTEXT, (start + n) * CONTEXT, dtype=np.int32)
    tokens = tokens.reshape(n, CONTEXT) + 1
    return RowBlock(held_out, tokens, tokens // CONTEXT)


def write_cache(path, dtype="float16", n_training=70, n_held_out=10):
    plan = TextPlan(n_training, n_held_out, CONTEXT)
    writer = create_cache(path, HOOKS, plan, dtype=dtype, attributes=ATTRIBUTES)
    blocks = [block(False, 0, n_training), block(True, n_training, n_held_out)]
    n = n_training + n_held_out
    write_text(writer, blocks, lambda: np.arange(n, dtype=np.uint64))
    draw = torch.Generator().manual_seed(0)
    for chunk in writer.chunks():
        shape = (chunk.stop - chunk.start, CONTEXT)
        writer.write(
            chunk,
            {h.hook_name: torch.randn(*shape, h.width, generator=draw) for h in HOOKS},
        )
    writer.finish()
    return open_cache(path)


def all_rows(cache, hook, n=80):
    parts = [cache.read(hook, chunk).float() for chunk in cache.chunks(hook)]
    return torch.cat(parts)[:n]


def loaded(folder):
    from datasets import load_from_disk

    return load_from_disk(str(folder))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("activations") / "cache.zarr")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int8"])
def test_every_value_of_every_hook_comes_out_in_order(dtype, tmp_path):
    cache = write_cache(tmp_path / "cache.zarr", dtype)
    assert export_to_hf(cache, tmp_path / "set", held_out=None) == 80
    found = loaded(tmp_path / "set").with_format("numpy")
    assert found.column_names == [RESID, MLP, "token_ids"]
    assert np.array_equal(found[:]["token_ids"], cache.tokens)
    for hook in (RESID, MLP):
        assert np.array_equal(found[:][hook], all_rows(cache, hook).numpy())
        stored = "float16" if dtype == "float16" else "float32"
        assert found.features[hook].dtype == stored


@pytest.mark.parametrize(("held_out", "rows"), [(False, slice(70)), (True, slice(70, 80))])
def test_a_side_is_exported_alone(cache, held_out, rows, tmp_path):
    n = export_to_hf(cache, tmp_path / "set", [RESID], held_out=held_out)
    found = loaded(tmp_path / "set").with_format("numpy")[:]
    assert n == rows.stop - (rows.start or 0)
    assert np.array_equal(found["token_ids"], cache.tokens[rows])
    assert np.array_equal(found[RESID], all_rows(cache, RESID)[rows].numpy())
    assert list(found) == [RESID, "token_ids"]


def test_training_sequences_are_exported_unless_others_are_asked_for(cache, tmp_path):
    assert export_to_hf(cache, tmp_path / "set") == 70


def test_a_large_export_has_several_files_and_the_same_rows(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(activations, "_FILE_BYTES", 1)
    export_to_hf(cache, tmp_path / "set", [RESID], held_out=None)
    names = sorted(path.name for path in (tmp_path / "set").iterdir())
    files = [f"data-{i:05d}-of-00003.arrow" for i in range(3)]
    assert names == ["SHA256SUMS", *files, "dataset_info.json", "state.json"]
    found = loaded(tmp_path / "set").with_format("numpy")[:]
    assert np.array_equal(found[RESID], all_rows(cache, RESID).numpy())


def test_the_same_export_has_the_same_bytes(cache, tmp_path):
    for name in ("one", "two"):
        export_to_hf(cache, tmp_path / name, [RESID])
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_an_existing_folder_is_left_alone(cache, tmp_path):
    (tmp_path / "note").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        export_to_hf(cache, tmp_path)
    assert (tmp_path / "note").read_text() == "mine"


def test_a_damaged_chunk_leaves_no_export_behind(tmp_path):
    cache = write_cache(tmp_path / "cache.zarr")
    (chunk,) = (tmp_path / "cache.zarr" / "activations" / RESID).glob("c*2.0.0")
    raw = bytearray(chunk.read_bytes())
    raw[100] ^= 1
    chunk.write_bytes(raw)
    with pytest.raises(UserError, match="damaged"):
        export_to_hf(cache, tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["cache.zarr"]


def test_a_side_without_sequences_is_refused(tmp_path):
    cache = write_cache(tmp_path / "cache.zarr", n_training=3, n_held_out=0)
    with pytest.raises(UserError, match="held_out=True"):
        export_to_hf(cache, tmp_path / "set", held_out=True)


def saelens_store(folder, hook, d_in, **settings):
    from sae_lens import ActivationsStore

    chosen = {
        "model": torch.nn.Module(),
        "dataset": None,
        "streaming": False,
        "hook_name": hook,
        "hook_head_index": None,
        "context_size": CONTEXT,
        "d_in": d_in,
        "n_batches_in_buffer": 20,
        "total_training_tokens": 1120,
        "store_batch_size_prompts": 7,
        "train_batch_size_tokens": 112,
        "prepend_bos": False,
        "normalize_activations": "none",
        "device": torch.device("cpu"),
        "dtype": "float32",
        "cached_activations_path": str(folder),
    }
    return ActivationsStore(**{**chosen, **settings})


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_saelens_reads_what_we_exported_row_by_row(cache, tmp_path):
    pytest.importorskip("sae_lens")
    export_to_hf(cache, tmp_path / "set")
    for hook, d_in in ((RESID, 32), (MLP, 64)):
        expected = all_rows(cache, hook)[:70].flatten(0, 1)
        # Without mixing its order is that of the file.
        plain = saelens_store(tmp_path / "set", hook, d_in, activations_mixing_fraction=0.0)
        batches = torch.cat([next(plain) for _ in range(10)])
        assert torch.equal(batches, expected)
        _, tokens = saelens_store(tmp_path / "set", hook, d_in).get_raw_llm_batch()
        assert torch.equal(tokens.int(), torch.from_numpy(cache.tokens[:7]).flatten())


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_saelens_mixes_our_rows_and_leaves_out_special_tokens(cache, tmp_path):
    pytest.importorskip("sae_lens")
    export_to_hf(cache, tmp_path / "set")
    store = saelens_store(
        tmp_path / "set", RESID, 32, exclude_special_tokens=torch.tensor([1, 2, 3])
    )
    expected = {tuple(row) for row in all_rows(cache, RESID)[:70].flatten(0, 1)[3:].tolist()}
    found = [tuple(row) for _ in range(5) for row in next(store).tolist()]
    assert set(found) <= expected
    assert len(set(found)) == len(found) == 560


def run_saelens(model, text, folder, **settings):
    from datasets import Dataset
    from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig

    rows = Dataset.from_dict({"text": [json.loads(t)["text"] for t in text]})
    config = {
        "dataset_path": "",
        "model_name": str(model),
        "model_class_name": "AutoModelForCausalLM",
        "model_batch_size": 4,
        "hook_name": "model.layers.1",
        "d_in": 32,
        "training_tokens": 64 * CONTEXT,
        "context_size": CONTEXT,
        "new_cached_activations_path": str(folder),
        "shuffle": False,
        "device": "cpu",
        "streaming": False,
        "buffer_size_gb": 32 * CONTEXT * 32 * 4 / 1e9,
        **settings,
    }
    runner = CacheActivationsRunner(CacheActivationsRunnerConfig(**config), rows)
    return runner.run().with_format("torch")[:]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_saelens_harvested_becomes_a_cache(dtype, tiny_model, tiny_text, tmp_path):
    pytest.importorskip("sae_lens")
    text = (tiny_text / "notes.jsonl").read_text().splitlines()
    theirs = run_saelens(tiny_model, text, tmp_path / "set", dtype=dtype)
    ours = import_from_saelens(
        tmp_path / "set",
        tmp_path / "cache.zarr",
        model_name=str(tiny_model),
        held_out_fraction=0.3,
        dtype=dtype,
        special_token_ids=[1, 0],
    )
    assert ours.hook_names == [RESID]
    assert ours.attributes["source"] == "saelens"
    assert ours.attributes["special_token_ids"] == [0, 1]
    order = in_cache_order(theirs["token_ids"].numpy(), ours.tokens, ours.held_out)
    assert torch.equal(all_rows(ours, RESID), theirs["model.layers.1"][order].float())
    text_rows = ours.tokens[~ours.held_out] > 1
    mean = all_rows(ours, RESID)[~ours.held_out][text_rows].mean(0)
    torch.testing.assert_close(
        torch.from_numpy(ours.statistics(RESID)["mean"]).float(), mean, atol=1e-5, rtol=1e-5
    )


def in_cache_order(tokens, cached, held_out):
    """The row of the data set that each row of the cache is: in order on either side."""
    assert 0 < held_out.sum() < len(held_out) == len(tokens) == len(cached)
    assert np.array_equal(np.sort(held_out), held_out)
    places = {row.tobytes(): i for i, row in enumerate(tokens)}
    assert len(places) == len(tokens)
    order = np.array([places[row.tobytes()] for row in cached.astype(tokens.dtype)])
    n = int((~held_out).sum())
    assert (np.diff(order[:n]) > 0).all()
    assert (np.diff(order[n:]) > 0).all()
    return order


@pytest.fixture
def imported(cache, tiny_model, tmp_path):
    """A cache whose hooks the tiny model has, through an export and back."""
    export_to_hf(cache, tmp_path / "set", held_out=None)
    return import_from_saelens(
        tmp_path / "set",
        tmp_path / "back.zarr",
        model_name=str(tiny_model),
        held_out_fraction=0.5,
    )


def test_an_export_comes_back_with_the_same_rows_of_both_hooks(cache, imported):
    order = in_cache_order(cache.tokens, imported.tokens, imported.held_out)
    assert set(imported.hook_names) == {RESID, MLP}
    for hook in (RESID, MLP):
        assert torch.equal(all_rows(imported, hook), all_rows(cache, hook)[order])


def test_a_sequence_is_a_document_of_its_own(imported):
    assert np.array_equal(imported.documents, np.arange(80)[:, None].repeat(CONTEXT, 1))
    assert imported.attributes["data"]["documents"]["used"] == 80


def test_the_same_tokens_are_on_the_same_side_whatever_stands_around_them(
    cache, imported, tiny_model, tmp_path
):
    export_to_hf(cache, tmp_path / "less")
    again = import_from_saelens(
        tmp_path / "less",
        tmp_path / "less.zarr",
        model_name=str(tiny_model),
        held_out_fraction=0.5,
    )
    sides = {t.tobytes(): s for t, s in zip(imported.tokens, imported.held_out, strict=True)}
    found = [sides[t.tobytes()] for t in again.tokens]
    assert np.array_equal(found, again.held_out)


def test_an_import_that_was_interrupted_goes_on(imported, tiny_model, tmp_path):
    settings = {"model_name": str(tiny_model), "held_out_fraction": 0.5}
    (lost,) = (tmp_path / "back.zarr" / "activations" / MLP).glob("c*1.0.0")
    whole, kept = lost.read_bytes(), lost.with_name(lost.name.replace("1.0.0", "0.0.0"))
    before = kept.stat().st_mtime_ns
    lost.unlink()
    import_from_saelens(tmp_path / "set", tmp_path / "back.zarr", **settings)
    assert lost.read_bytes() == whole
    assert kept.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "file", [f"statistics/{MLP}/mean/zarr.json", "statistics/zarr.json", f"norms/{MLP}/c.0.0"]
)
def test_an_import_that_was_damaged_is_mended(imported, tiny_model, tmp_path, file):
    settings = {"model_name": str(tiny_model), "held_out_fraction": 0.5}
    lost = tmp_path / "back.zarr" / file
    whole = lost.read_bytes()
    lost.write_bytes(b"")
    import_from_saelens(tmp_path / "set", tmp_path / "back.zarr", **settings)
    assert lost.read_bytes() == whole


def test_what_was_exported_here_and_damaged_since_is_not_imported(
    imported, tiny_model, tmp_path
):
    flip(tmp_path / "set" / "data-00000-of-00001.arrow", -900)
    with pytest.raises(UserError, match=r"arrow is damaged, .*: sae cache export"):
        import_from_saelens(tmp_path / "set", tmp_path / "x.zarr", model_name=str(tiny_model))
    assert not (tmp_path / "x.zarr").exists()


def test_another_import_does_not_write_over_a_finished_one(imported, tiny_model, tmp_path):
    with pytest.raises(UserError, match="another"):
        import_from_saelens(
            tmp_path / "set",
            tmp_path / "back.zarr",
            model_name=str(tiny_model),
            held_out_fraction=0.4,
        )


def test_a_dictionary_is_trained_on_an_import(cache, tiny_model, tmp_path):
    export_to_hf(cache, tmp_path / "set", held_out=None)
    import_from_saelens(
        tmp_path / "set", tmp_path / "run" / "cache.zarr", model_name=str(tiny_model)
    )
    trained = sae.train(
        run=str(tmp_path / "run"),
        name="one",
        hook_name=RESID,
        sae=sae.StandardConfig(d_sae=48),
        training_tokens=4_000,
        train_batch_size_tokens=200,
    )
    dictionary = sae.load(str(tmp_path / "run/dictionaries/one"))
    assert metadata_of(dictionary)["hf_hook_name"] == "model.layers.1"
    assert dictionary.model_name == str(tiny_model)
    assert trained is not None


def wrong_folders(tmp_path):
    from datasets import Array2D, Dataset, DatasetDict, Features, Value
    from datasets import Sequence as Fixed

    ids = Fixed(Value("int32"), length=4)
    x = np.ones((3, 4, 2), dtype=np.float32)
    features = Features({RESID: Array2D((4, 2), "float32"), "token_ids": ids})
    tokens = np.ones((3, 4), dtype=np.int32)
    whole = Dataset.from_dict({RESID: x, "token_ids": tokens}, features=features)
    (tmp_path / "empty").mkdir()
    DatasetDict({"train": whole}).save_to_disk(str(tmp_path / "several"))
    sets = {
        "tokenless": whole.select_columns([RESID]),
        "hookless": whole.select_columns(["token_ids"]),
        "rowless": whole.select([]),
        "null": Dataset.from_dict(
            {RESID: x, "token_ids": [[1, 2, 3, 4], None, [1, 2, 3, 4]]}, features=features
        ),
        "unequal": Dataset.from_dict(
            {RESID: x, "token_ids": tokens[:, :3]},
            features=Features({**features, "token_ids": Fixed(Value("int32"), length=3)}),
        ),
        "one_side": whole,
        "damaged": whole,
    }
    for name, rows in sets.items():
        rows.save_to_disk(str(tmp_path / name))
    (file,) = (tmp_path / "damaged").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:100])


WRONG = {
    "missing": "no such folder",
    "empty": "not a data set with rows",
    "damaged": "not a data set with rows",
    "several": "several data sets",
    "tokenless": "beside token_ids of the same length, only blocks.1.hook_resid_post",
    "hookless": "beside token_ids of the same length, only token_ids",
    "unequal": "beside token_ids of the same length",
    "rowless": "not a data set with rows",
    "null": "rows without tokens",
    "one_side": "of the 3 sequences",
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_data_set_of_saelens_is_refused(name, tiny_model, tmp_path):
    wrong_folders(tmp_path)
    with pytest.raises(UserError, match=WRONG[name]) as refusal:
        import_from_saelens(
            tmp_path / name, tmp_path / "cache.zarr", model_name=str(tiny_model)
        )
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "cache.zarr").exists()


def test_a_model_without_the_hook_is_refused_before_anything_is_written(
    cache, tmp_path, tiny_model
):
    export_to_hf(cache, tmp_path / "set", [RESID])
    elsewhere = loaded(tmp_path / "set").rename_column(RESID, "blocks.9.hook_resid_post")
    elsewhere.save_to_disk(str(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match="layer 9"):
        import_from_saelens(
            tmp_path / "elsewhere", tmp_path / "back.zarr", model_name=str(tiny_model)
        )
    assert not (tmp_path / "back.zarr").exists()
