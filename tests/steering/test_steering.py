"""Steering: exact where it must be, beside its baselines."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.feature_rows import row
from support.world import random_dictionary

import sae
from sae.base.errors import UserError
from sae.edits import edited
from sae.models.hooks import find_site
from sae.models.load import ModelConfig, load_model
from sae.steering.arms import random_direction
from sae.steering.config import SteerConfig
from sae.steering.generate import generate_beside, perplexity, steered, with_baseline
from sae.steering.material import prompts_of
from sae.steering.steer import steer
from sae.text.packing import Marks
from sae.writing import Sampling, generate, prompt_ids

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_model(ModelConfig(name=str(tiny_model), device="cpu"))


@pytest.fixture(scope="module")
def site(model):
    return find_site(model.module, HOOK)


@pytest.fixture(scope="module")
def ids(model):
    return prompt_ids(model, "the old mill where she kept")


def vectors(n=3, scale=4.0):
    return torch.randn(n, 32, generator=torch.Generator().manual_seed(3)) * scale


def logits(model, ids, *edits):
    with torch.no_grad(), edited(model.module, edits):
        return model.module(ids).logits


def test_strength_zero_leaves_the_logits_bit_equal(model, site, ids):
    prompts = ids.expand(2, -1)
    found = logits(model, prompts, steered(site, torch.zeros(2, 32)))
    assert torch.equal(found, logits(model, prompts))


def test_a_sequence_with_a_zero_vector_is_untouched_beside_a_steered_one(model, site, ids):
    prompts = ids.expand(2, -1)
    both = torch.stack([torch.zeros(32), vectors(1)[0]])
    plain, found = logits(model, prompts), logits(model, prompts, steered(site, both))
    assert torch.equal(plain[0], found[0])
    assert not torch.allclose(plain[1], found[1])


def test_the_first_position_is_not_steered_even_where_it_is_alone(model, site, ids):
    one = ids[None, :1]
    edit = steered(site, vectors(1))
    assert torch.equal(logits(model, one, edit), logits(model, one))
    assert torch.equal(logits(model, ids[None], edit)[:, 0], logits(model, ids[None])[:, 0])


def written(model, site, ids, vectors, sampling, **more):
    prompts = ids.expand(len(vectors), -1)
    return generate(model, prompts, [steered(site, vectors)], sampling, **more)


@pytest.mark.parametrize("n_ids", [None, 1])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_writing_with_the_key_value_cache_equals_writing_without(
    model, site, ids, temperature, n_ids
):
    """Also after a prompt of one token, which is not steered while all that follows is."""
    ids = ids[:n_ids]
    sampling = Sampling(max_new_tokens=20, temperature=temperature, seed=5)
    cached, plain = (
        written(model, site, ids, vectors(), sampling, use_cache=use) for use in (True, False)
    )
    assert torch.equal(cached, plain)
    unsteered = written(model, site, ids, torch.zeros(3, 32), sampling)
    assert not torch.equal(cached, unsteered)
    assert torch.equal(cached[:, :1], unsteered[:, :1]) or n_ids is None


def test_writing_leaves_the_callers_random_state_alone_and_depends_on_the_seed(
    model, site, ids
):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    texts = [
        written(
            model, site, ids, vectors(), Sampling(max_new_tokens=9, temperature=1.0, seed=s)
        )
        for s in (1, 1, 2)
    ]
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], texts[2])


def test_a_batch_of_one_writes_what_a_batch_of_many_writes(model, site, ids):
    sampling = Sampling(max_new_tokens=12, temperature=0.0, seed=0)
    together = written(model, site, ids, vectors(), sampling)
    alone = torch.cat([written(model, site, ids, v[None], sampling) for v in vectors()])
    assert torch.equal(together, alone)


def test_perplexity_equals_the_loss_that_the_model_itself_reports(model, ids):
    continuations = torch.randint(2, 300, (2, 7), generator=torch.Generator().manual_seed(0))
    found = perplexity(model, ids.expand(2, -1), continuations)
    for continuation, value in zip(continuations, found, strict=True):
        whole = torch.cat([ids, continuation])[None]
        labels = whole.clone()
        labels[:, : len(ids)] = -100
        with torch.no_grad():
            loss = model.module(whole, labels=labels).loss
        assert float(value) == pytest.approx(float(loss.exp()), rel=1e-4)


def test_a_random_direction_has_the_norm_of_the_features_and_depends_on_the_seed():
    like = vectors(1)[0]
    first, again, other = (random_direction(like, s) for s in (1, 1, 2))
    assert float(first.norm()) == pytest.approx(float(like.norm()), rel=1e-5)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert abs(float(torch.cosine_similarity(first, like, dim=0))) < 0.9


class Rows:
    """An atlas of these records."""

    record = SimpleNamespace(without_logits="it has no head")

    def __init__(self, rows):
        self.features = lambda: rows


def without_tokens(feature, density=0.001):
    kept = ("feature", "density", "max_activation")
    return {key: value for key, value in row(feature, density).items() if key in kept}


@pytest.mark.parametrize(
    ("rows", "settings", "sentence"),
    [
        ([row(0, density=0), row(1, density=0)], {}, "no feature of this dictionary fired"),
        ([row(0, density=0), row(1)], {"features": [0]}, "features=0 never fired"),
        (
            [without_tokens(0), without_tokens(1)],
            {},
            r"no promoted tokens that could be measured \(it has no head\)",
        ),
        (
            [without_tokens(0)],
            {"features": [0]},
            r"no promoted tokens that could be measured \(it has no head\)",
        ),
        ([without_tokens(0, density=0)], {}, "no feature of this dictionary fired"),
    ],
)
def test_nothing_to_steer_with_is_refused_before_a_model_is_loaded(
    rows, settings, sentence, monkeypatch
):
    monkeypatch.setattr("sae.steering.steer.recorded_model", lambda *_: pytest.fail("loaded"))
    with pytest.raises(UserError, match=sentence):
        steer(SteerConfig(**settings), random_dictionary(), Rows(rows), SimpleNamespace())


@pytest.fixture(scope="module")
def steered_run(tiny_run, tmp_path_factory):
    run = tmp_path_factory.mktemp("steered") / "run"
    shutil.copytree(tiny_run, run)
    atlas = sae.analyze(run=str(run), dictionary="strong")
    live = [r["feature"] for r in atlas.features() if r["max_activation"] > 0][:2]
    settings = {
        "run": str(run),
        "dictionary": "strong",
        "features": live,
        "strengths": [-4.0, 0.0, 4.0],
        "prompts": ["the river ran", "she kept seven", "the old mill", "before morning it"],
        "reworded": ["a river ran"],
        "max_cost": 90.0,
        "max_new_tokens": 6,
    }
    return settings, sae.steer(**settings)


def test_a_prompt_of_one_token_goes_on_as_it_is_and_is_steered_from_there(model, site):
    bare = replace(model, marks=Marks())
    assert len(prompt_ids(bare, "t")) == 1
    sampling = Sampling(max_new_tokens=12, temperature=0.0, seed=0)
    directions = with_baseline(vectors(1)[0], 2.0, 0)
    plain, turned, _ = generate_beside(bare, site, "t", directions, sampling)
    assert turned.text != plain.text
    one = replace(sampling, max_new_tokens=1)
    plain, turned, _ = generate_beside(bare, site, "t", directions, one)
    assert turned.text == plain.text


def test_a_dose_after_a_prompt_of_one_token_is_refused(model):
    with pytest.raises(
        UserError, match="the prompt 't' has only one token, and the first token is never"
    ):
        prompts_of(replace(model, marks=Marks()), ["t", "the river", "the mill", "she kept"])


def test_turning_a_feature_up_raises_its_own_top_tokens_more_than_turning_it_down(steered_run):
    for result in steered_run[1]["features"]:
        shift = {
            m["strength"]: m["shift"]["mean"]
            for m in result["measurements"]
            if m["direction"] == "feature"
        }
        assert shift[0.0] == 0.0
        assert shift[4.0] > shift[-4.0]


def plainly_written(module, prompts, sampling):
    """Tokens drawn by a loop of forward passes, never the one that ends a text (1)."""
    texts = prompts
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(sampling.seed)
        for _ in range(sampling.max_new_tokens):
            logits = module(texts, use_cache=False).logits[:, -1]
            logits[:, 1] = -torch.inf
            if sampling.temperature:
                found = torch.multinomial((logits / sampling.temperature).softmax(-1), 1)
            else:
                found = logits.argmax(-1, keepdim=True)
            texts = torch.cat([texts, found], dim=1)
    return texts[:, prompts.shape[1] :]


def test_the_unsteered_text_is_what_the_model_writes_by_itself(model, steered_run, tmp_path):
    settings, _ = steered_run
    run = shutil.copytree(settings["run"], tmp_path / "run")
    some = {"run": str(run), "temperature": 0.0, "features": settings["features"][:1]}
    settings = settings | some
    (result,) = sae.steer(**settings)["features"]
    ids = prompt_ids(model, "she kept seven")
    sampling = Sampling(max_new_tokens=6, temperature=0.0, seed=0)
    texts = plainly_written(model.module, ids[None], sampling)
    sample = next(
        s for s in result["samples"] if s["strength"] == 0 and s["prompt"] == "she kept seven"
    )
    assert sample["text"] == model.tokenizer.decode(texts[0])


def hostile_defaults(n_tokens):
    """All that a model's `generation_config.json` can bend what is written with."""
    odd = list(range(3, n_tokens, 2))
    return {
        "do_sample": True,
        "temperature": 7.0,
        "top_k": 1,
        "top_p": 0.1,
        "min_p": 0.9,
        "typical_p": 0.2,
        "epsilon_cutoff": 0.5,
        "eta_cutoff": 0.5,
        "num_beams": 3,
        "num_return_sequences": 2,
        "length_penalty": 9.0,
        "repetition_penalty": 30.0,
        "no_repeat_ngram_size": 1,
        "bad_words_ids": [[token] for token in odd],
        "suppress_tokens": odd,
        "begin_suppress_tokens": odd,
        "sequence_bias": [[[5], 50.0]],
        "forced_bos_token_id": 5,
        "forced_eos_token_id": 5,
        "eos_token_id": odd,
        "pad_token_id": 9,
        "exponential_decay_length_penalty": [1, 9.0],
        "guidance_scale": 4.0,
        "renormalize_logits": True,
        "max_length": 3,
        "max_time": 0.0,
        "stop_strings": ["e"],
        "return_dict_in_generate": True,
        "output_scores": True,
    }


