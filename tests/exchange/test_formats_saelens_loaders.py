"""SAELens's loaders of other tools' files: they read what we write, and we what they read.

The files lie on a server that answers as the Hub does, so the loaders run as they are, download
and all. Where SAELens differs from the tool whose files these are, a test says how.
"""

import hashlib
import json
import math
from importlib.metadata import version
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.hub import COMMIT, HubHandler, serving
from support.world import random_dictionary

import sae
from sae.dictionary.metadata import metadata_of
from sae.exchange.formats import write_dictionary

sae_lens = pytest.importorskip("sae_lens")
loaders = pytest.importorskip("sae_lens.loading.pretrained_sae_loaders")

pytestmark = pytest.mark.filterwarnings("default")
# On tests that say where SAELens differs; a later version may have mended that.
OF_6_54 = pytest.mark.skipif(
    not version("sae-lens").startswith("6.54."), reason="says what SAELens 6.54 does"
)

D_IN, D_SAE = 32, 48
HOOK = "blocks.1.hook_resid_post"
# The widths that SAELens takes from the name of a model.
SIZES = {"d_in": D_IN, "d_sae": D_SAE}


class Hub(HubHandler):
    """What `hf_hub_download` asks of the Hub, and the ranges that the loaders ask for."""

    root: Path

    def answer(self, body):
        repository, _, rest = unquote(urlsplit(self.path).path).partition("/resolve/")
        path = self.root / repository[1:] / rest.split("/", 1)[1]
        if not path.is_file():
            return self.send(404, {"X-Error-Code": "EntryNotFound"}, b"{}", body)
        content = path.read_bytes()
        about = {"X-Repo-Commit": COMMIT, "ETag": hashlib.sha1(content).hexdigest()}
        asked = self.headers.get("Range")
        if asked is None:
            return self.send(200, about, content, body)
        first, last = (int(n or len(content) - 1) for n in asked[len("bytes=") :].split("-"))
        about["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return self.send(206, about, content[first : last + 1], body)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The folder with the server's repositories."""
    root = tmp_path / "hub"
    with serving(type("Handler", (Hub,), {"root": root})) as address:
        settings = {
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "ENDPOINT": address,
            "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
        }
        for name, value in settings.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        yield root


def loaded(loader, repository, folder, **overrides):
    """What `SAE.from_pretrained` makes of a repository's folder through one of its loaders."""
    loader = loaders.NAMED_PRETRAINED_SAE_LOADERS[loader]

    def with_overrides(cfg_overrides, **settings):
        return loader(cfg_overrides=cfg_overrides | overrides, **settings)

    return sae_lens.SAE.from_pretrained(repository, folder, converter=with_overrides)


def rows():
    return 3 * torch.randn(400, D_IN, generator=torch.Generator().manual_seed(1)) + 1


def close(found, expected):
    """Equal to 1e-5 of the largest entry."""
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * scale)


def assert_same(ours, theirs, gain=1.0):
    """The same latents, activations that are theirs over `gain`, the same reconstruction."""
    x = rows()
    with torch.no_grad():
        acts, found = theirs.encode(x), ours.encode(x)
        close(found * gain, acts)
        assert torch.equal(found > 0, acts > 0)
        assert 0 < float((acts > 0).float().mean()) < 0.9
        close(ours(x), theirs(x))


def uniform(*shape, seed=0):
    draw = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=draw)


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


# -- Gemma Scope ------------------------------------------------------------------------------

RESIDUAL = ("org/gemma-scope-2b-pt-res", "layer_1/width_16k/average_l0_82")
TRANSCODERS = ("org/gemma-scope-2b-pt-transcoders", "layer_1/width_16k/average_l0_82")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["jumprelu", "standard"])
def test_saelens_reads_what_we_write_as_gemma_scope(architecture, hub):
    ours = random_dictionary(architecture, hook_name=HOOK)
    write_dictionary(ours, hub.joinpath(*RESIDUAL), "gemma_scope")
    theirs = loaded("gemma_2", *RESIDUAL, **SIZES)
    assert_same(ours, theirs)
    assert theirs.cfg.metadata.hook_name == HOOK


