"""Edits of forward passes: exact where they are, nothing where they are not."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from support.families import (
    CASES,
    LLAMA_SIZES,
    MODELS,
    OUTPUT,
    PLACES,
    SEQUENTIAL,
    TOKENS,
    hook_count,
    logits,
    random_model,
    random_models,
    read,
)
from support.world import random_dictionary
from torch import Tensor, nn

from sae.base.errors import UserError
from sae.edits import (
    ALL,
    ALL_BUT_FIRST,
    Add,
    Edit,
    From,
    Last,
    Put,
    Rows,
    Splice,
    Where,
    Window,
    edited,
)
from sae.models.hooks import find_site, read_activations
from sae.models.site import Site

D = 32
STREAM = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post")
POST = "blocks.1.hook_resid_post"


@dataclass(frozen=True)
class By:
    """A change by any function, which keeps what it was given: a mode of one class."""

    function: Callable[[Tensor], Tensor] = torch.clone
    calls: list[tuple[Tensor, Tensor, Rows]] = field(default_factory=list)

    def apply(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        self.calls.append((x.clone(), y.clone(), rows))
        return self.function(y)


ZERO = By(torch.zeros_like)


def vectors(n: int = 3, scale: float = 8.0, seed: int = 3) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed)) * scale


def run(model: Any, edits: list[Edit], tokens: Tensor = TOKENS, **settings: Any) -> Tensor:
    with torch.no_grad(), edited(model, edits):
        return model(tokens, **settings)[0]


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return random_models()


@pytest.fixture(scope="module")
def llama(models) -> Any:
    return models["llama"]


# What is left alone


@pytest.mark.parametrize("family", PLACES)
def test_an_empty_list_leaves_the_logits_bit_equal(models, family):
    assert torch.equal(run(models[family], []), logits(models[family]))


@pytest.mark.parametrize(("family", "hook"), CASES)
def test_an_identity_edit_leaves_the_logits_bit_equal(models, family, hook):
    model, same = models[family], By()
    site = find_site(model, f"blocks.1.{hook}")
    assert torch.equal(run(model, [Edit(site, same, ALL)]), logits(model))
    assert len(same.calls) == 1


@pytest.mark.parametrize("hook", STREAM)
@pytest.mark.parametrize("family", SEQUENTIAL)
def test_strength_zero_leaves_the_logits_bit_equal_even_beside_a_steered_sequence(
    models, family, hook
):
    model = models[family]
    each = vectors()
    each[1] = 0
    found = run(model, [Edit(find_site(model, f"blocks.1.{hook}"), Add(each), ALL)])
    plain = logits(model)
    assert torch.equal(found[1], plain[1])
    assert not torch.allclose(found[0], plain[0])


def test_adding_nothing_keeps_the_sign_of_a_zero():
    y = torch.tensor([[-0.0, 0.0, 1.0]])
    rows = Rows(torch.tensor([5]), Window(1, 0, 6))
    found = Add(torch.zeros(3)).apply(y, y, rows)
    assert torch.equal(found.signbit(), y.signbit())


def test_positions_that_are_not_chosen_keep_their_activations_to_the_bit(llama):
    chosen = torch.rand(TOKENS.shape, generator=torch.Generator().manual_seed(0)) > 0.5
    site = find_site(llama, POST)
    before = read(llama, POST)[POST]
    with edited(llama, [Edit(site, Put(torch.ones(D)), Where(chosen))]):
        after = read(llama, POST)[POST]
    assert torch.equal(after, torch.where(chosen[..., None], 1.0, before))


# What is changed


@pytest.mark.parametrize(("family", "hook"), CASES)
def test_an_edit_reaches_the_logits_and_ends_with_its_context(models, family, hook):
    model = models[family]
    before, count = logits(model), hook_count(model)
    edit = Edit(find_site(model, f"blocks.1.{hook}"), ZERO, ALL)
    assert not torch.allclose(run(model, [edit]), before)
    assert torch.equal(logits(model), before)
    assert hook_count(model) == count


@pytest.mark.parametrize("family", PLACES)
def test_what_a_change_returns_takes_the_place_of_the_activations(models, family):
    model = models[family]
    name, following = f"blocks.0.{OUTPUT[family]}", "blocks.1.hook_resid_pre"
    original = read(model, name)[name]
    with edited(model, [Edit(find_site(model, name), By(lambda y: 2 * y), ALL)]):
        assert torch.equal(read(model, following)[following], 2 * original)


def test_a_vector_is_added_everywhere_but_at_the_first_position(llama):
    original = read(llama, POST)[POST]
    with edited(llama, [Edit(find_site(llama, POST), Add(vectors()), ALL_BUT_FIRST)]):
        found = read(llama, POST)[POST]
    assert torch.equal(found[:, 0], original[:, 0])
    assert torch.equal(found[:, 1:], original[:, 1:] + vectors()[:, None])


def test_a_batch_of_several_vectors_equals_separate_runs(llama):
    site, tokens = find_site(llama, POST), TOKENS[:1].expand(3, -1)
    together = run(llama, [Edit(site, Add(vectors()), ALL_BUT_FIRST)], tokens)
    for vector, found in zip(vectors(), together, strict=True):
        alone = run(llama, [Edit(site, Add(vector), ALL_BUT_FIRST)], TOKENS[:1])
        torch.testing.assert_close(found, alone[0])


@pytest.mark.parametrize("family", [f for f in PLACES if f != "bert"])
def test_the_output_of_a_block_put_from_another_run_gives_that_runs_logits(models, family):
    model, other = models[family], TOKENS.flip(1)
    there = read_activations(model, [find_site(model, POST)], other)[POST]
    found = run(model, [Edit(find_site(model, POST), Put(there), ALL)])
    assert torch.equal(found, run(model, [], other))


@pytest.mark.parametrize("family", SEQUENTIAL)
def test_the_middle_of_a_block_put_from_another_run_gives_that_runs_logits(models, family):
    model, other, name = models[family], TOKENS.flip(1), "blocks.1.hook_resid_mid"
    there = read_activations(model, [find_site(model, name)], other)[name]
    found = run(model, [Edit(find_site(model, name), Put(there), ALL)])
    torch.testing.assert_close(found, run(model, [], other), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", [POST, "blocks.1.hook_mlp_out"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_splice_equals_the_reconstruction_put_there_by_a_plain_hook(models, family, name):
    model, dictionary = models[family], random_dictionary("jumprelu")
    chosen = torch.rand(TOKENS.shape, generator=torch.Generator().manual_seed(1)) > 0.3
    path, _ = PLACES[family][name.split(".", 2)[2]]

    def overwrite(_: nn.Module, __: Any, output: Any) -> Any:
        new = (output[0] if isinstance(output, tuple) else output).clone()
        new[chosen] = dictionary(new[chosen])
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = model.get_submodule(path.format(1)).register_forward_hook(overwrite)
    expected = logits(model)
    handle.remove()
    edit = Edit(find_site(model, name), Splice(dictionary), Where(chosen))
    assert torch.equal(run(model, [edit]), expected)
    assert not torch.allclose(expected, logits(model))


def test_activations_keep_their_type_and_gradients_reach_the_edit():
    model = random_model("LlamaForCausalLM", LLAMA_SIZES).bfloat16()
    vector = vectors(1)[0].requires_grad_()
    with edited(model, [Edit(find_site(model, POST), Add(vector), ALL)]):
        found = model(TOKENS).logits
    assert found.dtype == torch.bfloat16
    found.float().sum().backward()
    assert bool(vector.grad.abs().sum() > 0)


def test_a_block_that_gets_its_input_by_keyword_is_read_and_edited_too():
    class Block(nn.Module):
        def forward(self, *, hidden_states: Tensor) -> Tensor:
            return hidden_states + 1

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, tokens: Tensor, use_cache: bool = False) -> Tensor:
            return self.block(hidden_states=tokens[..., None].float().expand(-1, -1, 4))

    model, site = Model(), Site("x", "block", "input")
    assert read_activations(model, [site], TOKENS)["x"].shape == (*TOKENS.shape, 4)
    with edited(model, [Edit(site, ZERO, ALL)]):
        assert torch.equal(model(TOKENS), torch.ones(*TOKENS.shape, 4))


# Several edits


@pytest.mark.parametrize("hook", STREAM)
def test_two_edits_of_disjoint_positions_commute(llama, hook):
    site = find_site(llama, f"blocks.1.{hook}")
    early = torch.arange(TOKENS.shape[1]).expand_as(TOKENS) < 5
    edits = [
        Edit(site, Add(vectors()), Where(early)),
        Edit(site, Put(vectors(1)[0]), Where(~early)),
    ]
    assert torch.equal(run(llama, edits), run(llama, edits[::-1]))


@pytest.mark.parametrize("hook", STREAM)
def test_edits_of_one_place_are_applied_in_their_order(llama, hook):
    name = f"blocks.1.{hook}"
    site, (add, put) = find_site(llama, name), vectors(2)
    edits = [Edit(site, Add(add), ALL), Edit(site, Put(put), ALL)]
    for order, expected in ((edits, put), (edits[::-1], put + add)):
        with edited(llama, order):
            found = read(llama, name)[name]
        torch.testing.assert_close(found, expected.expand_as(found))


def test_one_edit_twice_in_the_list_acts_twice(llama):
    site, (vector,) = find_site(llama, POST), vectors(1)
    once = Edit(site, Add(vector), ALL, find_site(llama, "blocks.0.hook_resid_post"))
    twice = Edit(site, Add(2 * vector), ALL)
    torch.testing.assert_close(run(llama, [once, once]), run(llama, [twice]))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("order", [1, -1])
def test_the_middle_of_a_block_comes_before_its_output_in_any_order_of_the_list(
    models, family, order
):
    model = models[family]
    mid, post = (
        find_site(model, f"blocks.1.{h}") for h in ("hook_resid_mid", "hook_resid_post")
    )
    there = read(model, POST)[POST]
    edits = [Edit(mid, Add(vectors()), ALL), Edit(post, Put(there), ALL)][::order]
    assert torch.equal(run(model, edits), logits(model))
    seen = By()
    following = find_site(model, "blocks.2.hook_resid_pre")
    edits = [Edit(mid, Add(vectors()), ALL), Edit(following, seen, ALL, source=post)][::order]
    run(model, edits)
    ((x, y, _),) = seen.calls
    assert torch.equal(x, y)
    assert not torch.allclose(x, there.flatten(0, 1))


# The middle of a block


def read_after_zeroing_the_middle(model: nn.Module) -> tuple[Tensor, Tensor]:
    with edited(model, [Edit(find_site(model, "blocks.1.hook_resid_mid"), ZERO, ALL)]):
        seen = read(model, "blocks.1.hook_mlp_out", "blocks.1.hook_resid_post")
    return seen["blocks.1.hook_mlp_out"], seen["blocks.1.hook_resid_post"]


@pytest.mark.parametrize("family", SEQUENTIAL)
def test_an_edit_in_the_middle_of_a_block_changes_the_stream_and_not_the_mlp_alone(
    models, family
):
    mlp_out, resid_post = read_after_zeroing_the_middle(models[family])
    torch.testing.assert_close(resid_post, mlp_out, rtol=1e-4, atol=1e-5)


def test_an_edit_in_the_middle_of_a_block_of_bert_goes_through_its_norm():
    model = random_model(*MODELS["bert"])
    norm = model.encoder.layer[1].attention.output.LayerNorm
    nn.init.constant_(norm.bias, 0.5)
    mlp_out, resid_post = read_after_zeroing_the_middle(model)
    torch.testing.assert_close(resid_post, 0.5 + mlp_out)


# Reading at another place


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out"),
        ("blocks.1.hook_resid_mid", "blocks.1.hook_resid_mid"),
        ("blocks.0.hook_resid_pre", "blocks.1.hook_resid_mid"),
        ("blocks.1.hook_resid_pre", "blocks.1.hook_attn_out"),
        ("blocks.1.hook_resid_post", "blocks.1.hook_resid_post"),
    ],
)
def test_a_change_sees_what_another_place_holds_in_the_same_forward(
    models, family, source, target
):
    model, same = models[family], By()
    sites = [find_site(model, name) for name in (source, target)]
    batches = [TOKENS, TOKENS.flip(1)[:, :5]]
    count = hook_count(model)
    with torch.inference_mode(), edited(model, [Edit(sites[1], same, ALL, sites[0])]):
        inside = [model(batch).logits for batch in batches]
    assert hook_count(model) == count
    for batch, (x, y, _), found in zip(batches, same.calls, inside, strict=True):
        seen = read_activations(model, list(dict.fromkeys(sites)), batch)
        assert torch.equal(x, seen[source].flatten(0, 1))
        assert torch.equal(y, seen[target].flatten(0, 1))
        with torch.inference_mode():
            assert torch.equal(found, model(batch).logits)


def test_an_edit_from_a_later_place_is_refused_and_leaves_no_hook(llama):
    early, late = (find_site(llama, f"blocks.{i}.hook_resid_post") for i in (0, 2))
    count = hook_count(llama)
    with pytest.raises(
        UserError, match=r"reads blocks\.2\.hook_resid_post, which the model computes later"
    ):
        run(llama, [Edit(early, By(), ALL, late)])
    assert hook_count(llama) == count


def test_no_forward_is_edited_by_what_another_one_held():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sometimes, self.always = nn.Identity(), nn.Identity()

        def forward(self, x: Tensor, whole: bool = True) -> Tensor:
            return self.always(self.sometimes(x) if whole else x)

    model, x = Model(), torch.ones(1, 2, 4)
    source, site = (Site(name, name, "output") for name in ("sometimes", "always"))
    with edited(model, [Edit(site, Splice(torch.neg), ALL, source)]):
        assert torch.equal(model(x), -x)
        with pytest.raises(UserError, match="an edit of always reads sometimes"):
            model(x, whole=False)


# Positions


def seen_while_writing(model: Any, prompt: Tensor, **settings: Any) -> list[list[int]]:
    """The positions that an edit is given in each forward of a generation of four tokens."""
    same = By()
    with edited(model, [Edit(find_site(model, POST), same, ALL)]):
        write(model, prompt, 4, **settings)
    return [rows.column.tolist() for _, _, rows in same.calls]


def write(model: Any, prompt: Tensor, n: int, **settings: Any) -> Tensor:
    settings = {"attention_mask": torch.ones_like(prompt), "do_sample": False} | settings
    with torch.inference_mode():
        found = model.generate(prompt, max_new_tokens=n, min_new_tokens=n, **settings)
    return found[:, prompt.shape[1] :]


CAUSAL = [family for family in PLACES if family != "bert"]


@pytest.mark.parametrize("family", CAUSAL)
def test_positions_are_counted_from_the_start_while_a_model_writes(models, family):
    model = models[family]
    for prompt in (TOKENS[:1, :3], TOKENS[:1, :1]):
        n = prompt.shape[1]
        cached = [list(range(n)), *([n + i] for i in range(3))]
        assert seen_while_writing(model, prompt) == cached
        whole = [list(range(n + i)) for i in range(4)]
        assert seen_while_writing(model, prompt, use_cache=False) == whole


def test_positions_are_counted_with_a_cache_of_fixed_size_and_in_pieces_of_a_prompt(llama):
    pieces = seen_while_writing(llama, TOKENS[:1, :5], prefill_chunk_size=2)
    assert pieces == [[0, 1], [2, 3], [4], [5], [6], [7]]
    fixed = seen_while_writing(llama, TOKENS[:1, :3], cache_implementation="static")
    assert fixed == [[0, 1, 2], [3], [4], [5]]


def test_a_cache_that_is_handed_over_by_position_or_was_filled_before_counts_too(llama):
    from transformers import DynamicCache

    site = find_site(llama, POST)
    for by_position in (True, False):
        cache, same = DynamicCache(), By()
        with torch.no_grad():
            llama(TOKENS[:, :4], past_key_values=cache)
            with edited(llama, [Edit(site, same, From(6))]):
                if by_position:
                    llama(TOKENS[:, 4:8], None, None, cache)
                else:
                    llama(TOKENS[:, 4:8], past_key_values=cache)
        ((_, _, rows),) = same.calls
        assert rows.column.tolist() == [6, 7] * 3
        assert rows.sequence.tolist() == [0, 0, 1, 1, 2, 2]


def test_a_model_without_keys_and_values_counts_as_well():
    from transformers import MambaConfig, MambaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"vocab_size": 97, "hidden_size": D, "num_hidden_layers": 2, "state_size": 4}
        model = MambaForCausalLM(MambaConfig(**sizes, bos_token_id=0, eos_token_id=1)).eval()
    for prompt in (TOKENS[:1, :3] % 97, TOKENS[:1, :1] % 97):
        n = prompt.shape[1]
        for _ in range(2):
            found = seen_while_writing(model, prompt, pad_token_id=1)
            assert found == [list(range(n)), *([n + i] for i in range(3))]


WRITES = [(f, h) for f, h in CASES if f != "bert" and h in STREAM]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "hook"), WRITES)
def test_writing_with_a_cache_equals_writing_without(models, family, hook):
    model, prompt = models[family], TOKENS[:, :6]
    site = find_site(model, f"blocks.1.{hook}")
    with edited(model, [Edit(site, Add(vectors()), ALL_BUT_FIRST)]):
        cached, whole = (write(model, prompt, 32, use_cache=u) for u in (True, False))
    assert torch.equal(cached, whole)
    assert not torch.equal(cached, write(model, prompt, 32))


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 6])
@pytest.mark.parametrize(
    "positions",
    [ALL, ALL_BUT_FIRST, From(8), Where(torch.arange(38).expand(3, -1) % 3 == 1)],
    ids=["all", "all but first", "from 8", "every third"],
)
def test_a_cache_changes_nothing_wherever_an_edit_acts(llama, positions, n):
    prompt = TOKENS[:, :n]
    with edited(llama, [Edit(find_site(llama, POST), Add(vectors()), positions)]):
        cached, whole = (write(llama, prompt, 32, use_cache=u) for u in (True, False))
    assert torch.equal(cached, whole)
    assert not torch.equal(cached, write(llama, prompt, 32))


def test_the_last_position_is_the_one_that_the_next_token_is_predicted_from(llama):
    site, same = find_site(llama, POST), By()
    with edited(llama, [Edit(site, same, Last())]):
        write(llama, TOKENS[:2, :5], 3)
    assert [rows.column.tolist() for _, _, rows in same.calls] == [[4, 4], [5, 5], [6, 6]]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_a_sequence_padded_on_the_left_is_edited_like_a_lone_one_where_a_mask_says_so(
    models, family
):
    model, padding, n = models[family], 3, 8
    site, (vector,) = find_site(model, POST), vectors(1)
    text = TOKENS[0, :6]
    padded = torch.stack(
        [torch.cat([torch.ones(padding, dtype=torch.int64), text]), TOKENS[1, :9]]
    )
    attention = torch.ones_like(padded)
    attention[0, :padding] = 0
    # Of the first text the positions behind its first token, which stands behind the padding.
    chosen = torch.ones((2, padded.shape[1] + n), dtype=torch.bool)
    chosen[0, : padding + 1] = False
    chosen[1, 0] = False
    with edited(model, [Edit(site, Add(vector), Where(chosen))]):
        both = write(model, padded, n, attention_mask=attention)
    with edited(model, [Edit(site, Add(vector), ALL_BUT_FIRST)]):
        alone = [write(model, one[None], n) for one in (text, TOKENS[1, :9])]
    assert torch.equal(both, torch.cat(alone))


# Refusals, and what is left behind


@pytest.mark.parametrize("hook", STREAM)
def test_no_hook_is_left_when_the_context_or_the_edit_raises(models, hook):
    model = models["gpt2"]
    before, count = logits(model), hook_count(model)
    site = find_site(model, f"blocks.2.{hook}")

    def fails(_: Tensor) -> Tensor:
        raise RuntimeError("inside the edit")

    with pytest.raises(KeyError), edited(model, [Edit(site, ZERO, ALL)] * 2):
        raise KeyError("inside the context")
    with pytest.raises(RuntimeError, match="inside the edit"):
        run(model, [Edit(site, By(fails), ALL)])
    nowhere = Site("x", "transformer.nowhere", "output")
    with pytest.raises(AttributeError, match="nowhere"):
        run(model, [Edit(site, ZERO, ALL), Edit(nowhere, ZERO, ALL, source=site)])
    assert hook_count(model) == count
    assert torch.equal(logits(model), before)


def test_tensors_of_another_shape_than_the_batch_are_refused(llama):
    site = find_site(llama, POST)
    whole = torch.ones(2, TOKENS.shape[1], dtype=torch.bool)
    for change, positions, sentence in (
        (Add(vectors(5)), ALL, "values for 5 sequences, but the model is run on 3"),
        (Put(torch.zeros(2, 11, D)), ALL, "values for 2 sequences, but the model is run on 3"),
        (
            ZERO,
            Where(whole),
            "of 11 positions, but the model is run on 3 sequences of 11",
        ),
        (ZERO, Where(whole[:, :4].repeat(2, 1)[:3]), "3 sequences of 4 positions"),
    ):
        with pytest.raises(UserError, match=sentence):
            run(llama, [Edit(site, change, positions)])


def test_places_without_one_vector_a_token_are_refused(llama):
    site = find_site(llama, "model")
    with pytest.raises(UserError, match="model does not have one vector for each token"):
        run(llama, [Edit(site, ZERO, ALL)])
