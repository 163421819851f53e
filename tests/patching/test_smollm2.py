"""The known patterns in a real model: names early, the last token late, heads of block 23."""

import pytest

import sae
from sae.models.load import ModelConfig, load_model
from sae.patching.cells import Cell
from sae.patching.exact import Exact, Target
from sae.patching.pairs import Pair, PairText, tokenised
from sae.patching.states import Places, both_states

pytestmark = [pytest.mark.slow, pytest.mark.longest]
IOI = PairText(
    "When Mary and John went to the store, John gave a drink to",
    "When Mary and John went to the store, Mary gave a drink to",
    " Mary",
    " John",
)
FACT = PairText(
    "The Eiffel Tower is in the city of", "The Colosseum is in the city of", " Paris", " Rome"
)


@pytest.fixture(scope="module")
def model():
    return load_model(ModelConfig(name="smollm2", device="cpu"))


def effects(model, text, kind, layers, cells):
    """Exact denoising effects, layer by layer."""
    pair = tokenised(model, text)
    assert isinstance(pair, Pair)
    places = Places.of(model, [kind])
    sites = [places.site(kind, layer) for layer in layers]
    clean, corrupt = both_states(places, [pair], sites)
    found = {}
    for layer, site in zip(layers, sites, strict=True):
        name = site.hook_name
        target = Target(site, corrupt.at[name], clean.at[name])
        own = [Cell(kind, layer, **cell) for cell in cells(len(pair.clean))]
        found[layer] = Exact(places, 64).effects(corrupt, clean, target, own)[0].tolist()
    return found


def positions(n):
    return [{"position": i} for i in range(n)]


def test_a_name_carries_the_answer_early_and_the_last_token_from_block_24(model):
    found = effects(model, IOI, "residual", [5, 18, 24, 27], positions)
    for layer in (5, 18):
        assert found[layer][10] > 0.9
        assert abs(found[layer][-1]) < 0.15
    for layer in (24, 27):
        assert found[layer][-1] > 0.75
        assert abs(found[layer][10]) < 0.15
    others = [values[i] for values in found.values() for i in range(15) if i not in (10, 14)]
    assert max(map(abs, others)) < 0.15


def test_heads_of_block_23_bring_it_to_the_last_token(model):
    def heads(n):
        return [{"head": i} for i in range(9)]

    found = effects(model, IOI, "head", [10, 23], heads)
    assert max(range(9), key=lambda i: found[23][i]) == 3
    assert found[23][3] > 0.25
    assert max(map(abs, found[10])) < 0.1


def test_a_landmark_carries_its_city_early_and_the_last_token_late(model):
    found = effects(model, FACT, "residual", [10, 25], positions)
    subject = max(range(10), key=lambda i: found[10][i])
    assert subject in (2, 3, 4)
    assert found[10][subject] > 0.5
    assert found[25][-1] > 0.75


def test_the_louvre_is_longer_than_the_colosseum_and_the_eiffel_pair_is_done(tmp_path, capsys):
    found = sae.patch(
        run=str(tmp_path), pairs=PAIRS, sites=["head"], methods=["relp"], patches=["denoising"]
    )
    assert "the clean prompt has 9 tokens and the corrupt one 10" in capsys.readouterr().err
    assert [group["n_pairs"] for group in found.summary["groups"]] == [1]


PAIRS = [
    {key: getattr(one, key) for key in ("clean", "corrupt", "answer", "wrong")}
    for one in (
        FACT,
        PairText("The Louvre is in the city of", FACT.corrupt, FACT.answer, FACT.wrong),
    )
]
