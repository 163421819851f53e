"""Edits in models that keep a state instead of keys and values, and in compiled ones."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sae
from sae.base.errors import UserError
from sae.edits import Add, Edit, Spans, edited
from sae.models import find_site, read_activations

HOOK = "blocks.1.hook_resid_post"
COMMON = {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 3}
ENDS = {"eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 0}
RECURRENT = {
    "mamba": {"state_size": 8},
    "mamba2": {"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1},
    "rwkv": {"attention_hidden_size": 32},
}
N = 10


def made(family: str, **settings: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family, **COMMON, **ENDS, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope="module", params=RECURRENT)
def recurrent(request: pytest.FixtureRequest) -> Any:
    return made(request.param, **RECURRENT[request.param])


def adding(module: nn.Module, *spans: Any) -> list[Edit]:
    added = torch.randn(32, generator=torch.Generator().manual_seed(0)) * 3
    return [Edit(find_site(module, HOOK), Add(added), Spans(*spans))]


def ids(n: int = 7) -> Tensor:
    return torch.randint(1, 400, (1, n), generator=torch.Generator().manual_seed(1))


def write(module: Any, prompt: Tensor, *, use_cache: bool = True) -> Tensor:
    with torch.inference_mode():
        found: Tensor = module.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=N,
            min_new_tokens=N,
            do_sample=False,
            use_cache=use_cache,
        )
    return found


@pytest.mark.parametrize("length", [1, 7])
@pytest.mark.parametrize(
    "spans", [(((0, None),), ()), (((-1, None),), ((2, 5),)), ((), ((0, None),))]
)
def test_writing_with_a_state_equals_writing_without(recurrent, spans, length):
    with edited(recurrent, adding(recurrent, *spans)):
        kept, whole = (write(recurrent, ids(length), use_cache=use) for use in (True, False))
    assert torch.equal(kept, whole)
    assert not torch.equal(kept, write(recurrent, ids(length)))


def test_a_loop_that_hands_on_the_state_is_edited_where_it_is(recurrent):
    text, spans = ids(9), (((1, 3),), ((1, None),))
    name = "state" if "Rwkv" in type(recurrent).__name__ else "cache_params"

    def rest(state: Any) -> list[Tensor]:
        found = []
        for i in range(5, 9):
            output = recurrent(text[:, i : i + 1], use_cache=True, **{name: state})
            state = getattr(output, name)
            found.append(output.logits[0, 0])
        return found

    with torch.inference_mode():
        with edited(recurrent, adding(recurrent, *spans)):
            first = recurrent(text[:, :5], use_cache=True)
            found = rest(getattr(first, name))
        # Of the whole text at once the same tokens are 1 and 2, and 6 to 8.
        with edited(recurrent, adding(recurrent, ((1, 3), (6, None)))):
            whole = recurrent(text, use_cache=False).logits[0, 5:]
        torch.testing.assert_close(torch.stack(found), whole, rtol=1e-4, atol=1e-5)
        foreign = getattr(recurrent(text[:, :5], use_cache=True), name)
        with (
            edited(recurrent, adding(recurrent, *spans)),
            pytest.raises(UserError, match="a cached state from outside"),
        ):
            rest(foreign)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_model_is_read_and_edited(in_place, tokenizer_folder):
    from transformers import AutoTokenizer

    module = made("llama", intermediate_size=64, num_attention_heads=4)
    tokenizer, text = AutoTokenizer.from_pretrained(tokenizer_folder), "the river"
    m = sae.model(module, tokenizer=tokenizer)
    edit = sae.edit(at=HOOK, token="a", do="add", by=9.0)
    with m.edited(edit), torch.inference_mode():
        wanted = module(ids()).logits
    with torch.inference_mode():
        plain, rows = module(ids()).logits, m.activations(text, HOOK)
        compiled: Any = module
        if in_place:
            module.compile(backend="eager")
        else:
            compiled = torch.compile(module, backend="eager")
        # It has to be compiled before the edit: what is compiled knows no later hook.
        assert torch.allclose(compiled(ids()).logits, plain, atol=1e-5)
        m = sae.model(compiled, tokenizer=tokenizer)
        with m.edited(edit):
            assert torch.allclose(compiled(ids()).logits, wanted, atol=1e-5)
        assert torch.equal(m.activations(text, HOOK), rows)
        assert torch.allclose(compiled(ids()).logits, plain, atol=1e-5)
        site = find_site(module, HOOK)
        assert HOOK in read_activations(m.module, [site], ids())
    assert not torch.allclose(wanted, plain, atol=1e-2)
