"""The model's loss with a reconstruction spliced in, against an independent computation."""

import copy
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.world import harvest_settings, random_dictionary, training_json

import sae
from sae.base.errors import UserError
from sae.dictionary import Dictionary, ReLU
from sae.dictionary.files import save_dictionary
from sae.dictionary.metadata import dictionary_of, metadata_of
from sae.evaluation.behaviour import behaviour
from sae.models.hooks import find_site
from sae.models.load import ModelConfig, load_model

HOOK = "blocks.1.hook_resid_post"
made = Dictionary.from_weights
D = 32


@pytest.fixture(scope="module")
def tiny(tiny_model):
    return load_model(ModelConfig(name=str(tiny_model), device="cpu"))


@pytest.fixture(scope="module")
def model(tiny_model, tmp_path_factory):
    """The tiny model with sharper opinions, so that an ablation costs it more than chance."""
    found = load_model(ModelConfig(name=str(tiny_model), device="cpu"))
    with torch.no_grad():
        found.module.model.norm.weight.mul_(12)
    folder = tmp_path_factory.mktemp("sharp")
    found.module.save_pretrained(folder)
    found.tokenizer.save_pretrained(folder)
    return load_model(ModelConfig(name=str(folder), device="cpu"))


@pytest.fixture(scope="module")
def tokens(tiny_run, model):
    """Text by the model itself, which alone finds it likely."""
    cache = sae.open_cache(tiny_run / "cache.zarr")
    begin = torch.from_numpy(cache.tokens[cache.held_out][:12, :4]).long()
    torch.manual_seed(0)
    return model.module.generate(
        begin,
        attention_mask=torch.ones_like(begin),
        max_new_tokens=28,
        min_new_tokens=28,
        do_sample=True,
        suppress_tokens=[0, 1],
        pad_token_id=0,
    )


def identity():
    """Reconstructs exactly: one latent for each sign of each coordinate."""
    eye = torch.eye(D)
    both = torch.cat([eye, -eye], dim=1)
    return made(both, torch.zeros(2 * D), both.t().contiguous(), torch.zeros(D))


def nothing():
    """Reconstructs zero."""
    return made(torch.zeros(D, 4), torch.zeros(4), torch.zeros(4, D), torch.zeros(D))


def scores(model, tokens, dictionary, mean=None):
    point = find_site(model.module, HOOK)
    mean = torch.zeros(D) if mean is None else mean
    return behaviour(model, point, tokens, {"x": dictionary}, mean, batch_size=5)["x"].values


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
    constant = made(blank.W_enc, blank.b_enc, blank.W_dec, mean)
    found = scores(model, tokens, constant, mean)
    assert found["ce_loss_score_mean_ablation"] == pytest.approx(0, abs=1e-9)


def test_all_figures_equal_an_independent_computation(tiny_run, model, tokens):
    """A float64 model whose second block is overwritten by hand, position by position."""
    dictionary = sae.load(str(tiny_run / "dictionaries/strong"))
    found = scores(model, tokens, dictionary)
    text = (tokens != 0) & (tokens != 1)
    scored = text[:, :-1] & text[:, 1:]
    double = load_model(ModelConfig(name=model.record.name, device="cpu")).module.double()
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


def test_a_share_of_what_chance_moves_is_not_measured(model, tokens):
    """Of an MLP that adds next to nothing, against the spread of losses token by token."""
    quiet = replace(model, module=copy.deepcopy(model.module))
    with torch.no_grad():
        quiet.module.model.layers[1].mlp.down_proj.weight.mul_(1e-6)
    point = find_site(quiet.module, MLP)
    found = behaviour(quiet, point, tokens, {"x": nothing()}, torch.zeros(D), batch_size=5)["x"]
    text = (tokens != 0) & (tokens != 1)
    scored = text[:, :-1] & text[:, 1:]

    def losses(scale):
        module = copy.deepcopy(quiet.module)
        module.model.layers[1].mlp.down_proj.weight.data.mul_(scale)
        with torch.no_grad():
            log_probs = module.double()(tokens).logits.log_softmax(-1)[:, :-1][scored]
        return -log_probs.gather(1, tokens[:, 1:][scored][:, None])[:, 0]

    differences = losses(0) - losses(1)
    error = differences.std() / len(differences) ** 0.5
    assert differences.mean() < max(3 * error, 1e-4)
    why = found.not_measurable["ce_loss_score"]
    assert re.search(r"zeros in the activations' place change CE by \S+ nats .* chance", why)
    assert "no more than rounding" in found.not_measurable["kl_div_score"]
    assert found.values["ce_loss_with_ablation"] == pytest.approx(float(losses(0).mean()), 1e-4)
    # The whole of the block's output is no chance.
    loud = behaviour(
        model, find_site(model.module, HOOK), tokens, {"x": nothing()}, torch.zeros(D)
    )["x"]
    assert "kl_div_score" in loud.values


