"""Writing with allowed words alone, in every arm."""

import json
import math
import re
from dataclasses import replace

import pytest
import torch
from support.world import random_dictionary

from sae.base import UserError
from sae.edits import edited
from sae.models.load import ModelConfig, load_model
from sae.steering.limits import Controller, Limiter
from sae.steering.suppression import choose_suppressed, held_at_zero
from sae.steering.vocabulary import ARMS, FIGURES, VocabularyConfig, limit_vocabulary
from sae.steering.words import ROOT, Words, token_texts
from sae.text.packing import Marks
from sae.writing import Sampling, generate, prompt_ids

HOOK = "blocks.1.hook_resid_post"
PROMPTS = ["the old mill where she kept", "rain fell on"]
SAMPLING = Sampling(max_new_tokens=24, temperature=0.8, seed=3)
ALLOWED = "the river ran past old mill cats dog rain"


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_model(ModelConfig(name=str(tiny_model), device="cpu"))


@pytest.fixture(scope="module")
def dictionary(model):
    return random_dictionary(hook_name=HOOK, model_name=model.record.name)


def record(feature, density=0.1, ids=(5, 6), highest=3.0):
    return {
        "feature": feature,
        "density": density,
        "max_activation": highest,
        "top_logit_ids": [*ids],
    }


@pytest.fixture(scope="module")
def features(model, dictionary):
    """All promote tokens of letters that no allowed word has."""
    ids = [i for i in range(len(model.tokenizer)) if model.tokenizer.decode([i]) in ("j", "Q")]
    return [record(i, 0.1 + i / 1000, ids) for i in range(dictionary.d_sae)]


@pytest.fixture
def word_file(tmp_path):
    def written(text):
        path = tmp_path / "words.txt"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return written


def found_by_arm(found):
    return {row["arm"]: row for row in found["arms"]}


def texts_of(found):
    return {arm: [s["text"] for s in found["samples"] if s["arm"] == arm] for arm in ARMS}


@pytest.fixture(scope="module")
def limited(model, dictionary, features, tmp_path_factory):
    path = tmp_path_factory.mktemp("words") / "words.txt"
    path.write_text(ALLOWED, encoding="utf-8")
    config = VocabularyConfig(vocabulary=str(path), target=0.2, n_features=8)
    return limit_vocabulary(config, model, dictionary, features, PROMPTS, SAMPLING)


def test_the_result_is_json_with_a_number_for_each_prompt_in_every_arm(limited):
    assert json.loads(json.dumps(limited, allow_nan=False)) == limited
    assert [row["arm"] for row in limited["arms"]] == [*ARMS]
    for row in limited["arms"]:
        assert {len(row[key]) for key in FIGURES} == {len(PROMPTS)}
    assert [len(one) for one in limited["strengths"]] == [SAMPLING.max_new_tokens] * 2
    assert limited["n_words"] == limited["n_spelled"] == 9
    assert limited["target"] == 0.2


def test_the_unlimited_model_costs_nothing_and_violates_by_itself(limited):
    row = found_by_arm(limited)["unlimited"]
    assert row["cost"] == [0.0, 0.0]
    assert min(row["outside"]) > 0.3
    assert min(row["words_outside"]) > 0.3


def test_a_masked_text_holds_allowed_words_alone(limited):
    row = found_by_arm(limited)["mask"]
    assert row["outside"] == row["mass_outside"] == row["words_outside"] == [0.0, 0.0]
    assert min(row["cost"]) > 0
    allowed = {*ALLOWED.split()} | {word.capitalize() for word in ALLOWED.split()}
    for text in texts_of(limited)["mask"]:
        *words, last = re.findall(r"[^\W\d_]+", text)
        assert {*words} <= allowed
        assert any(word.startswith(last) for word in allowed)


def test_the_controller_costs_less_than_the_mask_and_keeps_to_its_bound(limited):
    rows = found_by_arm(limited)
    for i, strengths in enumerate(limited["strengths"]):
        mass = rows["controller"]["mass_outside"][i]
        n, gain = SAMPLING.max_new_tokens, limited["gain"]
        following = max(0.0, strengths[-1] + gain)
        assert mass <= limited["target"] + following / (gain * n)
        assert mass < rows["unlimited"]["mass_outside"][i]
        assert 0 < rows["controller"]["cost"][i] < rows["mask"]["cost"][i]


