"""Qwen Scope's files, written out as their cards have them, and computed by the cards' code."""

import shutil

import pytest
import torch
from support.world import random_dictionary

import sae
from sae.base.errors import UserError
from sae.cli import main
from sae.dictionary import TopK
from sae.dictionary.metadata import metadata_of
from sae.exchange.formats import FORMATS, write_dictionary

D_IN, D_SAE, K = 32, 2048, 7
NAME = f"SAE-Res-Qwen3-8B-Base-W2K-L0_{K}"
SHAPES = {"W_enc": (D_SAE, D_IN), "W_dec": (D_IN, D_SAE), "b_enc": (D_SAE,), "b_dec": (D_IN,)}
# As SAELens 6.54 lists them, with the widths that the cards give.
RELEASES = {
    "SAE-Res-Qwen3-1.7B-Base-W32K-L0_50": ("Qwen/Qwen3-1.7B-Base", 32768, 50),
    "SAE-Res-Qwen3-8B-Base-W64K-L0_100": ("Qwen/Qwen3-8B-Base", 65536, 100),
    "SAE-Res-Qwen3-30B-A3B-Base-W128K-L0_100": ("Qwen/Qwen3-30B-A3B-Base", 131072, 100),
    "SAE-Res-Qwen3.5-27B-W80K-L0_50": ("Qwen/Qwen3.5-27B", 81920, 50),
}


def state_of(**changes):
    draw = torch.Generator().manual_seed(3)
    state = {name: torch.randn(shape, generator=draw) / 4 for name, shape in SHAPES.items()}
    return state | changes


def save(state, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return str(path)


def rows(n=200):
    return 3 * torch.randn(n, D_IN, generator=torch.Generator().manual_seed(1)) + 1


def of_the_card(state, x, k):
    """Activations as the code of the cards has them, and the reconstruction of their terms."""
    pre_acts = x @ state["W_enc"].T + state["b_enc"]
    values, latents = pre_acts.topk(k, dim=-1)
    acts = torch.zeros_like(pre_acts)
    acts.scatter_(-1, latents, values)
    return acts, acts @ state["W_dec"].T + state["b_dec"]


def close(found, expected):
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * scale)


def refused(path, sentence, **settings):
    with pytest.raises(UserError, match=sentence) as caught:
        sae.load(str(path), **settings)
    assert "\n" not in str(caught.value)


def test_a_layers_file_means_what_the_code_of_its_card_computes(tmp_path):
    state = state_of()
    path = save(state, tmp_path / NAME / "layer5.sae.pt")
    acts, x_hat = of_the_card(state, rows(), K)
    for found in (sae.load(path), sae.load(str(tmp_path / NAME))):
        close(found.encode(rows()), acts)
        close(found(rows()), x_hat)
        assert torch.equal(found.encode(rows()) != 0, acts != 0)
        assert found.activation == TopK(K)
        assert metadata_of(found) == {
            "model_name": "Qwen/Qwen3-8B-Base",
            "hook_name": "blocks.5.hook_resid_post",
        }


def test_latents_below_zero_are_left_out_where_the_code_of_the_card_keeps_them(tmp_path):
    # One row has three latents above zero, and k is seven.
    state = state_of(b_enc=torch.full((D_SAE,), -100.0))
    state["b_enc"][:3] = 100.0
    found = sae.load(save(state, tmp_path / NAME / "layer5.sae.pt"))
    acts, _ = of_the_card(state, rows(), K)
    assert int((acts != 0).sum(-1).min()) == K
    assert int((acts > 0).sum(-1).max()) == 3
    close(found.encode(rows()), acts.relu())


@pytest.mark.parametrize("name", RELEASES)
def test_the_name_of_a_release_says_model_width_and_k(name, tmp_path):
    model, d_sae, k = RELEASES[name]
    state = state_of(W_enc=torch.ones(d_sae, 2), W_dec=torch.ones(2, d_sae))
    state |= {"b_enc": torch.ones(d_sae), "b_dec": torch.ones(2)}
    found = sae.load(save(state, tmp_path / name / "layer63.sae.pt"))
    assert (found.model_name, found.d_sae, found.activation.k) == (model, d_sae, k)
    assert found.hook_name == "blocks.63.hook_resid_post"


def test_in_the_cache_of_the_hub_the_repository_says_k(tmp_path):
    folder = tmp_path / f"models--Qwen--{NAME}"
    blob = save(state_of(), folder / "blobs/0123")
    place = folder / "snapshots/89ab/layer5.sae.pt"
    place.parent.mkdir(parents=True)
    place.symlink_to(blob)
    found = sae.load(str(place))
    assert (found.activation.k, found.model_name) == (K, "Qwen/Qwen3-8B-Base")