def test_text_without_two_tokens_in_a_row_is_refused(model, tokens):
    with pytest.raises(UserError, match="the held-out text has no two consecutive tokens"):
        scores(model, torch.zeros_like(tokens), nothing())


MID, POST, MLP = (f"blocks.1.{h}" for h in ("hook_resid_mid", "mlp.hook_post", "hook_mlp_out"))


def transcoder_scores(model, tokens, reconstruct, source=MID, point=MLP, mean=None):
    return behaviour(
        model,
        find_site(model.module, point),
        tokens,
        {"x": reconstruct},
        torch.zeros(D) if mean is None else mean,
        source=find_site(model.module, source),
        batch_size=5,
    )["x"].values


def exact_transcoder(model, *, skip: bool, **metadata) -> Dictionary:
    """The matrix after the MLP's activations, as a skip, or as a latent for each sign."""
    matrix = model.module.model.layers[1].mlp.down_proj.weight.detach().clone()
    d_in = matrix.shape[1]
    both = torch.cat([torch.eye(d_in), -torch.eye(d_in)], dim=1)
    signed = both.t() @ matrix.t()
    weights = {
        "W_enc": both,
        "b_enc": torch.zeros(2 * d_in),
        "W_dec": torch.zeros_like(signed) if skip else signed,
        "b_dec": torch.zeros(D),
    }
    if skip:
        weights["W_skip"] = matrix
    return dictionary_of(weights, ReLU(), Path("exact"), metadata)


@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_that_computes_what_the_model_does_scores_one(model, tokens, skip):
    found = transcoder_scores(model, tokens, exact_transcoder(model, skip=skip), source=POST)
    assert found["kl_div_score"] == pytest.approx(1, abs=1e-5)
    assert found["kl_div_with_ablation"] > 0.005
    # Without its MLP this model's loss changes by 0.005, so a loss's rounding shows here.
    assert found["ce_loss_score"] == pytest.approx(1, abs=1e-3)


def test_a_transcoder_that_is_the_mlp_scores_one_from_inside_the_same_block(model, tokens):
    block = model.module.model.layers[1]
    norm, mlp = copy.deepcopy(block.post_attention_layernorm), copy.deepcopy(block.mlp)
    found = transcoder_scores(model, tokens, lambda x: mlp(norm(x)))
    assert found["ce_loss_score"] == pytest.approx(1, abs=1e-5)
    assert found["kl_div_with_sae"] == pytest.approx(0, abs=1e-5)


def test_ablations_act_where_a_transcoder_writes(model, tokens):
    mean = torch.randn(D, generator=torch.Generator().manual_seed(0))
    zero = transcoder_scores(model, tokens, lambda x: torch.zeros(len(x), D), POST)
    assert zero["ce_loss_score"] == pytest.approx(0, abs=1e-9)
    constant = transcoder_scores(
        model, tokens, lambda x: mean.expand(len(x), D), POST, mean=mean
    )
    assert constant["ce_loss_score_mean_ablation"] == pytest.approx(0, abs=1e-9)
    inside = scores_at(model, tokens, MLP)
    for name in ("ce_loss_with_ablation", "kl_div_with_ablation"):
        assert zero[name] == pytest.approx(inside[name], rel=1e-9)


def scores_at(model, tokens, hook_name):
    point = find_site(model.module, hook_name)
    found = behaviour(model, point, tokens, {"x": nothing()}, torch.zeros(D), batch_size=5)
    return found["x"].values


def test_a_transcoder_replaces_text_positions_and_leaves_special_tokens(model, tokens):
    """Against a copy of the model whose MLP is overwritten by hand, position by position."""
    dictionary = random_dictionary("gated", d_in=D, d_out=D, skip=True)
    tokens = tokens.clone()
    tokens[:, 7] = 1
    text = (tokens != 0) & (tokens != 1)
    module = copy.deepcopy(model.module)
    block, mid = module.model.layers[1], []
    block.post_attention_layernorm.register_forward_pre_hook(
        lambda _, args: mid.append(args[0])
    )

    def overwrite(_module, _args, output):
        new, x = output.clone(), mid.pop()
        for b, p in text.nonzero().tolist():
            new[b, p] = dictionary(x[b, p])
        return new

    block.mlp.register_forward_hook(overwrite)
    with torch.no_grad():
        log_probs = module(tokens).logits.log_softmax(-1)[:, :-1]
    picked = -log_probs.gather(2, tokens[:, 1:, None])[..., 0]
    expected = picked[text[:, :-1] & text[:, 1:]].mean().item()
    found = transcoder_scores(model, tokens, dictionary)
    assert found["ce_loss_with_sae"] == pytest.approx(expected, rel=1e-5)
    assert found["ce_loss_with_sae"] != pytest.approx(found["ce_loss_without_sae"], abs=0.01)


