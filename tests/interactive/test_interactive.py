"""A model in somebody's hands: what it is asked, and what it refuses."""

from pathlib import Path

import pytest
import torch
from support.world import HOOK, random_dictionary

import sae
from sae.base.errors import UserError
from sae.interactive import Model
from sae.models.hooks import find_site, read_activations

TEXT = "Note 0-1: the river ran past old mill"


@pytest.fixture(scope="module")
def m(tiny_model: Path) -> Model:
    return sae.model(str(tiny_model))


@pytest.fixture(scope="module")
def folder(m: Model, tmp_path_factory: pytest.TempPathFactory) -> str:
    found = tmp_path_factory.mktemp("dictionaries") / "standard"
    dictionary = random_dictionary("standard").placed(find_site(m.module, HOOK))
    sae.save(dictionary, str(found))
    return str(found)


def test_rows_of_activations_and_features_are_those_of_the_tokens(m, folder):
    ids = torch.from_numpy(m.language_model.document_ids(TEXT)).long()[None]
    (x,) = read_activations(m.module, [find_site(m.module, HOOK)], ids).values()
    found = m.activations(TEXT, HOOK)
    assert torch.equal(found, x[0])
    tokens, features = m.tokens(TEXT), m.features(TEXT, folder)
    assert len(tokens) == len(found) == features.acts.shape[0]
    assert features.tokens == tokens
    acts = sae.load(folder).encode(x[0])
    # The token before the text is none of it.
    acts[0] = 0
    torch.testing.assert_close(features.acts.to_dense(), acts)
    torch.testing.assert_close(features.mean(), acts[1:].mean(0))
    torch.testing.assert_close(features.max(), acts.amax(0))
    best = acts[1:].mean(0).topk(3)
    assert [feature for feature, _ in features.top(3)] == best.indices.tolist()
    # A dictionary that is loaded already will do.
    same = m.features(TEXT, sae.load(folder)).acts
    assert torch.equal(same.to_dense(), features.acts.to_dense())


def test_a_table_has_all_that_is_active_and_a_page_escapes_it(m, folder):
    features = m.features("<b>the river</b>", folder)
    table = features.to_pandas()
    assert list(table.columns) == ["position", "token", "feature", "activation"]
    assert len(table) == len(features.acts.values())
    assert (table["activation"] > 0).all()
    assert set(table["token"]) <= set(features.tokens)
    page = features._repr_html_()
    assert "<b>" not in page
    assert page.count("<tr>") == len(features.tokens) + 1
    assert repr(features).startswith(f"TextFeatures({len(features.tokens)} tokens")


def test_a_text_that_an_edit_reaches_is_read_as_edited(m, folder):
    with m.edited(sae.edit(dictionary=folder, feature=5, do="add", by=9.0)):
        found = m.activations(TEXT, "blocks.2.hook_resid_post")
    assert not torch.equal(found, m.activations(TEXT, "blocks.2.hook_resid_post"))


def test_log_probabilities_of_a_continuation_add_up(m):
    after = m.logprobs(TEXT)
    assert after.exp().sum().item() == pytest.approx(1, rel=1e-5)
    ids = m.language_model.text_ids(" where she")
    total, so_far = 0.0, TEXT
    for i in ids.tolist():
        total += float(m.logprobs(so_far)[i])
        so_far += m.tokenizer.decode([i])
    assert m.logprobs(TEXT, " where she") == pytest.approx(total, rel=1e-4)


def test_the_likeliest_next_tokens_come_with_their_probabilities(m):
    after = m.logprobs(TEXT)
    found = m.next_tokens(TEXT, 8)
    best = after.exp().topk(8)
    assert [p for _, p in found] == best.values.tolist()
    for (token, _), i in zip(found, best.indices, strict=True):
        decoded = m.tokenizer.decode([i])
        # A part of a character is shown as its byte.
        assert token == decoded or (decoded == "\ufffd" and token.startswith("<0x"))
    everything = m.next_tokens(TEXT, 10**9)
    assert sum(p for _, p in everything) == pytest.approx(1, rel=1e-5)


def test_every_hook_name_of_the_model_can_be_read(m):
    assert HOOK in m.hook_names
    for name in m.hook_names:
        assert m.activations(TEXT, name).shape[0] == len(m.tokens(TEXT))


def test_a_text_ends_where_the_model_ends_it(m):
    module = m.module
    end, last = m.tokenizer.eos_token_id, "blocks.2.hook_resid_post"
    weight = module.lm_head.weight.detach().clone()
    try:
        with torch.no_grad():
            module.lm_head.weight[end] = 10 * m.activations(TEXT, last)[-1]
        ended = m.generate(TEXT, max_new_tokens=8)
        assert m.tokenizer.eos_token not in ended
        assert len(m.language_model.text_ids(ended)) < 8
        assert len(m.generate(TEXT, max_new_tokens=8, to_the_end=True)) > len(ended)
    finally:
        with torch.no_grad():
            module.lm_head.weight.copy_(weight)


def test_what_cannot_be_asked_is_refused_in_a_sentence(m, folder, tmp_path):
    long = "river " * 200
    for ask, words in (
        (lambda: m.generate(""), "write a beginning"),
        (lambda: m.generate([]), "there are no prompts"),
        (lambda: m.generate(TEXT, max_new_tokens=10**9), "reads only 128 at once"),
        (lambda: m.generate(TEXT, max_new_tokens=0), "max_new_tokens=0; give a whole number"),
        (lambda: m.generate(TEXT, max_new_tokens="5"), "max_new_tokens='5'; give a whole"),
        (lambda: m.logprobs([TEXT, TEXT]), "is not a text; give one prompt"),
        (lambda: m.logprobs(TEXT, [" a"]), "is not a text; give one prompt"),
        (lambda: m.generate(TEXT, temperature=float("nan")), "temperature=nan; give a finite"),
        (lambda: m.generate(long), "reads only 128 at once"),
        (lambda: m.logprobs(long), "reads only 128 at once"),
        (lambda: m.logprobs(TEXT, ""), "the continuation is empty"),
        (lambda: m.activations("", HOOK), "the text is empty"),
        (lambda: m.activations(long, HOOK), "reads only 128 at once"),
        (lambda: m.activations(TEXT, "blocks.9.hook_resid_post"), "layers 0 to 2"),
        (lambda: m.features(TEXT, str(tmp_path)), str(tmp_path)),
        (lambda: sae.model("smollm2", tokenizer=m.tokenizer), "has its own tokenizer"),
        (lambda: sae.model("smollm2", dtype="float8"), "model.dtype=float8 is unknown"),
    ):
        with pytest.raises(UserError) as raised:
            ask()
        assert words in str(raised.value)


def test_the_model_and_its_edits_are_names_of_the_package(m):
    assert repr(m).startswith("Model(")
    assert "float32" in repr(m)
    assert sae.Model is Model
    assert callable(sae.edit)
    assert sae.Edits.read