def test_what_comes_with_a_model_for_writing_leaks_into_no_measurement(
    model, site, ids, tiny_model, tmp_path
):
    folder = shutil.copytree(tiny_model, tmp_path / "hostile")
    settings = hostile_defaults(model.module.config.vocab_size)
    (folder / "generation_config.json").write_text(json.dumps(settings))
    found = load_model(ModelConfig(name=str(folder), device="cpu"))
    for temperature in (0.0, 0.9):
        sampling = Sampling(max_new_tokens=12, temperature=temperature, seed=3)
        prompts = ids.expand(3, -1)
        expected = plainly_written(model.module, prompts, sampling)
        assert torch.equal(generate(found, prompts, [], sampling), expected)
        steered_texts = written(model, site, ids, vectors(), sampling)
        assert torch.equal(written(found, site, ids, vectors(), sampling), steered_texts)
        directions = with_baseline(vectors(1)[0], 2.0, 0)
        both = [
            generate_beside(m, site, "the river", directions, sampling) for m in (model, found)
        ]
        assert both[0] == both[1]


def test_a_prompt_begins_as_a_harvested_document_does(model):
    ids = prompt_ids(model, "the river")
    assert ids[0] == model.bos_token_id
    assert torch.equal(prompt_ids(model, "<s>the river"), ids)


@pytest.mark.parametrize("n", [126, 110])
def test_prompts_that_leave_no_room_are_refused_before_anything_is_written(
    steered_run, monkeypatch, n
):
    monkeypatch.setattr("sae.steering.written.generate", lambda *_: pytest.fail("wrote"))
    who = "the prompt" if n == 126 else "the prompt that tells of a feature"
    asked = steered_run[0] | {
        "max_new_tokens": n,
        "prompts": ["the", "the old", "a mill", "it"],
    }
    with pytest.raises(
        UserError, match=rf"^{who} has \d+ tokens and {n} .* reads only 128 at once"
    ):
        sae.steer(**asked)


def test_what_texts_were_drawn_by_is_kept_beside_them(steered_run):
    settings, _ = steered_run
    kept = json.loads((Path(settings["run"]) / "steering" / "strong.json").read_text())
    assert kept["sampling"] == {
        "max_new_tokens": 6,
        "temperature": 0.7,
        "seed": 0,
        "to_the_end": True,
    }


def test_steering_again_is_reused(steered_run, capsys):
    settings, results = steered_run
    assert sae.steer(**settings) == results
    assert "reused" in capsys.readouterr().err
