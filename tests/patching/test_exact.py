"""Exact patching: its two ends, against plain hooks, counted, and on a gate of two inputs."""

import pytest
import torch
from support.families import BLOCKS, MODELS, first, hook_count, random_model
from support.patching_pairs import CAUSAL, linear_model, pair, places_of, random_pairs, states

from sae.models.calls import hooked
from sae.models.resume import can_resume
from sae.patching.cells import Cell
from sae.patching.exact import Exact, Target


@pytest.fixture(scope="module", params=CAUSAL)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def world(family):
    places = places_of(random_model(*MODELS[family]))
    clean, corrupt = states(places, random_pairs())
    return places, clean, corrupt


def target(world, kind, layer, patch="denoising"):
    places, clean, corrupt = world
    site = places.site(kind, layer)
    base, source = (corrupt, clean) if patch == "denoising" else (clean, corrupt)
    name = site.hook_name
    return base, source, Target(site, base.at[name], source.at[name])


def effects(world, kind, layer, cells, patch="denoising", batch_size=64):
    exact = Exact(world[0], batch_size)
    return exact.effects(*target(world, kind, layer, patch), cells)


def close(found, expected):
    torch.testing.assert_close(
        found, torch.as_tensor(expected).to(found).expand_as(found), rtol=1e-3, atol=2e-4
    )


@pytest.mark.parametrize("patch", ["denoising", "noising"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_patching_the_whole_stream_gives_the_other_run_and_nothing_gives_none(
    world, layer, patch
):
    close(effects(world, "residual", layer, [Cell("residual", layer)], patch), 1.0)
    places, clean, _ = world
    site = places.site("residual", layer)
    same = Target(site, clean.at[site.hook_name], clean.at[site.hook_name])
    exact = Exact(places, 64)
    found = exact.effects(clean, world[2], same, [Cell("residual", layer)])
    assert torch.equal(found, torch.zeros_like(found))
    assert exact.cost.forwards == 0


def test_at_the_end_the_last_position_is_all_and_no_other_is_anything(world):
    cells = [Cell("residual", 2, position=i) for i in range(7)]
    close(effects(world, "residual", 2, cells), [0, 0, 0, 0, 0, 0, 1.0])


@pytest.mark.parametrize("kind", ["residual", "attention", "mlp", "head"])
def test_a_patch_gives_what_plain_hooks_give_in_the_whole_model(world, kind):
    places, clean, corrupt = world
    site = places.site(kind, 1)
    cells = [Cell(kind, 1, head=2)] if kind == "head" else [Cell(kind, 1, position=4)]
    base, source = corrupt.at[site.hook_name], clean.at[site.hook_name]
    mixed = base.clone()
    if kind == "head":
        mixed[:, :, 16:24] = source[:, :, 16:24]
    else:
        mixed[:, 4] = source[:, 4]
    with torch.no_grad(), hooked(places.model.module, site, lambda _: mixed):
        logits = places.model.module(corrupt.tokens).logits
    metric = corrupt.answers.difference(logits[:, -1:])
    expected = (metric - corrupt.metric) / (clean.metric - corrupt.metric)
    found = effects(world, kind, 1, cells)[:, 0]
    assert float(expected.abs().max()) > 0.01
    close(found, expected)


def test_batches_of_any_size_give_the_same(world):
    cells = [Cell("attention", 1, position=i) for i in range(7)]
    close(
        effects(world, "attention", 1, cells),
        effects(world, "attention", 1, cells, batch_size=1),
    )


def test_all_heads_of_a_block_together_are_its_attention(world):
    whole = effects(world, "head", 1, [Cell("head", 1)])
    close(whole, effects(world, "attention", 1, [Cell("attention", 1)]))


def test_positions_before_the_first_difference_have_no_effect_and_cost_nothing(world):
    exact = Exact(world[0], 64)
    cells = [Cell("residual", 1, position=i) for i in (0, 1)]
    found = exact.effects(*target(world, "residual", 1), cells)
    assert torch.equal(found, torch.zeros(2, 2, dtype=torch.float64))
    assert exact.cost.forwards == 0
    assert exact.cost.patched == 4


def test_blocks_that_are_counted_are_those_that_are_computed(family, world):
    places, exact, computed = world[0], Exact(world[0], 5), []
    assert all(can_resume(places.model.module, block) for block in range(4))
    blocks = [places.model.module.get_submodule(f"{BLOCKS[family]}.{i}") for i in range(3)]
    parts = [next(part for part in block.modules() if part is not block) for block in blocks]
    handles = [
        part.register_forward_hook(lambda _, __, out: computed.append(len(first(out))))
        for part in parts
    ]
    for layer in range(3):
        cells = [Cell("mlp", layer, position=i) for i in range(7)]
        exact.effects(*target(world, "mlp", layer), cells)
    for handle in handles:
        handle.remove()
    assert sum(computed) / 3 == pytest.approx(exact.cost.forwards)
    assert exact.cost.forwards <= 0.67 * exact.cost.patched


def test_an_exception_on_the_way_leaves_no_trace(world):
    places = world[0]
    module = places.model.module

    def stop(_):
        raise ZeroDivisionError

    before = hook_count(module)
    exact = Exact(places, 64, stop)
    with pytest.raises(ZeroDivisionError):
        exact.effects(*target(world, "mlp", 1), [Cell("mlp", 1, position=4)])
    assert hook_count(module) == before
    assert not any("forward" in vars(part) for part in module.modules())


@pytest.mark.parametrize(
    ("activation", "denoising", "noising"), [("relu", 0.0, 1.0), ("linear", 0.5, 0.5)]
)
def test_directions_differ_at_an_and_gate_and_agree_where_all_is_linear(
    activation, denoising, noising
):
    places = places_of(gate(activation), ("residual",))
    # Tokens 2 are ones and tokens 1 zeros; what is read are the two before the last.
    world = (places, *states(places, [pair([2, 2, 1], [1, 1, 1], 5, 6)], ("residual",)))
    for patch, expected in (("denoising", denoising), ("noising", noising)):
        for position in (0, 1):
            cell = [Cell("residual", 0, position=position)]
            close(effects(world, "residual", 0, cell, patch), expected)


def gate(activation):
    """A model whose second block sums a bit of all positions, takes one off, and activates."""
    module = linear_model(activation, n_layer=2, tie_word_embeddings=False)
    with torch.no_grad():
        for weight in module.parameters():
            weight.zero_()
        module.transformer.wte.weight[2, 0] = 1.0
        block = module.transformer.h[1]
        # Without queries and keys all three positions are looked at alike.
        block.attn.c_attn.weight[0, 64] = 3.0
        block.attn.c_proj.weight[0, 1] = 1.0
        block.mlp.c_fc.weight[1, 0] = 1.0
        block.mlp.c_fc.bias[0] = -1.0
        block.mlp.c_proj.weight[0, 2] = 1.0
        module.lm_head.weight[5, 2] = 4.0
    return module