@pytest.mark.slow
@pytest.mark.parametrize("d_out", [D_IN, 20])
def test_saelens_reads_a_transcoder_that_we_write_as_gemma_scope(d_out, hub):
    ours = random_dictionary("jumprelu", d_out=d_out)
    write_dictionary(ours, hub.joinpath(*TRANSCODERS), "gemma_scope")
    theirs = loaded("gemma_2_transcoder", *TRANSCODERS, **SIZES, d_out=d_out)
    assert_same(ours, theirs)


def test_gemma_scopes_arrays_mean_here_what_they_do_in_saelens(hub):
    weights = {
        "W_enc": uniform(D_IN, D_SAE) / 6,
        "b_enc": uniform(D_SAE),
        "W_dec": uniform(D_SAE, D_IN) / 6,
        "b_dec": uniform(D_IN),
        "threshold": uniform(D_SAE, seed=2).abs(),
    }
    folder = hub.joinpath(*RESIDUAL)
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{name: w.numpy() for name, w in weights.items()})
    ours, theirs = sae.load(str(folder)), loaded("gemma_2", *RESIDUAL, **SIZES)
    assert_same(ours, theirs)
    assert ours.hook_name == theirs.cfg.metadata.hook_name == HOOK
    assert ours.model_name == f"google/{theirs.cfg.metadata.model_name}"


SCOPE_2 = "org/gemma-scope-2-1b-pt"
AFFINE = {"d_out": D_IN, "skip": True}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "settings", "name"),
    [
        ("resid_post/layer_1_width_16k_l0_big", {"hook_name": HOOK}, "jumprelu"),
        ("transcoder/layer_1_width_16k_l0_big", {"d_out": 20}, "jumprelu_transcoder"),
        (
            "transcoder/layer_1_width_16k_l0_big_affine",
            AFFINE,
            "jumprelu_skip_transcoder",
        ),
    ],
)
@pytest.mark.parametrize("architecture", ["jumprelu", "standard"])
def test_saelens_reads_what_we_write_as_gemma_scope_2(place, settings, name, architecture, hub):
    about = {"model_name": "google/gemma-3-1b-pt", "hf_hook_name": "model.layers.1"}
    ours = random_dictionary(architecture, **about, **settings)
    write_dictionary(ours, hub / SCOPE_2 / place, "gemma_scope_2")
    theirs = loaded("gemma_3", SCOPE_2, place)
    assert theirs.cfg.architecture() == name
    assert_same(ours, theirs)
    assert theirs.cfg.metadata.model_name == ours.model_name
    assert theirs.cfg.metadata.hf_hook_name == "model.layers.1.output"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "read_from", "output", "skip"),
    [
        ("resid_post/layer_1_width_16k_l0_big", "output", None, False),
        ("attn_out/layer_1_width_16k_l0_big", "self_attn.o_proj.input", None, False),
        (
            "transcoder/layer_1_width_16k_l0_big_affine",
            "pre_feedforward_layernorm.output",
            "post_feedforward_layernorm.output",
            True,
        ),
    ],
)
def test_gemma_scope_2s_folders_mean_here_what_they_do_in_saelens(
    place, read_from, output, skip, hub
):
    config = {
        "architecture": "jump_relu",
        "model_name": "gemma-v3-1b-pt",
        "hf_hook_point_in": f"model.layers.1.{read_from}",
        "hf_hook_point_out": f"model.layers.1.{output or read_from}",
        "affine_connection": skip,
        "type": "sae" if output is None else "transcoder",
        "width": D_SAE,
    }
    tensors = {
        "w_enc": uniform(D_IN, D_SAE) / 6,
        "b_enc": uniform(D_SAE),
        "w_dec": uniform(D_SAE, D_IN) / 6,
        "b_dec": uniform(D_IN),
        "threshold": uniform(D_SAE, seed=2).abs(),
    }
    if skip:
        tensors["affine_skip_connection"] = uniform(D_IN, D_IN) / 6
    write_json(hub / SCOPE_2 / place / "config.json", config)
    save_file(tensors, hub / SCOPE_2 / place / "params.safetensors")
    ours, theirs = sae.load(str(hub / SCOPE_2 / place)), loaded("gemma_3", SCOPE_2, place)
    assert_same(ours, theirs)
    assert ours.model_name == theirs.cfg.metadata.model_name
    if output is None:
        assert ours.hook_name == theirs.cfg.metadata.hook_name


# -- OpenMOSS: Llama Scope, and its R1-Distill ------------------------------------------------

