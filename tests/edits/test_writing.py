"""Edits while a model writes: caches, padding, beams, batches, and where in the text."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import hook_count
from support.world import HOOK, random_dictionary, save_tiny_model
from torch import Tensor

import sae
from sae.base.errors import UserError
from sae.edits.positions import EVERYWHERE, Spans, Window
from sae.interactive import Model

PROMPTS = ["Note 0-1: the river ran past", "she kept seven", "rain"]
FAMILIES = ("llama", "gpt2", "gpt_neox")
N = 32


@pytest.fixture(scope="module")
def models(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path
) -> dict[str, Model]:
    folders = tmp_path_factory.mktemp("models")
    return {
        family: sae.model(str(save_tiny_model(family, folders / family, tokenizer_folder)))
        for family in FAMILIES
    }


@pytest.fixture(scope="module")
def m(models: dict[str, Model]) -> Model:
    return models["llama"]


@pytest.fixture(scope="module")
def folder(m: Model, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dictionary that fits each of the models."""
    found = tmp_path_factory.mktemp("dictionaries") / "topk"
    sae.save(random_dictionary("topk").placed(HOOK), str(found))
    return str(found)


def write(m: Model, prompt: Tensor, n: int = N, **settings: Any) -> Tensor:
    settings = {"attention_mask": torch.ones_like(prompt), "do_sample": False} | settings
    with torch.inference_mode():
        found = m.module.generate(prompt, max_new_tokens=n, min_new_tokens=n, **settings)
    return found[:, prompt.shape[1] :]


def prompt(m: Model, text: str = PROMPTS[0]) -> Tensor:
    return torch.from_numpy(m.language_model.prompt_ids(text)).long()[None]


def record(folder: str, **keys: Any) -> Any:
    return sae.edit(**{"dictionary": folder, "feature": 5, "do": "set", "by": 9.0} | keys)


WHERES = [
    {},
    {"prompt": "none"},
    {"generated": "none", "except": []},
    {"prompt": [-1, None], "generated": [2, 7]},
    {"prompt": [[0, 2], [3, 4]], "generated": [1, None], "except": [[0, 1], [8, 9]]},
]


@pytest.mark.parametrize("where", WHERES)
@pytest.mark.parametrize("family", FAMILIES)
def test_writing_with_a_cache_equals_writing_without(models, folder, family, where):
    m, edit = models[family], record(folder, where=where)
    with m.edited(edit):
        cached, whole = (write(m, prompt(m), use_cache=use) for use in (True, False))
        pieces = write(m, prompt(m), prefill_chunk_size=2)
    assert torch.equal(cached, whole)
    assert torch.equal(cached, pieces)
    assert not torch.equal(cached, write(m, prompt(m)))


