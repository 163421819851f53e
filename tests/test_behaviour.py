"""The model's loss with a reconstruction spliced in, against an independent computation."""

import pytest
import torch

import sae
from sae.analysis.behaviour import behaviour
from sae.dictionary import Dictionary
from sae.models.hooks import find_hook
from sae.models.load import ModelConfig, load_model

HOOK = "blocks.1.hook_resid_post"
D = 32


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_model(ModelConfig(name=str(tiny_model), device="cpu"))


@pytest.fixture(scope="module")
def tokens(tiny_run):
    cache = sae.open_cache(tiny_run / "cache.zarr")
    return torch.from_numpy(cache.tokens[cache.held_out][:12]).long()


def identity():
    """Reconstructs exactly: one latent for each sign of each coordinate."""
    eye = torch.eye(D)
    both = torch.cat([eye, -eye], dim=1)
    return Dictionary(both, torch.zeros(2 * D), both.t().contiguous(), torch.zeros(D))


def nothing():
    """Reconstructs zero."""
    return Dictionary(torch.zeros(D, 4), torch.zeros(4), torch.zeros(4, D), torch.zeros(D))


def scores(model, tokens, dictionary, mean=None):
    point = find_hook(model.module, HOOK)
    mean = torch.zeros(D) if mean is None else mean
    return behaviour(model, point, tokens, {"x": dictionary}, mean, batch_size=5)["x"]


def test_an_identity_dictionary_scores_one(model, tokens):
    found = scores(model, tokens, identity())
    assert found["ce_loss_score"] == pytest.approx(1, abs=1e-5)
    assert found["kl_div_score"] == pytest.approx(1, abs=1e-5)
    assert found["kl_div_with_sae"] == pytest.approx(0, abs=1e-5)


def test_a_zero_dictionary_scores_zero(model, tokens):
    found = scores(model, tokens, nothing())
    assert found["ce_loss_score"] == pytest.approx(0, abs=1e-9)
    assert found["kl_div_score"] == pytest.approx(0, abs=1e-9)


def test_a_dictionary_that_returns_the_mean_scores_zero_against_mean_ablation(model, tokens):
    mean = torch.randn(D, generator=torch.Generator().manual_seed(0))
    blank = nothing()
    constant = Dictionary(blank.W_enc, blank.b_enc, blank.W_dec, mean)
    found = scores(model, tokens, constant, mean)
    assert found["ce_loss_score_mean_ablation"] == pytest.approx(0, abs=1e-9)


def test_all_figures_equal_an_independent_computation(tiny_run, model, tokens):
    """A float64 model whose second block is overwritten by hand, position by position."""
    dictionary = sae.load(str(tiny_run / "dictionaries/strong"))
    found = scores(model, tokens, dictionary)
    text = (tokens != 0) & (tokens != 1)
    scored = text[:, :-1] & text[:, 1:]
    double = load_model(ModelConfig(name=model.name, device="cpu")).module.double()
    block = double.model.layers[1]
    state = {}

    def overwrite(_module, _args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = hidden.clone()
        for b, p in text.nonzero().tolist():
            hidden[b, p] = state["new"](hidden[b, p])
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def run(new):
        state["new"] = new
        handle = block.register_forward_hook(overwrite)
        with torch.no_grad():
            log_probs = double(tokens).logits.log_softmax(-1)[:, :-1][scored]
        handle.remove()
        return log_probs, -log_probs.gather(1, tokens[:, 1:][scored][:, None]).mean().item()

    weights = [
        w.double()
        for w in (dictionary.W_enc, dictionary.b_enc, dictionary.W_dec, dictionary.b_dec)
    ]

    def reconstruct(x):
        return torch.relu(x @ weights[0] + weights[1]) @ weights[2] + weights[3]

    clean, ce_clean = run(lambda x: x)
    with_sae, ce_sae = run(reconstruct)
    ablated, ce_zero = run(torch.zeros_like)

    def kl(other):
        return (clean.exp() * (clean - other)).sum(1).mean().item()

    expected = {
        "ce_loss_without_sae": ce_clean,
        "ce_loss_with_sae": ce_sae,
        "ce_loss_with_ablation": ce_zero,
        "ce_loss_score": (ce_zero - ce_sae) / (ce_zero - ce_clean),
        "kl_div_with_sae": kl(with_sae),
        "kl_div_with_ablation": kl(ablated),
        "kl_div_score": (kl(ablated) - kl(with_sae)) / kl(ablated),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=2e-3, abs=2e-5), name


def test_eval_writes_figures_of_every_dictionary_on_held_out_rows_only(tiny_run, tmp_path):
    import shutil

    shutil.copytree(tiny_run, tmp_path / "run")
    figures = sae.eval(run=str(tmp_path / "run"), n_behaviour_tokens=256)
    assert [f["id"] for f in figures] == ["strong", "weak"]
    cache = sae.open_cache(tiny_run / "cache.zarr")
    held_out = torch.from_numpy(cache.held_out)
    text = torch.from_numpy(cache.text_rows())
    x = cache.read(HOOK, slice(0, len(held_out)))[held_out][text[held_out]].double()
    for figure in figures:
        dictionary = sae.load(str(tiny_run / "dictionaries" / figure["id"]))
        feature_acts = torch.relu(x @ dictionary.W_enc.double() + dictionary.b_enc.double())
        x_hat = feature_acts @ dictionary.W_dec.double() + dictionary.b_dec.double()
        error = (x - x_hat).square().sum() / (x - x.mean(0)).square().sum()
        assert figure["n_rows"] == len(x)
        assert figure["explained_variance"] == pytest.approx(1 - error.item(), abs=1e-5)
        l0 = (feature_acts > 0).sum(1).double().mean().item()
        assert figure["l0"] == pytest.approx(l0, rel=1e-3)
    again = sae.eval(run=str(tmp_path / "run"), n_behaviour_tokens=256)
    assert again == figures


def test_a_cache_that_holds_out_more_than_the_training_did_is_refused(
    tiny_run, tiny_model, tiny_text, tmp_path
):
    from conftest import harvest_settings

    settings = harvest_settings(tmp_path, tiny_model, tiny_text)
    data = sae.DataConfig(name=str(tiny_text), held_out_fraction=0.3)
    sae.harvest(**{**settings, "data": data})
    cache = str(tmp_path / "cache.zarr")
    with pytest.raises(ValueError, match=r"trained with 0\.1 held out"):
        sae.eval(run=str(tiny_run), cache=cache, dictionary="weak")
