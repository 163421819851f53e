"""Many changed copies of one text: what comes before the change is computed once."""

import pytest
import torch
from support.families import BLOCKS, MODELS, PLACES, TOKENS, hook_count, random_model

from sae.edits import ALL_BUT_FIRST, Add, Edit, edited
from sae.models.hooks import find_site
from sae.models.replay import replayed

FAMILIES = [family for family in PLACES if family != "bert"]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def module(family):
    return random_model(*MODELS[family])


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
            expected = module(copies, use_cache=False).logits
        with replayed(module, site, tokens), edited(module, edits):
            found = module(copies, use_cache=False).logits
        plain = module(copies, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[0], found[2], atol=1e-2)
    torch.testing.assert_close(found[2], plain[2], rtol=1e-4, atol=1e-4)
    assert hook_count(module) == before
    assert not any("forward" in vars(part) for part in module.modules())


def test_blocks_before_the_site_are_computed_once_and_not_once_a_copy(family, module):
    site, rows = find_site(module, "blocks.1.hook_resid_post"), []
    blocks = [module.get_submodule(f"{BLOCKS[family]}.{i}") for i in range(3)]
    parts = [next(p for p in block.modules() if p is not block) for block in blocks]
    handles = [
        part.register_forward_hook(lambda part, *_: rows.append(parts.index(part)))
        for part in parts
    ]
    with torch.inference_mode(), replayed(module, site, TOKENS[:1]):
        for _ in range(3):
            module(TOKENS[:1].expand(4, -1), use_cache=False)
    for handle in handles:
        handle.remove()
    assert [rows.count(i) for i in range(3)] == [1, 1, 4]
