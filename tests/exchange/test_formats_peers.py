"""Round trips with the real peers: their own classes read what we write, and we read theirs."""

import importlib
import importlib.util
import json
import sys
from unittest.mock import MagicMock

import pytest
import torch
from support.world import random_dictionary

import sae
from sae.dictionary.metadata import metadata_of
from sae.exchange.formats import write_dictionary

pytestmark = pytest.mark.filterwarnings("default")

D_IN, D_SAE = 32, 48
MODEL = {"model_name": "org/lm", "context_size": 128}
HOOK = "blocks.1.hook_resid_post"
ENDS = {"hook_name": "blocks.1.hook_resid_mid", "hook_name_out": "blocks.1.hook_mlp_out"}


@pytest.fixture(scope="module", params=["random", "of a model"])
def x(request, tiny_run):
    """Rows (n, 32): random ones, and real activations of the tiny model."""
    if request.param == "random":
        return 3 * torch.randn(500, D_IN, generator=torch.Generator().manual_seed(1)) + 1
    cache = sae.open_cache(tiny_run / "cache.zarr")
    return cache.read(HOOK, slice(0, 16))[:, 1:].reshape(-1, D_IN).float()


def close(found, expected):
    """Equal to 1e-5 of the largest entry."""
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * scale)


def assert_same(ours, acts, x_hat, x):
    """What ours computes against what a peer did; the same latents are active."""
    found = ours.encode(x)
    close(found, acts)
    assert torch.equal(found > 0, acts > 0)
    assert 0 < float((acts > 0).float().mean()) < 0.9
    close(ours(x), x_hat)


def fill(module):
    """Random weights in all that is trained."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) / 4)
    return module


# -- sparsify ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sparsify():
    """The package, with its kernels in plain PyTorch: Triton's want a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSIFY_DISABLE_TRITON", "1")
        return pytest.importorskip("sparsify")


def computed_by_sparsify(coder, x):
    """Dense activations and the reconstruction, through their kernels."""
    with torch.no_grad():
        values, indices, _ = coder.encode(x)
        acts = torch.zeros(len(x), coder.num_latents).scatter(-1, indices, values)
        return acts, coder(x).sae_out


SPARSIFY = [
    {},
    {"transcode": True},
    {"transcode": True, "skip_connection": True},
    {"skip_connection": True},
    {"num_latents": 0, "expansion_factor": 2},
]


@pytest.mark.parametrize("settings", SPARSIFY, ids=str)
def test_what_sparsify_saves_computes_the_same_here(settings, sparsify, x, tmp_path):
    config = sparsify.SparseCoderConfig(**{"num_latents": D_SAE, "k": 7} | settings)
    coder = fill(sparsify.SparseCoder(D_IN, config))
    coder.save_to_disk(tmp_path / "layers.1")
    ours = sae.load(str(tmp_path / "layers.1"))
    assert_same(ours, *computed_by_sparsify(coder, x), x)
    assert ours.hook_name_out == HOOK


@pytest.mark.parametrize("kind", ["autoencoder", "transcoder", "skip transcoder"])
def test_sparsify_computes_the_same_with_what_we_write(kind, sparsify, x, tmp_path):
    hooks = {"hook_name": HOOK} if kind == "autoencoder" else ENDS
    ours = random_dictionary("topk", d_out=D_IN, skip="skip" in kind, **MODEL, **hooks)
    write_dictionary(ours, tmp_path / "layers.1", "sparsify")
    coder = sparsify.SparseCoder.load_from_disk(tmp_path / "layers.1")
    assert_same(ours, *computed_by_sparsify(coder, x), x)
    assert coder.cfg.transcode == (kind != "autoencoder")


def test_sparsifys_many_hookpoints_are_named_and_each_is_read(sparsify, tmp_path):
    config = sparsify.SparseCoderConfig(num_latents=D_SAE, k=7)
    for layer in (0, 1):
        fill(sparsify.SparseCoder(D_IN, config)).save_to_disk(tmp_path / f"layers.{layer}")
    with pytest.raises(ValueError, match="holds 2 dictionaries"):
        sae.load(str(tmp_path))
    coders = sparsify.SparseCoder.load_many(str(tmp_path), local=True)
    for name, coder in coders.items():
        ours = sae.load(str(tmp_path / name))
        assert torch.equal(ours.W_dec, coder.W_dec)


# -- dictionary_learning ----------------------------------------------------------------------

