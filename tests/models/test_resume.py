"""A model that is run from the middle gives what it gives as a whole, to the bit."""

import pytest
import torch
from support.families import BLOCKS, MODELS, PLACES, TOKENS, hook_count, logits, random_model
from support.tiny import tiny

from sae.base import UserError
from sae.edits import ALL_BUT_FIRST, Add, Edit, edited
from sae.models.hooks import find_site
from sae.models.probe import probe
from sae.models.resume import (
    can_resume,
    first_block,
    n_blocks,
    replayed,
    resume,
    resumed,
    seen_before,
)


@pytest.fixture(scope="module", params=PLACES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def module(family):
    return random_model(*MODELS[family])


def untouched(module):
    return not any("forward" in vars(part) for part in module.modules())


@pytest.mark.parametrize("block", [0, 1, 2, 3])
def test_a_model_resumed_on_its_own_stream_gives_what_it_gives_as_a_whole(module, block):
    before = hook_count(module)
    expected = logits(module)
    with torch.no_grad(), seen_before(module, block) as seen:
        module(TOKENS)
    with torch.no_grad():
        assert torch.equal(resume(module, block, seen[0], TOKENS)[0], expected)
    assert hook_count(module) == before
    assert untouched(module)


def test_padding_before_texts_is_masked_as_ever(module):
    mask = torch.ones_like(TOKENS)
    mask[1, :4] = 0
    with torch.no_grad(), seen_before(module, 2) as seen:
        expected = module(TOKENS, attention_mask=mask)[0]
    with torch.no_grad(), resumed(module, 2, seen[0]):
        found = module(TOKENS, attention_mask=mask)[0]
    assert torch.equal(found, expected)


def test_one_sequence_serves_any_number_and_another_stream_gives_other_logits(module):
    with torch.no_grad(), seen_before(module, 1) as seen:
        expected = module(TOKENS[:1])[0]
    with torch.no_grad(), resumed(module, 1, seen[0]):
        found = module(TOKENS[:1].expand(3, -1))[0]
    torch.testing.assert_close(found, expected.expand_as(found), rtol=1e-4, atol=1e-4)
    other = seen[0] * 1.5 + 1
    with torch.no_grad():
        assert not torch.allclose(resume(module, 1, other, TOKENS[:1])[0], expected, atol=1e-2)


def test_gradients_reach_the_stream_that_was_given(module):
    with torch.no_grad(), seen_before(module, 1) as seen:
        module(TOKENS)
    hidden = seen[0].clone().requires_grad_()
    found = resume(module, 1, hidden, TOKENS)[0]
    (gradient,) = torch.autograd.grad(found[:, -1, 3].sum(), hidden)
    assert float(gradient.abs().max()) > 0


def test_an_exception_inside_leaves_no_trace(module):
    before, expected = hook_count(module), logits(module)
    with pytest.raises(ZeroDivisionError), resumed(module, 2, torch.zeros(1, 11, 32)):
        raise ZeroDivisionError
    assert hook_count(module) == before
    assert untouched(module)
    assert torch.equal(logits(module), expected)


def test_a_block_that_is_not_there_is_refused_with_those_that_are(module):
    hidden = torch.zeros(1, 11, 32)
    sentence = "block 7 is out of range, this model has blocks 0 to 2"
    with pytest.raises(UserError, match=sentence), resumed(module, 7, hidden):
        pass


def test_what_blocks_return_beside_the_stream_is_not_missed():
    from transformers import AutoModelForCausalLM

    module = tiny("gptj", AutoModelForCausalLM)
    (others,) = {len(beside or ()) for beside in probe(module).beside.values()}
    assert others == 1
    with torch.no_grad(), seen_before(module, 1) as seen:
        expected = module(TOKENS % 100, use_cache=False)[0]
        assert torch.equal(resume(module, 1, seen[0], TOKENS % 100)[0], expected)


def test_a_model_whose_blocks_share_more_than_the_stream_is_refused():
    module = random_model(*MODELS["llama"])
    kept = []
    layers = module.model.layers
    layers[0].mlp.register_forward_hook(lambda _, __, out: kept.append(out))
    layers[2].mlp.register_forward_pre_hook(lambda _, args: (args[0] + kept[-1],))
    for block, works in ((0, True), (1, False), (2, False)):
        assert can_resume(module, block) == works
    with (
        pytest.raises(UserError, match=r"LlamaForCausalLM cannot be run from block 1 on"),
        resumed(module, 1, torch.zeros(1, 11, 32)),
    ):
        pass
    # What only saves time is left out, and results are the same.
    site = find_site(module, "blocks.1.hook_resid_post")
    with replayed(module, [site], TOKENS[:1]):
        assert torch.equal(logits(module), logits(module))


def test_a_model_without_a_stream_of_blocks_is_refused_by_name():
    import transformers

    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.AlbertConfig(vocab_size=60, embedding_size=8, **sizes)
    module = transformers.AlbertModel(config).eval()
    assert n_blocks(module) == 0
    with (
        pytest.raises(
            UserError, match="AlbertModel has no blocks that pass on a single stream"
        ),
        resumed(module, 1, torch.zeros(1, 4, 16)),
    ):
        pass


def test_a_change_in_a_block_resumes_at_it_and_one_of_what_it_returns_behind_it(family, module):
    def block_of(name):
        return first_block(module, find_site(module, name))

    assert block_of("blocks.1.hook_resid_pre") == 1
    assert block_of("blocks.1.hook_mlp_out") == 1
    assert block_of(f"{BLOCKS[family]}.1") == 2
    assert first_block(module, find_site(module, embeddings(module))) == 0


def embeddings(module):
    found = module.get_input_embeddings()
    return next(path for path, part in module.named_modules() if part is found)


@pytest.mark.parametrize("block", [0, 1, 2])
@pytest.mark.parametrize("hook", ["hook_resid_pre", "hook_resid_post", "hook_mlp_out"])
def test_copies_after_a_replay_give_what_the_whole_model_gives(family, module, hook, block):
    site, tokens = find_site(module, f"blocks.{block}.{hook}"), TOKENS[:1]
    vectors = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    vectors[2] = 0
    edits = [Edit(site, Add(vectors), ALL_BUT_FIRST)]
    copies, before = tokens.expand(5, -1), hook_count(module)
    with torch.inference_mode():
        with edited(module, edits):
            expected = module(copies)[0]
        with replayed(module, [site], tokens), edited(module, edits):
            found = module(copies)[0]
        plain = module(copies)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[0], found[2], atol=1e-2)
    torch.testing.assert_close(found[2], plain[2], rtol=1e-4, atol=1e-4)
    assert hook_count(module) == before
    assert not any("forward" in vars(part) for part in module.modules())


def test_blocks_before_the_site_are_computed_once_and_not_once_a_copy(family, module):
    site, rows = find_site(module, f"{BLOCKS[family]}.1"), []
    assert can_resume(module, 2)
    blocks = [module.get_submodule(f"{BLOCKS[family]}.{i}") for i in range(3)]
    parts = [next(p for p in block.modules() if p is not block) for block in blocks]
    handles = [
        part.register_forward_hook(lambda part, *_: rows.append(parts.index(part)))
        for part in parts
    ]
    with torch.inference_mode(), replayed(module, [site], TOKENS[:1]):
        for _ in range(3):
            module(TOKENS[:1].expand(4, -1))
    for handle in handles:
        handle.remove()
    assert [rows.count(i) for i in range(3)] == [1, 1, 4]
