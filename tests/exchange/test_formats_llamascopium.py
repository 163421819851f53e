"""Round trips with llamascopium, the package of OpenMOSS, where it is installed."""

import math

import pytest
import torch
from support.world import random_dictionary

import sae
from sae.exchange.formats import write_dictionary

pytestmark = pytest.mark.filterwarnings("default")

# A width whose share is rounded down: it takes the whole part of 49 * (99 / 49).
D_IN, D_SAE = 49, 99
HOOK = "blocks.1.hook_resid_post"
ENDS = {"hook_name": "blocks.1.hook_resid_mid", "hook_name_out": "blocks.1.hook_mlp_out"}
NORMS = {"blocks.1.hook_resid_mid": 9.0, "blocks.1.hook_mlp_out": 5.0}


@pytest.fixture(scope="module")
def moss():
    """The package."""
    return pytest.importorskip("llamascopium")


def rows():
    return 3 * torch.randn(400, D_IN, generator=torch.Generator().manual_seed(1)) + 1


def assert_same(ours, acts, x_hat):
    """What ours computes of `rows()` against what theirs did, the same latents active."""
    found = ours.encode(rows())
    for ours_, theirs in ((found, acts), (ours(rows()), x_hat)):
        scale = float(theirs.abs().max())
        torch.testing.assert_close(ours_, theirs, rtol=1e-5, atol=1e-5 * scale)
    assert torch.equal(found > 0, acts > 0)
    assert 0 < float((acts > 0).float().mean()) < 0.9


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "topk"])
@pytest.mark.parametrize("hooks", [{"hook_name": HOOK}, ENDS], ids=["one hook", "transcoder"])
def test_llamascopium_computes_the_same_with_what_we_write(architecture, hooks, moss, tmp_path):
    d_out = D_IN if hooks is ENDS else None
    ours = random_dictionary(
        architecture, d_in=D_IN, d_sae=D_SAE, d_out=d_out, model_name="org/lm", **hooks
    )
    write_dictionary(ours, tmp_path / "one", "openmoss")
    theirs = moss.SparseDictionary.from_pretrained(str(tmp_path / "one"))
    with torch.no_grad():
        assert_same(ours, theirs.encode(rows()), theirs(rows()))
    assert theirs.cfg.hook_point_in == ours.hook_name
    assert theirs.cfg.hook_point_out == ours.hook_name_out


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk"])
@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("norm", ["dataset-wise", "inference"])
def test_what_llamascopium_saves_computes_the_same_here(
    activation, include, norm, moss, tmp_path
):
    config = moss.SAEConfig(
        hook_point_in=ENDS["hook_name"],
        hook_point_out=ENDS["hook_name_out"],
        d_model=D_IN,
        expansion_factor=2,
        act_fn=activation,
        norm_activation=norm,
        sparsity_include_decoder_norm=include,
        top_k=7,
        dtype=torch.float32,
    )
    theirs, draw = moss.SparseAutoEncoder(config), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) / 4)
    theirs.set_dataset_average_activation_norm(NORMS)
    theirs.save_pretrained(tmp_path / "one")
    config.save_hyperparameters(tmp_path / "one")
    s_in, s_out = (
        math.sqrt(D_IN) / n if norm == "dataset-wise" else 1.0 for n in NORMS.values()
    )
    batch = theirs.normalize_activations({ENDS["hook_name"]: rows()})
    with torch.no_grad():
        acts = theirs.encode(batch[ENDS["hook_name"]])
        x_hat = theirs.decode(acts) / s_out
        if activation == "topk" and include:
            # Ours keeps what decides: activations times the norms.
            acts = acts * theirs.decoder_norm()
    ours = sae.load(str(tmp_path / "one"))
    assert_same(ours, acts / s_in, x_hat)
    assert (ours.hook_name, ours.hook_name_out) == tuple(ENDS.values())
