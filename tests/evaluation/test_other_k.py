"""A topk dictionary read with another number of active latents, in Python and by commands."""

import pytest
import torch
from support.world import HOOK, random_dictionary

import sae
from sae.base.errors import UserError
from sae.dictionary.files import save_dictionary


@pytest.fixture
def run(tiny_run, tmp_path):
    """A run of its own, on the tiny run's cache, with a topk dictionary and another one."""
    (tmp_path / "cache.zarr").symlink_to(tiny_run / "cache.zarr")
    model = sae.open_cache(str(tiny_run / "cache.zarr")).model.name
    for name in ("topk", "jumprelu"):
        found = random_dictionary(name, hook_name=HOOK, model_name=model)
        save_dictionary(found, tmp_path / "dictionaries" / name)
    return tmp_path


@pytest.mark.parametrize("k", [1, 3, 48])
def test_another_k_keeps_the_largest_activations_of_the_same_latents(k):
    found, x = random_dictionary("topk"), torch.randn(20, 32)
    every = torch.relu(x @ found.W_enc + found.b_enc)
    other = found.with_k(k)
    expected = torch.zeros_like(every).scatter(1, (top := every.topk(k)).indices, top.values)
    assert torch.equal(other.encode(x), expected)
    support, values = other.encode_sparse(x)
    torch.testing.assert_close(support.matrix(values).to_dense(), expected)
    assert other.digest != found.digest
    assert other.with_k(found.activation.k).digest == found.digest


def test_only_topk_dictionaries_have_a_k_and_it_is_at_most_their_width():
    with pytest.raises(
        UserError, match=r"k=3 has an effect only on TopK dictionaries.*jumprelu.*leave out k"
    ):
        random_dictionary("jumprelu").with_k(3)
    with pytest.raises(UserError, match=r"k=49; give 1 to d_sae=48"):
        random_dictionary("topk").with_k(49)


@pytest.mark.slow
def test_eval_at_another_k_measures_a_dictionary_of_its_own_and_leaves_the_first_alone(run):
    usual = {"run": str(run), "n_behaviour_tokens": 128}
    (whole,) = sae.eval(dictionary="topk", **usual)
    (fewer,) = sae.eval(dictionary="topk", k=2, **usual)
    assert fewer.id == "topk-k-2"
    assert fewer.values["l0"] <= 2 < whole.values["l0"]
    assert fewer.settings["k"] == 2
    assert (run / "evals" / "topk.json").exists()
    # Its own k makes nothing new, and the name can be given to any command.
    assert sae.eval(dictionary="topk-k-2", k=2, **usual)[0].id == "topk-k-2"
    names = {path.name for path in (run / "dictionaries").iterdir() if path.is_dir()}
    assert names == {"topk", "jumprelu", "topk-k-2"}
    atlas = sae.analyze(run=str(run), dictionary="topk", k=2)
    assert atlas.folder.name == "topk-k-2"


@pytest.mark.slow
def test_a_k_of_other_weights_is_refused_and_so_is_one_of_no_topk_dictionary(run):
    with pytest.raises(UserError, match="jumprelu, so leave out k"):
        sae.eval(run=str(run), dictionary="jumprelu", k=2)
    save_dictionary(
        sae.load(str(run / "dictionaries" / "topk")), run / "dictionaries" / "topk-k-2"
    )
    with pytest.raises(UserError, match=r"topk-k-2 belongs to other weights than topk has now"):
        sae.eval(run=str(run), dictionary="topk", k=2)
