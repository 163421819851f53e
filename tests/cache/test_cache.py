"""What is in a cache, read with plain zarr, and what damage does to it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from support.files import chunk_files, cut, flip, reworded, tree
from support.world import HOOK, cache_of, harvest_settings

import sae
from sae.base.errors import UserError
from sae.cache.layout import open_cache
from sae.cache.stored import from_stored, to_stored
from sae.cache.writer import CacheWriter

OTHER = "blocks.0.attn.hook_z"
HOOKS = [HOOK, OTHER]
ARRAYS = [
    *(f"activations/{hook}" for hook in HOOKS),
    *(f"norms/{hook}" for hook in HOOKS),
    *(f"moments/{hook}" for hook in HOOKS),
    "tokens",
    "documents",
    "held_out",
    "document_digests",
    *(f"statistics/{HOOK}/{name}" for name in ("mean", "variance", "norm_quantiles")),
]
READ = [name for name in ARRAYS if not name.startswith(("document_digests", "moments"))]


def settings(run: Path, model: Path, text: Path, **others: Any) -> dict[str, Any]:
    small = {"hook_names": HOOKS, "n_tokens": 4096, "context_size": 32}
    return harvest_settings(run, model, text) | small | others


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_text: Path) -> Path:
    """A cache of four chunks at two hooks; not to be changed."""
    run = tmp_path_factory.mktemp("cache")
    sae.harvest(**settings(run, tiny_model, tiny_text))
    return run / "cache.zarr"


@pytest.fixture
def again(tmp_path: Path, made: Path, tiny_model: Path, tiny_text: Path) -> Callable[[], Any]:
    """A copy of that cache in `tmp_path`, and a call that runs the same harvest over it."""
    shutil.copytree(made, tmp_path / "cache.zarr")
    return lambda: sae.harvest(**settings(tmp_path, tiny_model, tiny_text))


def read_everything(cache: sae.ActivationCache) -> None:
    """Read as the later stages do: every property, every chunk of every hook."""
    for hook in HOOKS:
        for chunk in cache.chunks(hook):
            cache.read(hook, chunk)
        cache.norms(hook)
        cache.statistics(hook)
    _ = cache.tokens, cache.documents, cache.held_out


def forward(model: Path, tokens: np.ndarray, batch: int = 16) -> torch.Tensor:
    """The residual stream after block 1, from the model without any hook."""
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(model).eval()
    parts = torch.split(torch.from_numpy(tokens).long(), batch)
    with torch.no_grad():
        states = [module(p, output_hidden_states=True).hidden_states[2] for p in parts]
    return torch.cat(states)


def bits(array: np.ndarray) -> torch.Tensor:
    """bfloat16 bits as numbers, by hand: they are the upper half of a float32."""
    return torch.from_numpy((array.astype(np.uint32) << 16).view(np.float32))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "stored"),
    [("float16", np.float16), ("bfloat16", np.uint16), ("float32", np.float32)],
)
def test_plain_zarr_reads_what_a_forward_pass_computes_rounded_to_the_dtype(
    tmp_path, tiny_model, tiny_text, dtype, stored
):
    sae.harvest(**settings(tmp_path, tiny_model, tiny_text, dtype=dtype))
    group = zarr.open_group(str(tmp_path / "cache.zarr"), mode="r")
    array = group[f"activations/{HOOK}"][...]
    assert array.dtype == stored
    expected = forward(tiny_model, group["tokens"][...])
    if dtype == "bfloat16":
        assert torch.equal(bits(array), expected.bfloat16().float())
    else:
        assert torch.equal(torch.from_numpy(array), expected.to(getattr(torch, dtype)))
    cache = open_cache(tmp_path / "cache.zarr")
    found = torch.cat([cache.read(HOOK, chunk) for chunk in cache.chunks(HOOK)])
    assert torch.equal(found, expected.to(getattr(torch, dtype)))


def test_sequences_are_asked_for_as_python_does(made):
    cache = open_cache(made)
    whole = torch.cat([cache.read(HOOK, chunk) for chunk in cache.chunks(HOOK)])
    for asked in (0, 5, -1, np.int64(7)):
        assert torch.equal(cache.read(HOOK, asked), whole[int(asked)])
    for asked in (slice(None), slice(120, None), slice(-3, -1), slice(None, 4), slice(9, 999)):
        assert torch.equal(cache.read(HOOK, asked), whole[asked])


@pytest.mark.parametrize(
    ("hook", "asked", "sentence"),
    [
        (HOOK, 128, "has no sequence 128; give 0 to 127, or -1 for the last"),
        (HOOK, -129, "has no sequence -129"),
        (HOOK, slice(0, 6, 2), "has a step; give consecutive"),
        (HOOK, slice(3, 3), "selects none of its 128 sequences"),
        ("blocks.1.hook_resid_pos", 0, f"has not harvested .*; nearest: {HOOK}"),
    ],
)
def test_what_a_cache_does_not_hold_is_refused_in_a_sentence(made, hook, asked, sentence):
    with pytest.raises(UserError, match=sentence):
        open_cache(made).read(hook, asked)


def test_the_arrays_have_the_documented_shapes_and_types(made):
    group = zarr.open_group(str(made), mode="r")
    found = {name: (group[name].dtype.name, group[name].shape) for name in ARRAYS}
    n = 4096 // 32
    documents = group["document_digests"].shape
    assert found == {
        f"activations/{HOOK}": ("float16", (n, 32, 32)),
        f"activations/{OTHER}": ("float16", (n, 32, 32)),
        f"norms/{HOOK}": ("float32", (n, 32)),
        f"norms/{OTHER}": ("float32", (n, 32)),
        f"moments/{HOOK}": ("float64", (4, 65)),
        f"moments/{OTHER}": ("float64", (4, 65)),
        "tokens": ("int32", (n, 32)),
        "documents": ("int32", (n, 32)),
        "held_out": ("bool", (n,)),
        "document_digests": ("uint64", documents),
        f"statistics/{HOOK}/mean": ("float64", (32,)),
        f"statistics/{HOOK}/variance": ("float64", (32,)),
        f"statistics/{HOOK}/norm_quantiles": ("float64", (101,)),
    }
    assert group["documents"][...].max() < documents[0]
    assert group["held_out"][...].sum() == round(0.1 * n)
    assert group.attrs["complete"] is True


@pytest.mark.parametrize("hook", HOOKS)
def test_the_statistics_are_those_of_the_training_rows_without_special_tokens(made, hook):
    group = zarr.open_group(str(made), mode="r")
    x = group[f"activations/{hook}"][...].astype(np.float64)
    rows = x[~group["held_out"][...]].reshape(-1, x.shape[2])
    rows = rows[~np.isin(group["tokens"][...][~group["held_out"][...]], [0, 1]).reshape(-1)]
    assert 0 < len(rows) < x.shape[0] * x.shape[1]
    found = open_cache(made).statistics(hook)
    np.testing.assert_allclose(found["mean"], rows.mean(0), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found["variance"], rows.var(0), rtol=1e-10)
    norms = np.linalg.norm(rows, axis=1)
    quantiles = np.quantile(norms, np.linspace(0, 1, 101))
    np.testing.assert_allclose(found["norm_quantiles"], quantiles, rtol=1 / 4096)
    np.testing.assert_allclose(
        open_cache(made).norms(hook), np.linalg.norm(x, axis=2), rtol=1e-6
    )


def test_a_flipped_byte_in_any_chunk_is_refused_and_the_array_named(again, tmp_path):
    cache = tmp_path / "cache.zarr"
    files = [(array, file) for array in READ for file in chunk_files(cache, array)]
    assert len(files) == 4 * 4 + 6
    for i, (array, file) in enumerate(files):
        whole = file.read_bytes()
        flip(file, at=i * 7919)
        with pytest.raises(UserError, match=f"{array} .*damaged.*harvest again") as caught:
            read_everything(open_cache(cache))
        assert "\n" not in str(caught.value)
        file.write_bytes(whole)
    read_everything(open_cache(cache))


def test_a_deleted_chunk_is_refused_and_the_array_named(again, tmp_path):
    cache = tmp_path / "cache.zarr"
    for array in READ:
        file = chunk_files(cache, array)[-1]
        whole = file.read_bytes()
        file.unlink()
        with pytest.raises(UserError, match=f"{array} .*miss.* harvest again"):
            read_everything(open_cache(cache))
        file.write_bytes(whole)
    read_everything(open_cache(cache))


def test_a_lost_chunk_of_zeros_is_not_taken_for_zeros(tmp_path):
    tokens = np.ones((1100, 2), dtype=np.int32)
    split = np.arange(1100) >= 1024
    path = tmp_path / "cache.zarr"
    cache = cache_of(path, tokens, split, {"h": torch.zeros(1100, 2, 1)})
    assert cache.held_out.tolist() == split.tolist()
    for name in ("held_out", "documents"):
        (lost := chunk_files(path, name)[0]).rename(tmp_path / "lost")
        with pytest.raises(UserError, match=f"{name} is missing or damaged"):
            getattr(open_cache(path), name)
        (tmp_path / "lost").rename(lost)


def test_plain_zarr_refuses_a_flipped_byte_as_well(again, tmp_path):
    flip(chunk_files(tmp_path / "cache.zarr", f"activations/{HOOK}")[2])
    array = zarr.open_group(str(tmp_path / "cache.zarr"), mode="r")[f"activations/{HOOK}"]
    array[:64]
    with pytest.raises(ValueError, match="checksum"):
        array[64:96]


@pytest.mark.slow
@pytest.mark.parametrize("array", ARRAYS)
@pytest.mark.parametrize("harm", [flip, Path.unlink, cut])
def test_the_same_harvest_repairs_damage_to_the_same_bytes(again, tmp_path, made, array, harm):
    cache = tmp_path / "cache.zarr"
    harm(chunk_files(cache, array)[-1])
    assert tree(cache) != tree(made)
    read_everything(again())
    assert tree(cache) == tree(made)


@pytest.mark.parametrize(
    ("array", "content"),
    [(f"moments/{HOOK}", "null"), (f"moments/{HOOK}", "{"), ("tokens", "{}"), ("tokens", "")],
)
def test_a_damaged_description_is_refused_and_the_array_named(again, tmp_path, array, content):
    (tmp_path / "cache.zarr" / array / "zarr.json").write_text(content)
    with pytest.raises(UserError, match=rf"{array}.* damaged"):
        again()


def test_only_what_is_damaged_is_computed_again(again, tmp_path):
    cache = tmp_path / "cache.zarr"
    damaged = chunk_files(cache, f"activations/{HOOK}")[1]
    flip(damaged)
    before = {p: p.stat().st_mtime_ns for p in cache.rglob("*") if p.is_file()}
    again()
    changed = {p for p, t in before.items() if p.stat().st_mtime_ns != t}
    assert damaged in changed
    # The same sequences at every hook; statistics are written anew, from all chunks.
    for file in changed - {cache / "zarr.json"}:
        assert "statistics" in file.parts or file.name.split(".")[1] == "1", file


def test_damaged_text_whose_source_has_changed_is_not_mixed_with_another(
    tmp_path, tiny_model, tiny_text
):
    text = tmp_path / "text"
    shutil.copytree(tiny_text, text)
    sae.harvest(**settings(tmp_path, tiny_model, text))
    flip(chunk_files(tmp_path / "cache.zarr", "tokens")[0])
    lines = (text / "notes.jsonl").read_text().splitlines(keepends=True)
    (text / "notes.jsonl").write_text("".join(lines[5:]))
    with pytest.raises(UserError, match=r"another text.* has changed since"):
        sae.harvest(**settings(tmp_path, tiny_model, text))


def changed_model(model: Path, folder: Path, change: Callable[[Any], None]) -> Path:
    """A copy of the tiny model with other weights."""
    from transformers import AutoModelForCausalLM

    shutil.copytree(model, folder)
    module = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        change(module)
    module.save_pretrained(folder)
    return folder


def test_an_activation_that_float16_cannot_hold_is_refused_with_advice_that_helps(
    tmp_path, tiny_model, tiny_text
):
    model = changed_model(
        tiny_model, tmp_path / "model", lambda m: m.model.embed_tokens.weight.mul_(3e6)
    )
    given = settings(tmp_path / "run", model, tiny_text)
    with pytest.raises(UserError, match=r"float16 cannot hold .*use dtype=bfloat16"):
        sae.harvest(**given)
    # The advice works in the same run: nothing of the refused harvest is in the way.
    cache = sae.harvest(**given | {"dtype": "bfloat16"})
    assert float(cache.norms(HOOK).max()) > 65_504


def test_activations_of_nan_are_refused(tmp_path, tiny_model, tiny_text):
    model = changed_model(
        tiny_model, tmp_path / "model", lambda m: m.model.embed_tokens.weight[40:].mul_(np.nan)
    )
    with pytest.raises(UserError, match="gives NaN as logits"):
        sae.harvest(**settings(tmp_path / "run", model, tiny_text))


def test_the_largest_float16_is_stored_and_the_next_is_refused():
    assert to_stored(torch.tensor([65_504.0, -65_504.0]), "float16")[0].tolist() == [
        65504,
        -65504,
    ]
    with pytest.raises(UserError, match=r"6\.55e\+04"):
        to_stored(torch.tensor([0.0, 65_520.0]), "float16")
    for dtype in ("float16", "bfloat16", "float32"):
        for value in (np.nan, np.inf):
            with pytest.raises(UserError, match="NaN or infinity"):
                to_stored(torch.tensor([0.0, value]), dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_what_is_stored_comes_back_as_it_was_rounded(dtype):
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)) * 100
    found = from_stored(*to_stored(x, dtype))
    assert found.dtype == getattr(torch, dtype)
    assert torch.equal(found, x.to(getattr(torch, dtype)))


def test_what_is_no_finished_cache_is_refused_in_one_sentence(again, tmp_path):
    with pytest.raises(
        UserError, match="is not an activation cache; make one with: sae harvest"
    ):
        open_cache(tmp_path / "nothing")
    zarr.create_group(str(tmp_path / "other.zarr"))
    with pytest.raises(UserError, match="not an activation cache of sae-atlas"):
        open_cache(tmp_path / "other.zarr")
    reworded(tmp_path / "cache.zarr", special_token_ids=[1])
    assert open_cache(tmp_path / "cache.zarr").attributes["special_token_ids"] == [1]
    reworded(tmp_path / "cache.zarr", complete=False)
    with pytest.raises(UserError, match="not finished; run the same harvest again"):
        open_cache(tmp_path / "cache.zarr")
    reworded(tmp_path / "cache.zarr", format_version=99)
    with pytest.raises(UserError, match="format version 99, this is version 2"):
        open_cache(tmp_path / "cache.zarr")


@pytest.mark.parametrize(
    ("old", "new"), [('"n_training": ', '"n_training": 1'), ("[0]", "[1]")]
)
def test_attributes_that_are_not_as_they_were_written_are_refused(again, tmp_path, old, new):
    about = tmp_path / "cache.zarr" / "zarr.json"
    text = " ".join(about.read_text().split()).replace("[ 0 ]", "[0]")
    assert old in text
    about.write_text(text)
    open_cache(tmp_path / "cache.zarr")
    about.write_text(text.replace(old, new, 1))
    with pytest.raises(
        UserError, match=r"zarr\.json is damaged, because it differs from what was"
    ):
        open_cache(tmp_path / "cache.zarr")


def test_a_hook_that_is_not_in_the_cache_is_refused_and_what_it_holds_named(made):
    cache = open_cache(made)
    assert cache.hook(HOOK) == HOOK
    with pytest.raises(UserError, match=f"holds 2 hooks; choose one with hook_name={HOOK}"):
        cache.hook(None)
    with pytest.raises(UserError, match=f"nearest: {HOOK}.*holds {HOOK}, {OTHER}"):
        cache.hook("blocks.1.resid_post")


def test_the_digest_changes_with_the_weights_the_text_and_the_tokenizer(tiny_run, tmp_path):
    shutil.copytree(tiny_run / "cache.zarr", tmp_path / "cache.zarr")
    found = {open_cache(tmp_path / "cache.zarr").digest}
    model = open_cache(tmp_path / "cache.zarr").attributes["model"]
    for name, value in (
        ("model", {**model, "weight_digest": "0"}),
        ("data_digest", "0"),
        ("tokenizer_digest", "0"),
    ):
        reworded(tmp_path / "cache.zarr", **{name: value})
        found.add(open_cache(tmp_path / "cache.zarr").digest)
    assert len(found) == 4


def test_what_a_cache_says_of_itself_changes_in_one_write(again, tmp_path, monkeypatch):
    """A kill between two writes would leave a text that is complete and has no digest."""
    writes, original = [], zarr.storage.LocalStore.set

    async def counted(store, key, value):
        writes.append(key)
        await original(store, key, value)

    monkeypatch.setattr(zarr.storage.LocalStore, "set", counted)
    writer = CacheWriter(tmp_path / "cache.zarr")
    writer.declare(text_complete=True, data_digest="0", data={})
    assert writes == ["zarr.json"]
    assert open_cache(tmp_path / "cache.zarr").attributes["data_digest"] == "0"