def test_a_folder_without_k_in_its_name_is_read_once_a_name_says_it(tmp_path, monkeypatch):
    path = save(state_of(), tmp_path / "mine/layer5.sae.pt")
    sentence = (
        "does not say k, and neither does the name of its folder, mine; put it into a folder"
    )
    refused(path, sentence + r" whose name ends in L0_50")
    refused(tmp_path / "mine", sentence)
    monkeypatch.chdir(tmp_path / "mine")
    refused("layer5.sae.pt", sentence)
    # Neither does a number that is not at the end, or not of latents.
    for name in (f"{NAME}-copy", "mine-50"):
        (tmp_path / name).symlink_to("mine")
        refused(tmp_path / name, "does not say k")
    (tmp_path / "mine-L0_9").symlink_to("mine")
    found = sae.load(str(tmp_path / "mine-L0_9/layer5.sae.pt"))
    assert (found.activation.k, found.hook_name) == (9, "blocks.5.hook_resid_post")
    assert "model_name" not in metadata_of(found)


def test_a_folder_with_several_layers_asks_which(tmp_path):
    for layer in (0, 1):
        save(state_of(), tmp_path / NAME / f"layer{layer}.sae.pt")
    sentence = r"holds 2 layers as layer\*\.sae\.pt; give one, such as .*/layer0\.sae\.pt"
    refused(tmp_path / NAME, sentence)
    refused(tmp_path, f"{NAME} {sentence}")
    assert sae.load(str(tmp_path / NAME / "layer1.sae.pt")).hook_name.startswith("blocks.1.")


def test_a_file_of_another_name_is_read_where_the_format_is_given(tmp_path):
    path = save(state_of(), tmp_path / NAME / "mine.pt")
    found = sae.load(path, format="qwen_scope")
    assert found.activation == TopK(K)
    assert "hook_name" not in metadata_of(found)
    (tmp_path / NAME / "mine.pt").unlink()
    refused(tmp_path / NAME, "holds no dictionary of qwen_scope", format="qwen_scope")


def test_qwens_files_and_openais_are_told_apart(tmp_path):
    qwens = tmp_path / NAME / "layer5.sae.pt"
    save(state_of(), qwens)
    write_dictionary(random_dictionary("standard"), tmp_path / "openai", "openai")
    for path, name in ((qwens, "qwen_scope"), (tmp_path / "openai/0.pt", "openai")):
        for place in (path, path.parent):
            assert [n for n, f in FORMATS.items() if f.recognises(place)] == [name]
    # Both in one folder are two formats.
    shutil.copyfile(tmp_path / "openai/0.pt", tmp_path / NAME / "0.pt")
    refused(
        tmp_path / NAME,
        "could be a dictionary of openai or qwen_scope; say which with format=openai",
    )
    assert sae.load(str(tmp_path / NAME), format="qwen_scope").activation == TopK(K)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("SAE-Res-Qwen3-8B-Base-W64K-L0_7", "says W64K, 65536 latents, but the file has 2048"),
        ("SAE-Res-Qwen3-8B-Base-W2K-L0_0", "k=0; give 1 to d_sae=2048"),
        ("SAE-Res-Qwen3-8B-Base-W2K-L0_2049", "k=2049; give 1 to d_sae=2048"),
    ],
)
def test_a_name_that_contradicts_the_weights_is_refused(name, sentence, tmp_path):
    refused(save(state_of(), tmp_path / name / "layer5.sae.pt"), sentence)


def test_it_is_only_read(tmp_path):
    with pytest.raises(UserError, match="format=qwen_scope is only read; choose one of saelen"):
        write_dictionary(random_dictionary("topk"), tmp_path / "out", "qwen_scope")
    with pytest.raises(UserError, match="format=qwen_scope is only read"):
        sae.export(run=str(tmp_path), format="qwen_scope")
    assert list(tmp_path.iterdir()) == []


def test_a_layers_file_is_imported_into_a_run(tiny_run, tiny_model, tmp_path, capsys):
    shutil.copytree(tiny_run / "cache.zarr", tmp_path / "run/cache.zarr")
    state, run = state_of(), f"run={tmp_path / 'run'}"
    path = save(state, tmp_path / NAME / "layer1.sae.pt")
    # The tiny model stands in for Qwen's.
    words = [run, f"model_name={tiny_model}", "format=qwen_scope"]
    assert main(["import", path, *words]) == 0
    found = sae.load(str(tmp_path / "run/dictionaries/layer1.sae.pt"))
    assert (found.activation.k, found.hook_name) == (K, "blocks.1.hook_resid_post")
    assert torch.equal(found.W_enc, state["W_enc"].t())
    assert main(["import", path, run]) == 2
    assert "belongs to Qwen/Qwen3-8B-Base, but" in capsys.readouterr().err
