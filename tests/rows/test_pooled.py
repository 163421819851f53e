"""Pooled rows: one pass gives what single texts give, and it is found again."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.world import sentences

import sae
from sae.base import UserError
from sae.models import find_site, load_model, read_activations
from sae.rows.pooled import (
    Reading,
    keep_pooled_rows,
    pooled_rows,
    token_batches,
    tokenized_texts,
)
from sae.run import Run
from sae.text.labelled import LabelledTexts

HOOKS = ("blocks.0.hook_resid_post", "blocks.1.hook_mlp_out")
POOLS = ("last", "mean", "max", "span")


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_model(sae.ModelConfig(name=str(tiny_model), device="cpu"))


@pytest.fixture(scope="module")
def texts():
    found = tuple(sentences(9, words=4) + sentences(5, seed=3, words=17))
    spans = tuple((text.index(":") + 2, text.index(" ", text.index(":") + 2)) for text in found)
    labels = np.arange(len(found)) % 2 == 0
    return LabelledTexts("some", found, labels, ("no", "yes"), spans)


def readings(model):
    sites = [find_site(model.module, hook) for hook in HOOKS]
    doubled = Reading("doubled", sites[0], lambda x: torch.cat([x, 2 * x.relu()], 1), "d")
    return [*(Reading("raw", site) for site in sites), doubled]


def test_texts_together_give_the_rows_that_each_gives_alone(model, texts):
    tokens = tokenized_texts(model, texts, 100).texts
    found = pooled_rows(model, tokens, readings(model), POOLS)
    assert len(found) == 3 * len(POOLS)
    for i, one in enumerate(tokens):
        site = find_site(model.module, HOOKS[1])
        ids = torch.from_numpy(one.ids).long()[None]
        x = read_activations(model.module, [site], ids)[HOOKS[1]][0, one.first : one.end]
        key = f"raw {HOOKS[1]}"
        for pool, expected in (
            ("last", x[-1]),
            ("mean", x.mean(0)),
            ("max", x.amax(0)),
            ("span", x[one.asked - one.first]),
        ):
            torch.testing.assert_close(
                found[f"{key} {pool}"][i], expected, rtol=1e-4, atol=1e-5
            )


def test_features_are_pooled_after_they_are_made(model, texts):
    tokens = tokenized_texts(model, texts, 100).texts
    found = pooled_rows(model, tokens, readings(model), ["mean", "max"])
    raw, doubled = found[f"raw {HOOKS[0]} mean"], found[f"doubled {HOOKS[0]} mean"]
    torch.testing.assert_close(doubled[:, :32], raw)
    assert (doubled[:, 32:] >= 2 * raw.relu() - 1e-5).all()
    assert not torch.allclose(doubled[:, 32:], 2 * raw.relu())


def test_the_token_that_is_asked_about_is_the_last_of_its_span(model, texts):
    for one, word in zip(tokenized_texts(model, texts, 100).texts, texts.words, strict=True):
        before = model.tokenizer.decode(one.ids[one.first : one.asked + 1].tolist())
        assert before.endswith(word)


def test_marks_are_no_part_of_a_text(model, texts):
    marked = replace(model, marks=replace(model.marks, begin=(0,), end=(1,)))
    tokens = tokenized_texts(marked, texts, 100).texts
    assert all((one.ids[0], one.ids[-1]) == (0, 1) for one in tokens)
    assert all((one.first, one.end) == (1, len(one.ids) - 1) for one in tokens)


def test_of_a_long_text_a_beginning_is_read_and_a_span_behind_it_is_refused(model, texts):
    without = replace(texts, spans=None)
    found = tokenized_texts(model, without, 12)
    assert max(len(one.ids) for one in found.texts) == 12
    assert found.n_cut > 0
    with pytest.raises(UserError, match=r"is not among the .* tokens that are read"):
        tokenized_texts(model, texts, 4)


def test_batches_hold_as_many_tokens_as_they_may(model, texts):
    tokens = tokenized_texts(model, texts, 100).texts
    sites = [find_site(model.module, HOOKS[0])]
    batches = [*token_batches(model, tokens, sites, batch_tokens=60)]
    assert sorted(i for batch in batches for i in batch.rows) == [*range(len(tokens))]
    assert all(batch.own.numel() <= 60 or len(batch.rows) == 1 for batch in batches)
    assert len(batches) > 3


def test_an_encoder_does_not_look_at_padding(encoder, texts):
    model = load_model(sae.ModelConfig(name=str(encoder), device="cpu"))
    tokens = tokenized_texts(model, replace(texts, spans=None), 100).texts
    reading = [Reading("raw", find_site(model.module, "blocks.1.hook_resid_post"))]
    found = pooled_rows(model, tokens, reading, ["mean"])
    alone = pooled_rows(model, tokens[:1], reading, ["mean"])
    key = f"{reading[0].key} mean"
    torch.testing.assert_close(found[key][:1], alone[key], rtol=1e-4, atol=1e-5)


def test_rows_are_kept_once_for_the_same_texts_weights_and_readings(
    model, texts, tmp_path, monkeypatch
):
    run, tokens = Run.at(tmp_path / "run"), tokenized_texts(model, texts, 100)
    found = keep_pooled_rows(run, model, tokens, readings(model), ["mean"])
    fresh = pooled_rows(model, tokens.texts, readings(model), ["mean"])
    kept = found.of("raw", HOOKS[1], "mean")
    np.testing.assert_allclose(kept, fresh[f"raw {HOOKS[1]} mean"], rtol=2e-3, atol=1e-3)
    assert (found.n_tokens, found.seconds > 0) == (tokens.n_tokens, True)
    with monkeypatch.context() as patched:
        patched.setattr("sae.rows.pooled.pooled_rows", None)
        again = keep_pooled_rows(run, model, tokens, readings(model), ["mean"])
    assert again.folder == found.folder
    other = keep_pooled_rows(run, model, tokens, readings(model)[:1], ["mean"])
    assert other.folder != found.folder


def test_values_that_no_half_holds_are_kept_whole(model, texts, tmp_path):
    site = find_site(model.module, HOOKS[0])
    large = Reading("large", site, lambda x: 1e6 + x, "1")
    tokens = tokenized_texts(model, texts, 100)
    found = keep_pooled_rows(Run.at(tmp_path / "run"), model, tokens, [large], ["last"])
    assert found.of("large", HOOKS[0], "last").min() > 9e5