LLAMA_SCOPE = ("org/Llama3_1-8B-Base-LXR-8x", "Llama3_1-8B-Base-L1R-8x")
R1_DISTILL = ("org/Llama-Scope-R1-Distill", "400M-Slimpajama-400M-OpenR1-Math-220k/L1R")
NORM = 9.0
SCALE = math.sqrt(D_IN) / NORM


def linear_tensors(unit_rows):
    """Weights by the names of linear layers."""
    decoder = uniform(D_IN, D_SAE, seed=1) / 3
    return {
        "encoder.weight": uniform(D_SAE, D_IN) / 4,
        "encoder.bias": uniform(D_SAE),
        "decoder.weight": decoder / decoder.norm(dim=0) if unit_rows else decoder,
        "decoder.bias": uniform(D_IN),
    }


def both_of_llama_scope(hub, loader, where):
    """A folder as we and as SAELens read it, which folds a scale that its list of names has."""
    with pytest.warns(UserWarning, match="norm_scaling_factor not found"):
        theirs = loaded(loader, *where)
    theirs.fold_activation_norm_scaling_factor(SCALE)
    ours = sae.load(str(hub.joinpath(*where)))
    assert ours.hook_name == theirs.cfg.metadata.hook_name == HOOK
    return ours, theirs


@pytest.mark.slow
@pytest.mark.parametrize("include", [False, True])
def test_llama_scopes_folders_mean_here_what_they_do_in_saelens(include, hub):
    # SAELens leaves out the norms of the decoder's rows, which OpenMOSS has decide: the same
    # where they are one, and `test_formats.py` has the formula for all others.
    folder = hub.joinpath(*LLAMA_SCOPE)
    config = {
        "act_fn": "jumprelu",
        "jump_relu_threshold": 0.6,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": NORM, "out": NORM},
        "sparsity_include_decoder_norm": include,
        "apply_decoder_bias_to_pre_encoder": False,
        "hook_point_in": HOOK,
        "hook_point_out": HOOK,
        "d_model": D_IN,
        "d_sae": D_SAE,
    }
    write_json(folder / "hyperparams.json", config)
    (folder / "checkpoints").mkdir()
    save_file(linear_tensors(unit_rows=include), folder / "checkpoints/final.safetensors")
    ours, theirs = both_of_llama_scope(hub, "llama_scope", LLAMA_SCOPE)
    assert_same(ours, theirs, gain=SCALE)


def r1_distill(folder, include, unit_rows):
    config = {
        "sae_type": "sae",
        "act_fn": "jumprelu",
        "norm_activation": "dataset-wise",
        "sparsity_include_decoder_norm": include,
        "hook_point_in": HOOK,
        "hook_point_out": HOOK,
        "d_model": D_IN,
        "expansion_factor": 2,
        "top_k": 50,
    }
    draw = random_dictionary("jumprelu", d_in=D_IN, d_sae=2 * D_IN)
    W_dec = torch.nn.functional.normalize(draw.W_dec, dim=1) if unit_rows else draw.W_dec
    tensors = {
        "encoder.weight": draw.W_enc.t().contiguous(),
        "encoder.bias": draw.b_enc,
        "decoder.weight": W_dec.t().contiguous(),
        "decoder.bias": draw.b_dec,
        "log_jumprelu_threshold": draw.activation.threshold.log(),
        f"dataset_average_activation_norm.{HOOK}": torch.tensor(NORM),
    }
    write_json(folder / "config.json", config)
    save_file(tensors, folder / "sae_weights.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("include", [False, True])
def test_llama_scope_r1_distills_folders_mean_here_what_they_do_in_saelens(include, hub):
    r1_distill(hub.joinpath(*R1_DISTILL), include, unit_rows=include)
    ours, theirs = both_of_llama_scope(hub, "llama_scope_r1_distill", R1_DISTILL)
    assert_same(ours, theirs, gain=SCALE)


@OF_6_54
def test_saelens_leaves_out_norms_that_decide_in_llama_scope_r1_distill(hub):
    # `SparseAutoEncoder.encode` of OpenMOSS, whose files these are, compares the threshold to
    # what is encoded times the norms of the decoder's rows, and SAELens 6.54 without them.
    r1_distill(hub.joinpath(*R1_DISTILL), include=True, unit_rows=False)
    ours, theirs = both_of_llama_scope(hub, "llama_scope_r1_distill", R1_DISTILL)
    file = load_file(hub.joinpath(*R1_DISTILL) / "sae_weights.safetensors")
    pre = SCALE * rows() @ file["encoder.weight"].t() + file["encoder.bias"]
    norms, threshold = file["decoder.weight"].norm(dim=0), file["log_jumprelu_threshold"].exp()
    assert torch.equal(ours.encode(rows()) > 0, pre * norms > threshold)
    with torch.no_grad():
        assert torch.equal(theirs.encode(rows()) > 0, pre > threshold)
    assert not torch.equal(pre * norms > threshold, pre > threshold)


# -- dictionary_learning ----------------------------------------------------------------------

TRAINER = ("org/lm_sae", "resid_post_layer_1/trainer_0")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["topk", "gated", "jumprelu"])
def test_saelens_reads_what_we_write_as_dictionary_learning(architecture, hub):
    about = {"model_name": "org/lm", "context_size": 128}
    ours = random_dictionary(architecture, hook_name=HOOK, **about)
    write_dictionary(ours, hub.joinpath(*TRAINER), "dictionary_learning")
    theirs = loaded("dictionary_learning_1", *TRAINER)
    assert theirs.cfg.architecture() == architecture
    assert_same(ours, theirs)
    assert theirs.cfg.metadata.hook_name == HOOK
    assert theirs.cfg.metadata.context_size == 128


