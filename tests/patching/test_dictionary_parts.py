"""Patching features, the error that a dictionary leaves, and both."""

from dataclasses import replace

import pytest
import torch
from support.families import MODELS, random_model
from support.patching_pairs import places_of, random_pairs
from support.world import random_dictionary

from sae.base import UserError
from sae.dictionary.normalisation import ConstantNorm, LayerNorm
from sae.models import ModelRecord
from sae.patching.attribution import gradients
from sae.patching.cells import Cell
from sae.patching.config import PatchConfig
from sae.patching.exact import Exact, Target
from sae.patching.features import PlacedDictionary
from sae.patching.states import both_states

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module", params=["plain", "constant", "layer_norm", "transcoder"])
def world(request):
    places = places_of(random_model(*MODELS["llama"]))
    dictionary = random_dictionary(hook_name=HOOK).placed(places.site("residual", 1))
    if request.param == "transcoder":
        dictionary = dictionary.placed(places.site("residual", 0), places.site("mlp", 1))
    by = {"constant": ConstantNorm(), "layer_norm": LayerNorm()}.get(request.param)
    placed = PlacedDictionary.of("mine", dictionary.normalised(by), places)
    clean, corrupt = both_states(places, random_pairs(), placed.sites)
    return places, placed, clean, corrupt


def effects(world, target, cell):
    places, _, clean, corrupt = world
    return Exact(places, 16).effects(corrupt, clean, target, [cell])


def test_features_and_error_together_are_the_activation_patch(world):
    _, placed, clean, corrupt = world
    seen = placed.seen(corrupt), placed.seen(clean)
    name = placed.written.hook_name
    plain = Target(placed.written, corrupt.at[name], clean.at[name])
    for position in (2, 4, 6):
        cell = Cell("features+error", 1, position=position)
        both = effects(world, placed.target("features+error", *seen), cell)
        torch.testing.assert_close(both, effects(world, plain, cell), rtol=1e-3, atol=1e-4)
    parts = [placed.target(part, *seen) for part in ("features", "error")]
    total = sum(target.source - target.base for target in parts)
    torch.testing.assert_close(total, plain.source - plain.base, rtol=1e-4, atol=1e-4)


def test_single_features_together_are_what_features_change(world):
    _, placed, clean, corrupt = world
    base, source = placed.seen(corrupt), placed.seen(clean)
    of_one = [placed.feature_target(j, base, source) for j in range(placed.dictionary.d_sae)]
    total = sum(target.source - target.base for target in of_one)
    by = placed.dictionary.writes[0].normalisation
    if by is None:
        change = source.rebuilt - base.rebuilt
    else:
        # In the unit of the run that is patched; what is rebuilt of the other has its own.
        change = ((source.codes - base.codes) @ placed.dictionary.W_dec) * by.lengths(base.x)
    torch.testing.assert_close(total, change, rtol=1e-3, atol=1e-4)


def test_shares_of_features_are_gradients_along_what_they_put_in(world):
    places, placed, clean, corrupt = world
    base, source = placed.seen(corrupt), placed.seen(clean)
    slopes = gradients(places, corrupt, clean, [placed.written], "plain", PatchConfig())
    gradient = slopes[placed.written.hook_name]
    shares = placed.feature_shares(base, source, gradient)
    for feature in (0, 7):
        target = placed.feature_target(feature, base, source)
        expected = ((target.source - target.base) * gradient).sum((1, 2))
        torch.testing.assert_close(shares[:, feature], expected, rtol=1e-3, atol=1e-5)


def test_a_dictionary_of_another_model_is_refused():
    places = places_of(random_model(*MODELS["llama"]))
    places.model.record = ModelRecord("here", "here", "aaa")
    dictionary = random_dictionary(hook_name=HOOK).placed(places.site("residual", 1))

    def of(name, digest):
        record = replace(dictionary.record, model=ModelRecord(name, name, digest))
        return replace(dictionary, record=record)

    with pytest.raises(UserError, match="mine is a dictionary of there, not of here"):
        PlacedDictionary.of("mine", of("there", "unknown"), places)
    with pytest.raises(
        UserError, match="mine is a dictionary of here with weights bbb, and this model has aaa"
    ):
        PlacedDictionary.of("mine", of("here", "bbb"), places)
    assert PlacedDictionary.of("mine", of("here", "aaa"), places).layer == 1
