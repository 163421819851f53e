"""Path patching: with nothing held it is a patch, with all held the direct path."""

import pytest
import torch
from support.families import MODELS, random_model
from support.patching_pairs import CAUSAL, linear_model, pair, places_of, random_pairs, states

from sae.models.calls import hooked
from sae.models.resume import resume
from sae.patching.cells import Cell, normalised
from sae.patching.exact import Exact, Target
from sae.patching.paths import Receiver, path_effects, senders


@pytest.fixture(scope="module", params=CAUSAL)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def world(family):
    places = places_of(random_model(*MODELS[family]))
    return places, *states(places, random_pairs())


def paths(world, receiver, cells, frozen="all"):
    places, clean, corrupt = world
    found = Receiver.of(receiver, places)
    return path_effects(Exact(places, 16), (corrupt, clean), found, cells, frozen)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("head", [1, None])
def test_to_the_logits_with_nothing_held_it_is_the_patch_of_the_sender(world, head):
    places, clean, corrupt = world
    kind = "head" if head is not None else "mlp"
    site = places.site(kind, 1)
    target = Target(site, corrupt.at[site.hook_name], clean.at[site.hook_name])
    expected = Exact(places, 16).effects(corrupt, clean, target, [Cell(kind, 1, head=head)])
    sent = [Cell("path", 1, head=head, receiver="logits")]
    assert float(expected.abs().min()) > 1e-3
    close(paths(world, "logits", sent, "nothing"), expected)


def test_to_the_logits_with_all_held_it_is_what_the_sender_adds_to_the_last_stream(world):
    places, clean, corrupt = world
    site = places.site("mlp", 1)
    change = clean.at[site.hook_name] - corrupt.at[site.hook_name]
    with torch.no_grad():
        logits = resume(places.model.module, 3, corrupt.streams[3] + change, corrupt.tokens)[0]
    metric = corrupt.answers.difference(logits[:, -1:])
    expected = normalised(metric[:, None], corrupt.metric, clean.metric).double()
    close(paths(world, "logits", [Cell("path", 1, receiver="logits")]), expected)


def test_what_reaches_a_receiver_goes_through_it_alone(world):
    places, clean, corrupt = world
    # Of all that the first MLP writes, the second block's attention hears, and nothing else.
    found = paths(world, "attention1", [Cell("path", 0, receiver="attention1")])
    module, site = places.model.module, places.site("attention", 1)
    change = clean.at[places.site("mlp", 0).hook_name]
    change = change - corrupt.at[places.site("mlp", 0).hook_name]
    heard = []
    with torch.no_grad(), hooked(module, site, heard.append):
        resume(module, 1, corrupt.streams[1] + change, corrupt.tokens)
    target = Target(site, corrupt.at[site.hook_name], heard[0])
    expected = Exact(places, 16).effects(corrupt, clean, target, [Cell("attention", 1)])
    assert float(expected.abs().min()) > 1e-3
    close(found, expected)


def test_all_heads_of_a_receiving_block_together_are_its_attention(world):
    sent = [Cell("path", 0, head=h) for h in range(4)]
    whole = paths(world, "attention1", sent)
    assert whole.shape == (2, 4)
    one = paths(world, "L1H0", sent)
    assert not torch.allclose(one, whole, atol=1e-3)


def test_direct_paths_of_a_linear_model_add_up_to_the_whole():
    places = places_of(linear_model())
    clean, corrupt = states(places, [pair([9], [77])])
    receiver = Receiver.of("logits", places)
    cells = senders(places, receiver)
    found = path_effects(Exact(places, 16), (corrupt, clean), receiver, cells, "all")
    embedding = clean.streams[0] - corrupt.streams[0]
    with torch.no_grad():
        logits = resume(places.model.module, 3, corrupt.streams[3] + embedding, corrupt.tokens)
    metric = corrupt.answers.difference(logits[0])
    rest = normalised(metric[:, None], corrupt.metric, clean.metric)
    assert len(cells) == 3 * 5
    assert float(found.sum() + rest.sum()) == pytest.approx(1, abs=1e-3)


def test_senders_come_before_their_receiver(family):
    places = places_of(random_model(*MODELS[family]))
    layers = {c.layer for c in senders(places, Receiver.of("attention2", places))}
    assert layers == {0, 1}
    assert (2, 0) in {(c.layer, c.head) for c in senders(places, Receiver.of("mlp2", places))}
    for name, sentence in (
        ("L7H1", "receivers=L7H1 is out of range, this model has layers 0 to 2"),
        ("L1H9", "receivers=L1H9 is out of range, a layer has heads 0 to 3"),
        ("L0H1", "receivers=L0H1 comes before all heads and MLPs, so none can reach it"),
        ("attention0", "receivers=attention0 comes before all heads and MLPs"),
    ):
        assert str(Receiver.of(name, places)).startswith(sentence)