def test_a_controller_whose_target_is_everything_writes_what_the_model_does(
    model, dictionary, features, word_file
):
    config = VocabularyConfig(vocabulary=word_file(ALLOWED), target=1.0)
    found = limit_vocabulary(config, model, dictionary, features, PROMPTS, SAMPLING)
    assert found["strengths"] == [[0.0] * SAMPLING.max_new_tokens] * 2
    rows = found_by_arm(found)
    assert {**rows["controller"], "arm": ""} == {**rows["unlimited"], "arm": ""}


def test_features_held_at_zero_cost_something_beside_as_many_others(limited):
    rows = found_by_arm(limited)
    assert min(rows["suppressed"]["cost"] + rows["random"]["cost"]) > 0
    chosen = limited["suppression"]["suppressed"]
    assert len(chosen) == len(limited["suppression"]["random"]) == 8
    assert not {*chosen} & {*limited["suppression"]["random"]}
    assert texts_of(limited)["suppressed"] != texts_of(limited)["unlimited"]


def test_features_are_held_at_zero_in_one_sequence_behind_its_first_token(model, dictionary):
    ids = prompt_ids(model, PROMPTS[0]).expand(3, -1)
    edit = held_at_zero(model, dictionary, [4, 9, 17], 1, 3)
    seen = {}

    def keep(name):
        return lambda module, given, found: seen.setdefault(name, found)

    block = model.module.model.layers[1]
    with torch.no_grad():
        hook = block.register_forward_hook(keep("plain"))
        model.module(ids)
        hook.remove()
        with edited(model.module, [edit]):
            hook = block.register_forward_hook(keep("edited"))
            model.module(ids)
            hook.remove()
    plain, changed = seen["plain"], seen["edited"]
    assert torch.equal(plain[[0, 2]], changed[[0, 2]])
    assert torch.equal(plain[1, 0], changed[1, 0])
    codes = dictionary.encode(plain[1, 1:])[:, [4, 9, 17]]
    delta = -codes @ dictionary.W_dec[[4, 9, 17]]
    assert codes.max() > 0
    assert torch.allclose(changed[1, 1:] - plain[1, 1:], delta, atol=1e-5)


def test_a_masked_text_is_the_unlimited_one_up_to_the_first_token_outside(model):
    words = Words(ALLOWED.split(), token_texts(model))
    prompt = prompt_ids(model, "rain ").expand(2, -1)
    firsts = set()
    for seed in range(12):
        how = replace(SAMPLING, seed=seed)
        limiter = Limiter(words, [ROOT] * 2, [0.0, math.inf], 0, Controller(1.0), how)
        new = generate(model, prompt, [], replace(how, temperature=0), noise=limiter)
        unlimited, masked = new.tolist()
        first = words.outside(ROOT, unlimited).index(True)
        assert masked[:first] == unlimited[:first]
        assert masked[first] != unlimited[first]
        assert not any(words.outside(ROOT, masked))
        firsts.add(first)
    assert max(firsts) > 0