def test_a_transcoder_that_goes_backwards_through_the_model_is_refused(model, tokens):
    with pytest.raises(
        UserError, match=r"an edit of blocks\.1\.hook_resid_mid reads .* computes later"
    ):
        transcoder_scores(model, tokens, identity(), source=MLP, point=MID)


@pytest.fixture(scope="module")
def transcoder_run(tmp_path_factory, tiny_model, tiny_text, model):
    """A run with a cache of two hooks, an exact transcoder and a random one."""
    run = tmp_path_factory.mktemp("transcoders") / "run"
    settings = harvest_settings(run, tiny_model, tiny_text)
    sae.harvest(**{**settings, "hook_names": [POST, MLP]})
    about = sae.open_cache(run / "cache.zarr").attributes
    metadata = {
        "model_name": about["model"]["hub_id"],
        "hook_name": POST,
        "hook_name_out": MLP,
        "sae_atlas": training_json(model=about["model"], data=about["data"]),
    }
    exact = exact_transcoder(model, skip=True, **metadata)
    save_dictionary(exact, run / "dictionaries/exact")
    random = random_dictionary("topk", d_in=64, d_out=D, **metadata)
    save_dictionary(random, run / "dictionaries/random")
    return run


@pytest.mark.slow
def test_eval_compares_a_transcoder_with_the_hook_that_it_writes(transcoder_run):
    figures = {f.id: f for f in sae.eval(run=str(transcoder_run), n_behaviour_tokens=256)}
    assert figures["exact"].values["explained_variance"] == pytest.approx(1, abs=1e-4)
    # What this small model loses by an ablation is chance, so CE itself is compared.
    exact = figures["exact"].values
    assert exact["ce_loss_with_sae"] == pytest.approx(exact["ce_loss_without_sae"], abs=1e-5)
    assert abs(exact["ce_loss_with_ablation"] - exact["ce_loss_without_sae"]) > 1e-4
    for figure in figures.values():
        assert (figure.hook_name, figure.hook_name_out) == (POST, MLP)
        assert figure.settings["k"] == 7
        assert not {"l1_coefficient", "target_l0"} & set(figure.settings)
    cache = sae.open_cache(transcoder_run / "cache.zarr")
    held_out = torch.from_numpy(cache.held_out)
    text = torch.from_numpy(cache.text_rows())[held_out]
    # The rows are chosen by the norms of the hook that is read.
    norms = torch.from_numpy(cache.norms(POST))[held_out]
    keep = text & (norms <= 10 * cache.statistics(POST)["norm_quantiles"][50])
    whole = slice(0, len(held_out))
    x, y = (cache.read(hook, whole)[held_out][keep].double() for hook in (POST, MLP))
    dictionary = sae.load(str(transcoder_run / "dictionaries/random"))
    y_hat = dictionary(x.float()).double()
    error = (y - y_hat).square().sum() / (y - y.mean(0)).square().sum()
    assert figures["random"].n_rows == len(x)
    assert figures["random"].values["explained_variance"] == pytest.approx(
        1 - error.item(), rel=1e-4
    )
    assert figures["random"].values["l0"] == pytest.approx(7, abs=0.01)


@pytest.mark.parametrize("name", ["exact", "random"])
def test_a_transcoders_features_fire_where_it_reads_and_push_where_it_writes(
    transcoder_run, tiny, name
):
    """Of another width there, and (the exact one, which is all skip) of no norm at all."""
    dictionary = sae.load(str(transcoder_run / "dictionaries" / name))
    atlas = sae.analyze(run=str(transcoder_run), dictionary=name)
    rows = atlas.features()
    assert (atlas.record.hook_name, atlas.record.hook_name_out) == (POST, MLP)
    cache = sae.open_cache(transcoder_run / "cache.zarr")
    x = cache.read(POST, slice(0, len(cache.tokens)))[torch.from_numpy(cache.text_rows())]
    density = (dictionary.encode(x.float()) > 0).double().mean(0)
    assert [row["density"] for row in rows] == pytest.approx(density.tolist(), abs=1e-5)
    gain, head = tiny.module.model.norm.weight, tiny.module.lm_head.weight
    logits = ((dictionary.W_dec * gain) @ head.t()).detach()
    best = logits.max(dim=1).values.tolist()
    assert [row["top_logits"][0] for row in rows] == pytest.approx(best, abs=1e-4)


