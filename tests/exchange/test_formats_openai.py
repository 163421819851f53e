"""OpenAI's files against their `Autoencoder`, written out here a second time."""

from pathlib import Path

import pytest
import torch
from support.world import random_dictionary

import sae
from sae.base.errors import UserError
from sae.dictionary import LayerNorm, TopK
from sae.dictionary.metadata import metadata_of
from sae.exchange.formats import write_dictionary

D_IN, D_SAE = 32, 48
# What `Autoencoder` has to find, strictly: its parameters, then its counts of each latent.
SHAPES = {
    "pre_bias": (D_IN,),
    "encoder.weight": (D_SAE, D_IN),
    "latent_bias": (D_SAE,),
    "decoder.weight": (D_IN, D_SAE),
    "stats_last_nonzero": (D_SAE,),
    "latents_activation_frequency": (D_SAE,),
    "latents_mean_square": (D_SAE,),
}


def rows():
    return 3 * torch.randn(400, D_IN, generator=torch.Generator().manual_seed(1)) + 1


def computed(state, x):
    """Activations and reconstruction of a state dict by their code's meaning."""
    settings = {"activation": "ReLU", "activation_state_dict": {}} | state
    assert {n: tuple(settings.pop(n).shape) for n in SHAPES} == SHAPES
    kind, about = settings.pop("activation"), settings.pop("activation_state_dict")
    assert not settings
    mean, deviation = 0, 1
    if kind == "TopK":
        # Only these read rows less their mean, over the deviation of a sample.
        mean = x.mean(-1, keepdim=True)
        deviation = (x - mean).square().sum(-1, keepdim=True).div(D_IN - 1).sqrt()
        x = (x - mean) / (deviation + 1e-5)
    acts = (x - state["pre_bias"]) @ state["encoder.weight"].T + state["latent_bias"]
    acts = acts.relu()
    if kind == "TopK":
        acts = acts * (acts >= acts.topk(about["k"]).values[:, -1:])
    x_hat = acts @ state["decoder.weight"].T + state["pre_bias"]
    return acts, x_hat * deviation + mean


def assert_same(dictionary, state):
    """The same of `rows()` to 1e-5 of the largest entry, the same latents active."""
    acts, x_hat = computed(state, rows())
    found = dictionary.encode(rows())
    for ours, theirs in ((found, acts), (dictionary(rows()), x_hat)):
        scale = float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * scale)
    assert torch.equal(found > 0, acts > 0)
    assert 0 < float((acts > 0).float().mean()) < 0.9


def state_of(**settings):
    draw = torch.Generator().manual_seed(3)
    state = {name: torch.randn(shape, generator=draw) / 4 for name, shape in SHAPES.items()}
    return state | settings


def save(state, path: Path):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return str(path)


def test_what_we_write_is_all_that_their_class_loads_and_means_the_same(tmp_path):
    ours = random_dictionary("standard", hook_name="blocks.3.hook_mlp_out")
    write_dictionary(ours, tmp_path / "out", "openai")
    state = torch.load(tmp_path / "out/3.pt", weights_only=True)
    assert state["stats_last_nonzero"].dtype == torch.long
    assert_same(ours, state)


@pytest.mark.parametrize("version", ["", "_v4"])
@pytest.mark.parametrize(
    ("location", "hook"),
    [("mlp_post_act", "mlp.hook_post"), ("resid_delta_mlp", "hook_mlp_out")],
)
@pytest.mark.parametrize("settings", [{}, {"activation": "ReLU", "activation_state_dict": {}}])
def test_the_files_of_their_first_versions_are_read_from_where_they_are(
    version, location, hook, settings, tmp_path
):
    state = state_of(**settings)
    path = save(state, tmp_path / f"gpt2-small/{location}{version}/autoencoders/7.pt")
    dictionary = sae.load(path)
    assert_same(dictionary, state)
    assert metadata_of(dictionary) == {"model_name": "gpt2", "hook_name": f"blocks.7.{hook}"}


def test_their_later_files_read_each_row_over_its_own_deviation(tmp_path):
    state = state_of(activation="TopK", activation_state_dict={"k": 5, "postact_fn": "ReLU"})
    path = save(state, tmp_path / "gpt2-small/resid_post_mlp_v5_32k/autoencoders/7.pt")
    dictionary = sae.load(path)
    assert_same(dictionary, state)
    assert dictionary.activation == TopK(5)
    assert dictionary.reads[0].normalisation == LayerNorm()
    # And what we write of it, which their class takes strictly.
    write_dictionary(dictionary, tmp_path / "out", "openai")
    assert_same(dictionary, torch.load(tmp_path / "out/7.pt", weights_only=True))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (("Identity", {}), "activation=Identity; only ReLU and TopK can be read"),
        (
            ("TopK", {"k": 5, "postact_fn": "Identity"}),
            "with k=5 and postact_fn=Identity; give",
        ),
        (("TopK", {"postact_fn": "ReLU"}), "with k=None and postact_fn=ReLU; give a whole"),
        (("TopK", None), "with k=None and postact_fn=None; give a whole number and ReLU"),
        (("TopK", {"k": 99, "postact_fn": "ReLU"}), "k=99; give 1 to d_sae=48"),
    ],
)
def test_another_activation_of_theirs_is_refused(settings, sentence, tmp_path):
    name, about = settings
    path = save(state_of(activation=name, activation_state_dict=about), tmp_path / "7.pt")
    with pytest.raises(UserError, match=sentence):
        sae.load(path)


def test_topk_of_raw_rows_is_not_theirs(tmp_path):
    with pytest.raises(UserError, match="with TopK it reads each row over its standard dev"):
        write_dictionary(random_dictionary("topk"), tmp_path / "out", "openai")