@pytest.mark.parametrize("where", WHERES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_that_is_padded_on_the_left_equals_a_lone_one(models, folder, family, where):
    m, edits = models[family], [record(folder, where=where)]
    edits.append(sae.edit(at=HOOK, token="a", do="add", by=9.0, where=where))
    with m.edited(edits):
        together = m.generate(PROMPTS, max_new_tokens=N, to_the_end=True)
        alone = [m.generate(text, max_new_tokens=N, to_the_end=True) for text in PROMPTS]
    assert together == alone
    assert together != m.generate(PROMPTS, max_new_tokens=N, to_the_end=True)


def test_windows_are_the_tokens_that_they_name(m, folder):
    found = Spans(((-2, None),), ((1, 3),), ((0, 1),))
    attended = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
    chosen = found.mask(Window(2, 0, 7, 4, attended)).int().tolist()
    assert chosen == [[0, 0, 0, 1, 0, 1, 1], [0, 0, 1, 1, 0, 1, 1]]
    later = found.mask(Window(2, 6, 8, 4, torch.ones(2, 7, dtype=torch.int64)))
    assert later.int().tolist() == [[1, 0]] * 2
    nothing = Spans((), ()).mask(Window(2, 0, 3))
    assert not nothing.any()


@pytest.mark.parametrize("n_prompt", [1, 4])
def test_a_token_at_a_time_is_chosen_as_many_at_once_are(n_prompt):
    ends = [(0, None), (0, 1), (1, 3), (-2, None), (-3, -1), (2, None), (-9, 2)]
    written = [span for span in ends if span[0] >= 0]
    for prompt in ((), ((0, None),), *((one,) for one in ends)):
        for generated in ((), *((one,) for one in written)):
            for but in ((), ((0, 1),), ((-1, None),), ((1, 2), (6, 8))):
                found = Spans(prompt, generated, but, ((), EVERYWHERE))
                whole = found.mask(Window(2, 0, 9, n_prompt))
                one = [found.mask(Window(2, i, i + 1, n_prompt)) for i in range(9)]
                assert torch.equal(torch.cat(one, 1), whole), found


def test_a_batch_of_doses_equals_separate_runs(m, folder):
    doses = [-4.0, -1.0, 0.0, 1.0, 4.0, 16.0]
    with m.edited(record(folder, do="add", by=doses)):
        together = m.generate([PROMPTS[0]] * len(doses), max_new_tokens=N)
    alone = []
    for dose in doses:
        with m.edited(record(folder, do="add", by=dose)):
            alone.append(m.generate(PROMPTS[0], max_new_tokens=N))
    assert together == alone
    assert alone[2] == m.generate(PROMPTS[0], max_new_tokens=N)
    refused = "has values for 6 sequences, but the model is run on 2"
    with m.edited(record(folder, do="add", by=doses)), pytest.raises(UserError, match=refused):
        m.generate(PROMPTS[:2])


def test_each_sequence_may_have_edits_of_its_own(m, folder):
    own = [
        record(folder),
        None,
        [record(folder, feature=7), record(folder, do="ablate", by=None)],
    ]
    with m.edited(per_sequence=own):
        together = m.generate(PROMPTS, max_new_tokens=N)
    assert together[1] == m.generate(PROMPTS[1], max_new_tokens=N)
    for i in (0, 2):
        with m.edited(own[i]):
            assert together[i] == m.generate(PROMPTS[i], max_new_tokens=N)
    refused = "for a batch of 3 sequences, but the model is run on"
    # A row of none of the edits' own could be one that was forgotten.
    for prompts in (PROMPTS[:1], PROMPTS[:2], PROMPTS * 2):
        with m.edited(per_sequence=own), pytest.raises(UserError, match=refused):
            m.generate(prompts)


@pytest.mark.parametrize("family", FAMILIES)
def test_ranges_of_each_sequence_are_of_its_own_tokens(models, folder, family):
    m, own = models[family], [[[1, 3], [-1, None]], "none", "all"]
    with m.edited(record(folder, where={"sequences": own, "except": []})):
        together = m.generate(PROMPTS, max_new_tokens=N, to_the_end=True)
        with pytest.raises(UserError, match="for a batch of 3 sequences, but the model is run"):
            m.generate(PROMPTS[0])
    # The range that begins before the prompt's end goes on in what is written.
    lone = [{"prompt": [[1, 3], [-1, None]]}, None, {}]
    for text, prompt, where in zip(together, PROMPTS, lone, strict=True):
        with m.edited([] if where is None else record(folder, where=where | {"except": []})):
            assert text == m.generate(prompt, max_new_tokens=N, to_the_end=True)
    refused = "is meant for a whole batch, but this edit is for a single sequence"
    with pytest.raises(UserError, match=refused):
        m.planned(per_sequence=[record(folder, where={"sequences": ["all"]})])


def test_beams_are_of_one_text(m, folder):
    both = prompt(m).expand(2, -1)
    with m.edited(record(folder, do="add", by=[3.0, 9.0])):
        together = write(m, both, 12, num_beams=3)
    for found, dose in zip(together, (3.0, 9.0), strict=True):
        with m.edited(record(folder, do="add", by=dose)):
            assert torch.equal(found[None], write(m, prompt(m), 12, num_beams=3))


def test_sampled_texts_are_edited_and_repeatable(m, folder):
    plain = m.generate(PROMPTS[0], temperature=1.0, seed=3)
    with m.edited(record(folder)):
        steered = [m.generate(PROMPTS[0], temperature=1.0, seed=3) for _ in range(2)]
    assert steered[0] == steered[1] != plain
    assert m.generate(PROMPTS[0], temperature=1.0, seed=3) == plain


def test_edits_that_are_switched_inside_a_text_hold_each_for_its_own_part(m, folder):
    from transformers import DynamicCache

    ids, everywhere = prompt(m), {"except": []}
    n = ids.shape[1] // 2
    one, two = (record(folder, feature=j, where=everywhere) for j in (5, 7))
    cache = DynamicCache()
    with torch.no_grad():
        with m.edited(one):
            m.module(ids[:, :n], past_key_values=cache)
        with m.edited(two):
            found = m.module(ids[:, n:], past_key_values=cache).logits
        parts = [
            record(folder, feature=5, where={"prompt": [0, n], "except": []}),
            record(folder, feature=7, where={"prompt": [n, None], "except": []}),
        ]
        with m.edited(parts):
            expected = m.module(ids).logits[:, n:]
    torch.testing.assert_close(found, expected)


def test_several_hooks_and_dictionaries_are_edited_at_once(m, folder, tmp_path):
    other = tmp_path / "other"
    sae.save(random_dictionary("jumprelu").placed("blocks.0.hook_resid_mid"), str(other))
    edits = [record(folder), record(str(other), feature=3), record(folder, feature=9, do="cap")]
    found = []
    for order in (edits, edits[::-1]):
        with m.edited(order):
            found.append(m.generate(PROMPTS, max_new_tokens=N))
    assert found[0] == found[1]
    with m.edited(edits[:1]):
        assert m.generate(PROMPTS, max_new_tokens=N) != found[0]


def test_contexts_inside_each_other_add_up_and_end_one_by_one(m, folder):
    one, two = record(folder), record(folder, feature=7, do="add", by=3.0)
    texts, count = {}, hook_count(m.module)
    with m.edited(one):
        texts["one"] = m.generate(PROMPTS[0])
        with m.edited(two):
            texts["both"] = m.generate(PROMPTS[0])
        assert m.generate(PROMPTS[0]) == texts["one"]
    assert len({*texts.values(), m.generate(PROMPTS[0])}) == 3
    assert hook_count(m.module) == count
    assert "generate" not in vars(m.module)


def test_an_exception_leaves_no_hook_and_no_other_generate(m, folder):
    count = hook_count(m.module)

    def fails() -> None:
        with m.edited(record(folder)):
            assert hook_count(m.module) > count
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert hook_count(m.module) == count
    assert "generate" not in vars(m.module)


def test_a_model_that_somebody_loaded_is_edited_as_it_is(m, folder, tokenizer_folder):
    from transformers import AutoTokenizer, pipeline

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    theirs = sae.model(m.module, tokenizer=tokenizer)
    assert theirs.module is m.module
    writes = pipeline("text-generation", model=m.module, tokenizer=tokenizer)
    how = {"max_new_tokens": 8, "do_sample": False, "return_full_text": False}
    plain = writes(PROMPTS[0], **how)[0]["generated_text"]
    with theirs.edited(record(folder)):
        steered = writes(PROMPTS[0], **how)[0]["generated_text"]
    assert steered != plain == writes(PROMPTS[0], **how)[0]["generated_text"]
    nameless = type(m.module)(type(m.module.config)(vocab_size=8, num_hidden_layers=1))
    with pytest.raises(UserError, match="from which to find its tokenizer"):
        sae.model(nameless)