CLASSES = {
    "AutoEncoder": {},
    "AutoEncoderNew": {},
    "GatedAutoEncoder": {},
    "AutoEncoderTopK": {"k": 7},
    "BatchTopKSAE": {"k": 7},
    "MatryoshkaBatchTopKSAE": {"k": 7, "group_sizes": [16, 32]},
    "JumpReluAutoEncoder": {},
}
WRITTEN = {
    "standard": "AutoEncoderNew",
    "gated": "GatedAutoEncoder",
    "topk": "AutoEncoderTopK",
    "jumprelu": "JumpReluAutoEncoder",
}


@pytest.fixture(scope="module")
def utils():
    """Their module that loads a folder; its package for harvesting need not be there."""
    if importlib.util.find_spec("dictionary_learning") is None:
        pytest.skip("dictionary_learning is not installed")
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("nnsight") is None:
            patch.setitem(sys.modules, "nnsight", MagicMock())
        return importlib.import_module("dictionary_learning.utils")


def save_as_they_do(ae, name, folder):
    """`ae.pt` and `config.json` as `trainSAE` leaves them."""
    folder.mkdir()
    torch.save({k: v.cpu() for k, v in ae.state_dict().items()}, folder / "ae.pt")
    trainer = {
        "dict_class": name,
        "activation_dim": D_IN,
        "dict_size": D_SAE,
        "lm_name": "org/lm",
        "layer": 1,
        "submodule_name": "resid_post_layer_1",
        **{k: v for k, v in CLASSES[name].items() if k == "k"},
    }
    config = {"trainer": trainer, "buffer": {"ctx_len": 128, "io": "out"}}
    (folder / "config.json").write_text(json.dumps(config, indent=4))


def computed_by(ae, x):
    with torch.no_grad():
        return ae.encode(x), ae(x)


@pytest.mark.parametrize("name", CLASSES)
def test_what_dictionary_learning_saves_computes_the_same_here(name, utils, x, tmp_path):
    ae = fill(getattr(utils, name)(D_IN, D_SAE, **CLASSES[name]))
    if name in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        ae.threshold.fill_(0.8)
    if name == "JumpReluAutoEncoder":
        ae.threshold.data.abs_()
    save_as_they_do(ae, name, tmp_path / "trainer_0")
    ours = sae.load(str(tmp_path / "trainer_0"))
    assert_same(ours, *computed_by(ae, x), x)
    assert metadata_of(ours)["context_size"] == 128
    assert (ours.model_name, ours.hook_name) == ("org/lm", HOOK)
    if name == "MatryoshkaBatchTopKSAE":
        assert metadata_of(ours)["group_sizes"] == [16, 32]


@pytest.mark.parametrize("architecture", WRITTEN)
def test_dictionary_learning_computes_the_same_with_what_we_write(
    architecture, utils, x, tmp_path
):
    ours = random_dictionary(architecture, hook_name=HOOK, **MODEL)
    write_dictionary(ours, tmp_path / "trainer_0", "dictionary_learning")
    ae, config = utils.load_dictionary(str(tmp_path / "trainer_0"), "cpu")
    assert type(ae) is getattr(utils, WRITTEN[architecture])
    assert_same(ours, *computed_by(ae, x), x)
    assert config["trainer"]["lm_name"] == "org/lm"
    assert config["trainer"]["submodule_name"] == "resid_post_layer_1"
    assert config["buffer"]["ctx_len"] == 128


def test_a_batchs_top_k_whose_threshold_was_never_set_is_refused(utils, tmp_path):
    ae = fill(utils.BatchTopKSAE(D_IN, D_SAE, k=7))
    save_as_they_do(ae, "BatchTopKSAE", tmp_path / "trainer_0")
    with pytest.raises(ValueError, match="threshold=-1 was never set"):
        sae.load(str(tmp_path / "trainer_0"))


# -- SAELens reads what other tools wrote, through us -----------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("architecture", WRITTEN)
def test_saelens_computes_the_same_after_a_way_through_every_format(architecture, x, tmp_path):
    sae_lens = pytest.importorskip("sae_lens")
    from sae.exchange import formats

    ours = random_dictionary(architecture, hook_name=HOOK, **MODEL)
    for name, module in formats.WRITTEN.items():
        if module.cannot_hold(ours) is not None:
            continue
        write_dictionary(ours, tmp_path / name, name)
        write_dictionary(sae.load(str(tmp_path / name)), tmp_path / f"{name}-sl", "saelens")
        theirs = sae_lens.SAE.load_from_disk(str(tmp_path / f"{name}-sl"))
        with torch.no_grad():
            assert_same(ours, theirs.encode(x), theirs(x), x)
        assert theirs.cfg.metadata.hook_name == HOOK
        assert theirs.cfg.metadata.context_size == 128