@pytest.fixture(scope="module")
def counting(model):
    """The model with a tokenizer of numbers and one word, each behind a space."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    texts = ["word", "</s>", *map(str, range(398))]
    tokens = Tokenizer(models.WordLevel({text: i for i, text in enumerate(texts)}, "word"))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="</s>")
    return replace(model, tokenizer=tokenizer, marks=Marks((), ()))


def test_a_vocabulary_that_allows_everything_leaves_all_arms_bit_equal(
    counting, dictionary, word_file
):
    features = [record(i) for i in range(dictionary.d_sae)]
    config = VocabularyConfig(vocabulary=word_file("word"), target=0.0)
    found = limit_vocabulary(config, counting, dictionary, features, ["7 8 9"], SAMPLING)
    texts = texts_of(found)
    assert len({*map(tuple, texts.values())}) == 1
    assert texts["mask"] != [""]
    rows = found_by_arm(found)
    assert found["suppression"]["suppressed"] == []
    for row in rows.values():
        assert row["outside"] == row["mass_outside"] == [0.0]
        assert row["cost"] == pytest.approx([0.0], abs=1e-12)
        assert row["log_perplexity"] == rows["unlimited"]["log_perplexity"]


def test_most_often_active_features_that_promote_other_tokens_are_chosen():
    allowed = torch.tensor([True, True, False, False, False])
    rows = [
        record(0, 0.1, [0, 2, 3]),
        record(1, 0.2, [0, 1, 2]),
        record(2, 0.3, [2, 3, 4]),
        record(3, 0.4, [2, 3, 4], highest=0.0),
        record(4, 0.2, [2, 3, 0]),
        record(5, 0.05, [0, 1]),
        record(6, 0.05, [0, 2]),
    ]
    assert choose_suppressed(rows, allowed, 2, 0)[0] == [2, 4]
    # Six are live, so three at most have as many others beside them.
    chosen, others = choose_suppressed(rows, allowed, 9, 0)
    assert chosen == [2, 4, 0]
    assert others == [1, 5, 6]
    assert choose_suppressed(rows, ~torch.zeros_like(allowed), 2, 0) == ([], [])


def test_the_others_are_drawn_by_seed_from_the_most_active_of_the_rest():
    allowed = torch.tensor([True, False])
    rows = [record(i, 1 / (i + 1), [1] if i < 3 else [0]) for i in range(40)]
    drawn = [choose_suppressed(rows, allowed, 3, seed)[1] for seed in range(30)]
    assert {feature for one in drawn for feature in one} == {*range(3, 9)}
    assert drawn[4] == choose_suppressed(rows, allowed, 3, 4)[1]


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([{"feature": 0, "density": 0.1, "max_activation": 1.0}], "have no promoted tokens"),
        ([record(0, highest=0.0)], "no feature of this dictionary fired"),
    ],
)
def test_arms_of_features_are_left_out_with_a_reason_and_the_others_kept(
    model, dictionary, word_file, rows, why
):
    config = VocabularyConfig(vocabulary=word_file(ALLOWED))
    found = limit_vocabulary(config, model, dictionary, rows, PROMPTS[:1], SAMPLING)
    assert why in found["suppression"]["left_out"]
    assert [row["arm"] for row in found["arms"]] == [*ARMS[:3]]
    assert found_by_arm(found)["mask"]["outside"] == [0.0]


def test_texts_go_on_to_the_end_whatever_the_sampling_says(
    limited, model, dictionary, features, word_file
):
    config = VocabularyConfig(vocabulary=word_file(ALLOWED), target=0.2, n_features=8)
    ending = replace(SAMPLING, to_the_end=False)
    found = limit_vocabulary(config, model, dictionary, features, PROMPTS, ending)
    assert found["arms"] == limited["arms"]


@pytest.mark.parametrize(
    ("prompts", "changes", "said"),
    [
        (PROMPTS, {"temperature": 0}, "temperature=0 always takes the likeliest"),
        (PROMPTS, {"max_new_tokens": 200}, "reads only 128 at once"),
        ([], {}, "no prompts"),
        ([""], {}, "write a beginning"),
    ],
)
def test_what_cannot_be_written_is_refused(
    model, dictionary, features, word_file, prompts, changes, said
):
    config = VocabularyConfig(vocabulary=word_file(ALLOWED))
    sampling = replace(SAMPLING, **changes)
    with pytest.raises(UserError, match=said):
        limit_vocabulary(config, model, dictionary, features, prompts, sampling)


def test_a_model_that_predicts_no_next_token_is_refused(model, dictionary, features, word_file):
    encoder = replace(model, record=replace(model.record, causal=False))
    config = VocabularyConfig(vocabulary=word_file(ALLOWED))
    with pytest.raises(UserError, match="predicts no next token"):
        limit_vocabulary(config, encoder, dictionary, features, PROMPTS, SAMPLING)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"target": -0.1}, "target=-0.1; give a share"),
        ({"target": 1.1}, "target=1.1; give a share"),
        ({"target": float("nan")}, "target=nan"),
        ({"n_features": 0}, "n_features=0; give 1 or more"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, said):
    with pytest.raises(UserError, match=said):
        VocabularyConfig(vocabulary="words.txt", **settings)