def steered_with(run, name):
    sae.analyze(run=str(run), dictionary=name)
    return sae.steer(
        run=str(run),
        dictionary=name,
        n_features=1,
        strengths=[0.0, 4.0],
        prompts=["the river", "ran past", "the mill", "she kept"],
        max_new_tokens=3,
    )


def test_steering_with_a_transcoder_adds_its_direction_where_it_writes(transcoder_run):
    (result,) = steered_with(transcoder_run, "random")["features"]
    w_dec = sae.load(str(transcoder_run / "dictionaries/random")).W_dec
    expected = float(w_dec[result["feature"]].norm()) * result["max_activation"]
    assert result["norm_at_strength_one"] == pytest.approx(expected, rel=1e-5)
    shift = {
        (m["direction"], m["strength"]): m["shift"]["mean"] for m in result["measurements"]
    }
    assert shift["feature", 0.0] == 0
    assert abs(shift["feature", 4.0]) > 1e-3


def test_a_feature_that_writes_nothing_is_refused(transcoder_run):
    """All that this transcoder writes goes through its linear path."""
    with pytest.raises(UserError, match=r"features=\d+ has a direction of length zero"):
        steered_with(transcoder_run, "exact")


@pytest.mark.parametrize("stage", ["eval", "analyze"])
def test_a_transcoder_needs_both_of_its_hooks_in_the_cache(
    transcoder_run, tiny_model, tiny_text, tmp_path, stage
):
    settings = harvest_settings(tmp_path, tiny_model, tiny_text)
    sae.harvest(**{**settings, "hook_names": [POST], "n_tokens": 1024})
    with pytest.raises(
        UserError, match=r"harvest both with hook_names=\[.*hook_post,.*mlp_out\]"
    ):
        getattr(sae, stage)(
            run=str(transcoder_run), dictionary="random", cache=str(tmp_path / "cache.zarr")
        )


def test_a_dictionary_of_another_output_width_is_refused(transcoder_run, tmp_path):
    random = sae.load(str(transcoder_run / "dictionaries/random"))
    narrow = random_dictionary("topk", d_in=64, d_out=D - 1, **metadata_of(random))
    save_dictionary(narrow, tmp_path / "dictionaries/narrow")
    with pytest.raises(UserError, match=r"d_out=31, but .* rows of width 32"):
        sae.eval(run=str(tmp_path), cache=str(transcoder_run / "cache.zarr"))


@pytest.mark.slow
def test_eval_writes_figures_of_every_dictionary_on_held_out_rows_only(tiny_run, tmp_path):
    import shutil

    shutil.copytree(tiny_run, tmp_path / "run")
    figures = sae.eval(run=str(tmp_path / "run"), n_behaviour_tokens=256)
    assert [f.id for f in figures] == ["strong", "weak"]
    cache = sae.open_cache(tiny_run / "cache.zarr")
    held_out = torch.from_numpy(cache.held_out)
    text = torch.from_numpy(cache.text_rows())
    x = cache.read(HOOK, slice(0, len(held_out)))[held_out][text[held_out]].double()
    for figure in figures:
        dictionary = sae.load(str(tiny_run / "dictionaries" / figure.id))
        feature_acts = torch.relu(x @ dictionary.W_enc.double() + dictionary.b_enc.double())
        x_hat = feature_acts @ dictionary.W_dec.double() + dictionary.b_dec.double()
        error = (x - x_hat).square().sum() / (x - x.mean(0)).square().sum()
        assert figure.n_rows == len(x)
        assert figure.values["explained_variance"] == pytest.approx(1 - error.item(), abs=1e-5)
        l0 = (feature_acts > 0).sum(1).double().mean().item()
        assert figure.values["l0"] == pytest.approx(l0, rel=1e-3)
    again = sae.eval(run=str(tmp_path / "run"), n_behaviour_tokens=256)
    assert again == figures


def test_a_cache_that_holds_out_more_than_the_training_did_is_refused(
    tiny_run, tiny_model, tiny_text, tmp_path
):
    settings = harvest_settings(tmp_path, tiny_model, tiny_text)
    data = sae.DataConfig(name=str(tiny_text), held_out_fraction=0.3)
    sae.harvest(**{**settings, "data": data})
    cache = str(tmp_path / "cache.zarr")
    with pytest.raises(ValueError, match=r"trained with 0\.1 held out"):
        sae.eval(run=str(tiny_run), cache=cache, dictionary="weak")