@OF_6_54
def test_saelens_does_not_know_the_class_of_dictionary_learning_that_subtracts_nothing(hub):
    # `AutoEncoderNew` calls its bias `decoder.bias`, which SAELens 6.54 does not look for, and
    # encodes x itself. Of `AutoEncoder`, which SAELens reads, dictionary_learning itself would
    # rescale the latents.
    ours = random_dictionary("standard", hook_name=HOOK, model_name="org/lm")
    write_dictionary(ours, hub.joinpath(*TRAINER), "dictionary_learning")
    config, state, _ = loaders.dictionary_learning_sae_huggingface_loader_1(*TRAINER)
    assert config["apply_b_dec_to_input"]
    assert state["b_dec"] is None
    assert torch.equal(state["W_enc"], ours.W_enc)


CLASSES = {
    "AutoEncoder": ("encoder.bias", "bias"),
    "GatedAutoEncoder": ("gate_bias", "decoder_bias"),
    "AutoEncoderTopK": ("encoder.bias", "b_dec"),
    "BatchTopKSAE": ("encoder.bias", "b_dec"),
    "MatryoshkaBatchTopKSAE": ("b_enc", "b_dec"),
    "JumpReluAutoEncoder": ("b_enc", "b_dec"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_a_trainers_folder_means_here_what_it_does_in_saelens(name, hub):
    b_enc, b_dec = CLASSES[name]
    state = {b_enc: uniform(D_SAE), b_dec: uniform(D_IN)}
    W_enc, W_dec = uniform(D_IN, D_SAE) / 6, uniform(D_SAE, D_IN, seed=1) / 6
    if b_enc == "b_enc":
        state |= {"W_enc": W_enc, "W_dec": W_dec}
    else:
        state |= {"encoder.weight": W_enc.t().clone(), "decoder.weight": W_dec.t().clone()}
    if name == "GatedAutoEncoder":
        state |= {"mag_bias": uniform(D_SAE, seed=2), "r_mag": uniform(D_SAE, seed=3) / 4}
    if name == "JumpReluAutoEncoder":
        state["threshold"] = uniform(D_SAE, seed=2).abs()
    trainer = {
        "dict_class": name,
        "activation_dim": D_IN,
        "dict_size": D_SAE,
        "lm_name": "org/lm",
        "layer": 1,
        "submodule_name": "resid_post_layer_1",
    }
    if "TopK" in name:
        state |= {"k": torch.tensor(7), "threshold": torch.tensor(0.8)}
        trainer["k"] = 7
    if name == "MatryoshkaBatchTopKSAE":
        state["group_sizes"] = torch.tensor([16, 32])
    folder = hub.joinpath(*TRAINER)
    write_json(folder / "config.json", {"trainer": trainer, "buffer": {"ctx_len": 128}})
    torch.save(state, folder / "ae.pt")
    ours, theirs = sae.load(str(folder)), loaded("dictionary_learning_1", *TRAINER)
    assert_same(ours, theirs)
    assert ours.hook_name == theirs.cfg.metadata.hook_name == HOOK
    assert metadata_of(ours)["context_size"] == theirs.cfg.metadata.context_size


# -- Qwen Scope -------------------------------------------------------------------------------

QWEN_SCOPE = "Qwen/SAE-Res-Qwen3-1.7B-Base-W2K-L0_7"


def test_qwen_scopes_files_mean_here_what_they_do_in_saelens(hub):
    d_sae, name = 2048, "layer1.sae.pt"
    state = {
        "W_enc": uniform(d_sae, D_IN) / 6,
        "W_dec": uniform(D_IN, d_sae) / 6,
        "b_enc": uniform(d_sae),
        "b_dec": uniform(D_IN),
    }
    (hub / QWEN_SCOPE).mkdir(parents=True)
    torch.save(state, hub / QWEN_SCOPE / name)
    # The width is that of the model of this name.
    theirs = loaded("qwen_scope", QWEN_SCOPE, name, d_in=D_IN)
    ours = sae.load(str(hub / QWEN_SCOPE / name))
    assert_same(ours, theirs)
    assert (ours.d_sae, ours.activation.k) == (theirs.cfg.d_sae, theirs.activation_fn.k)
    assert ours.hook_name == theirs.cfg.metadata.hook_name == HOOK
    assert ours.model_name == theirs.cfg.metadata.model_name
    # Nor does either keep latents below zero, where a row has fewer than k above.
    low = state | {"b_enc": torch.full((d_sae,), -9.0)}
    torch.save(low, hub / QWEN_SCOPE / "layer2.sae.pt")
    theirs = loaded("qwen_scope", QWEN_SCOPE, "layer2.sae.pt", d_in=D_IN)
    ours = sae.load(str(hub / QWEN_SCOPE / "layer2.sae.pt"))
    assert_same(ours, theirs)
    assert int((ours.encode(rows()) > 0).sum(-1).min()) < ours.activation.k


def test_every_release_of_qwen_scope_that_saelens_lists_is_read_by_its_name(tmp_path):
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    listed = get_pretrained_saes_directory().values()
    releases = {r.repo_id for r in listed if r.conversion_func == "qwen_scope"}
    assert len(releases) == 14
    for repository in releases:
        config = loaders.get_qwen_scope_config_from_hf(repository, "layer1.sae.pt", "cpu")
        d_sae = config["d_sae"]
        state = {"W_enc": torch.ones(d_sae, 1), "W_dec": torch.ones(1, d_sae)}
        state |= {"b_enc": torch.ones(d_sae), "b_dec": torch.ones(1)}
        path = tmp_path / repository / "layer1.sae.pt"
        path.parent.mkdir(parents=True)
        torch.save(state, path)
        found = sae.load(str(path))
        assert found.activation.k == config["activation_fn_kwargs"]["k"]
        assert found.model_name == config["model_name"]
        assert found.hook_name == config["hook_name"]


# -- sparsify ---------------------------------------------------------------------------------


@OF_6_54
def test_saelens_computes_the_same_of_what_we_write_as_sparsify_once_its_slips_are_undone(
    tmp_path,
):
    # SAELens 6.54 turns W_dec around, which in sparsify has a row for each latent, as in
    # SAELens. By `normalize_decoder`, which is about training, it decides whether b_dec goes
    # from x, where sparsify takes it from x in every autoencoder. And from the Hub it fetches
    # no `cfg.json`, hence the disk here. `test_formats_peers.py` asks sparsify itself.
    folder, loader = tmp_path / "layers.1", loaders.sparsify_disk_loader
    ours = random_dictionary("topk", hook_name=HOOK)
    write_dictionary(ours, folder, "sparsify")
    with pytest.raises(RuntimeError, match="size mismatch for W_dec"):
        sae_lens.SAE.load_from_disk(folder, converter=loader)

    def mended(path, device, cfg_overrides):
        config, state = loader(path, device, cfg_overrides)
        assert not config["apply_b_dec_to_input"]
        turned = state["W_dec"].t().contiguous()
        return config | {"apply_b_dec_to_input": True}, state | {"W_dec": turned}

    theirs = sae_lens.SAE.load_from_disk(folder, dtype="float32", converter=mended)
    assert_same(ours, theirs)
    assert theirs.cfg.metadata.hook_name == HOOK
