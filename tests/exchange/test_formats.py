"""Dictionaries in the formats of others: what they mean, computed here a second time."""

import json
import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.world import random_dictionary

import sae
from sae.base.errors import UserError
from sae.dictionary import ACTIVATIONS, Dictionary, TopK
from sae.dictionary.files import save_dictionary
from sae.dictionary.metadata import metadata_of
from sae.exchange.formats import FORMATS, WRITTEN, read_dictionary, write_dictionary
from sae.exchange.formats.sparsify import hookpoint

HOOK = "blocks.1.hook_resid_post"
ENDS = {"hook_name": "blocks.1.hook_resid_mid", "hook_name_out": "blocks.1.hook_mlp_out"}
D_IN, D_SAE = 32, 48
KINDS = {
    "autoencoder": {"hook_name": HOOK},
    "transcoder": {"d_out": D_IN, **ENDS},
    "skip transcoder": {"d_out": D_IN, "skip": True, **ENDS},
    "transcoder to another width": {"d_out": 20, **ENDS},
}


def of_kind(architecture, kind="autoencoder") -> Dictionary:
    return random_dictionary(architecture, model_name="a/model", **KINDS[kind])


def rows(n=400, d_in=D_IN):
    return 3 * torch.randn(n, d_in, generator=torch.Generator().manual_seed(1)) + 1


def close(found, expected):
    """Equal to 1e-5 of the largest entry."""
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * scale)


def assert_means(dictionary, acts, x_hat, x=None):
    """What a dictionary computes of `rows()`, or `x`, against an independent computation."""
    x = rows() if x is None else x
    found = dictionary.encode(x)
    close(found, acts)
    assert torch.equal((found > 0).sum(-1), (acts > 0).sum(-1))
    assert 0 < float((acts > 0).float().mean()) < 0.9
    close(dictionary(x), x_hat)


def uniform(*shape, seed=0):
    draw = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=draw)


@pytest.mark.parametrize(
    ("name", "architecture", "kind"), list(product(WRITTEN, ACTIVATIONS, KINDS))
)
def test_what_is_written_comes_back_or_is_refused_with_the_reason(
    name, architecture, kind, tmp_path
):
    dictionary = of_kind(architecture, kind)
    reason = WRITTEN[name].cannot_hold(dictionary)
    folder = tmp_path / hookpoint(dictionary)
    if reason is not None:
        with pytest.raises(UserError, match=f"format={name} cannot hold a .*: {reason}"):
            write_dictionary(dictionary, folder, name)
        assert not list(tmp_path.iterdir())
        return
    write_dictionary(dictionary, folder, name)
    again = read_dictionary(folder)
    x = rows()
    assert_means(again, dictionary.encode(x), dictionary(x))
    assert metadata_of(dictionary).items() <= metadata_of(again).items()
    assert again.is_transcoder == dictionary.is_transcoder


@pytest.mark.parametrize("name", WRITTEN)
def test_the_format_of_a_folder_is_told_from_its_files(name, tmp_path):
    dictionary = of_kind("topk" if name == "sparsify" else "standard")
    write_dictionary(dictionary, tmp_path / "folder", name)
    fitting = [n for n, module in FORMATS.items() if module.recognises(tmp_path / "folder")]
    assert fitting == [name]
    assert sae.load(str(tmp_path / "folder"), format=name).d_sae == D_SAE


def test_an_unknown_format_is_refused_with_those_that_are_known(tmp_path):
    with pytest.raises(UserError, match=r"format=sparsfy is unknown; .*nearest: sparsify"):
        sae.load(str(tmp_path), format="sparsfy")


def test_a_folder_that_fits_two_formats_asks_which(tmp_path):
    save_dictionary(of_kind("standard"), tmp_path / "both")
    (tmp_path / "both/config.json").write_text("{}")
    with pytest.raises(
        UserError, match="could be a dictionary of saelens or openmoss; say which with for"
    ):
        sae.load(str(tmp_path / "both"))
    assert sae.load(str(tmp_path / "both"), format="saelens").d_sae == D_SAE


def test_a_folder_of_dictionaries_names_them(tmp_path):
    for layer in (0, 1):
        write_dictionary(of_kind("topk"), tmp_path / f"layers.{layer}", "sparsify")
    with pytest.raises(UserError, match=r"holds 2 dictionaries; give one of .*layers\.0, .*1$"):
        sae.load(str(tmp_path))


def test_a_folder_with_nothing_names_what_it_would_hold(tmp_path):
    with pytest.raises(UserError, match=r"no dictionary that is known; .*params\.npz \(gemma_"):
        sae.load(str(tmp_path))
    with pytest.raises(UserError, match="missing is not a folder; give one"):
        sae.load(str(tmp_path / "missing"))


def openai_state():
    return {
        "pre_bias": uniform(D_IN),
        "encoder.weight": uniform(D_SAE, D_IN) / 6,
        "latent_bias": uniform(D_SAE),
        "decoder.weight": uniform(D_IN, D_SAE) / 6,
        "stats_last_nonzero": torch.zeros(D_SAE, dtype=torch.long),
        "latents_activation_frequency": torch.ones(D_SAE),
        "latents_mean_square": torch.zeros(D_SAE),
        "activation": "ReLU",
        "activation_state_dict": {},
    }


def test_openais_relu_file_means_what_its_formula_says(tmp_path):
    state = openai_state()
    path = tmp_path / "gpt2-small/resid_post_mlp_v4/autoencoders/7.pt"
    path.parent.mkdir(parents=True)
    torch.save(state, path)
    dictionary = sae.load(str(path))
    pre = (rows() - state["pre_bias"]) @ state["encoder.weight"].T + state["latent_bias"]
    acts = pre.relu()
    x_hat = acts @ state["decoder.weight"].T + state["pre_bias"]
    assert_means(dictionary, acts, x_hat)
    assert metadata_of(dictionary) == {
        "model_name": "gpt2",
        "hook_name": "blocks.7.hook_resid_post",
    }


def test_a_folder_of_openais_layers_asks_for_one_of_them(tmp_path):
    for layer in (0, 1):
        torch.save(openai_state(), tmp_path / f"{layer}.pt")
    with pytest.raises(UserError, match=r"holds 2 layers as .pt files; give one of them"):
        sae.load(str(tmp_path))


def openmoss_folder(folder, changes, pickled=False, norms=(9.0, 5.0), bias=True):
    """A folder by hand, and its tensors."""
    config = {
        "sae_type": "sae",
        "d_model": D_IN,
        "expansion_factor": D_SAE / D_IN,
        "act_fn": "jumprelu",
        "norm_activation": "dataset-wise",
        "sparsity_include_decoder_norm": True,
        "hook_point_in": ENDS["hook_name"],
        "hook_point_out": ENDS["hook_name_out"],
        "top_k": 7,
        "use_decoder_bias": bias,
        **changes,
    }
    tensors = {
        "W_E": uniform(D_IN, D_SAE) / 6,
        "b_E": uniform(D_SAE),
        "W_D": uniform(D_SAE, D_IN) / 3,
        "dataset_average_activation_norm." + ENDS["hook_name"]: torch.tensor(norms[0]),
        "dataset_average_activation_norm." + ENDS["hook_name_out"]: torch.tensor(norms[1]),
    }
    if bias:
        tensors["b_D"] = uniform(D_IN)
    if config["act_fn"] == "jumprelu":
        tensors["activation_function.log_jumprelu_threshold"] = uniform(D_SAE, seed=5) / 2
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "lm_config.json").write_text(json.dumps({"model_name": "gpt2"}))
    if pickled:
        torch.save({"sae": tensors, "version": "2.0.0"}, folder / "sae_weights.pt")
    else:
        save_file(tensors, folder / "sae_weights.safetensors")
    return tensors


def openmoss_means(tensors, config, x, norms=(9.0, 5.0)):
    """Activations and reconstruction by the definition, scaled and scaled back."""
    scaled = config.get("norm_activation", "dataset-wise") == "dataset-wise"
    s_in, s_out = (math.sqrt(D_IN) / norm if scaled else 1.0 for norm in norms)
    pre = (x * s_in) @ tensors["W_E"] + tensors["b_E"]
    include = config.get("sparsity_include_decoder_norm", True)
    norm = tensors["W_D"].norm(dim=1) if include else torch.ones(D_SAE)
    gate, activation = pre * norm, config.get("act_fn", "jumprelu")
    if activation == "jumprelu":
        log_threshold = tensors["activation_function.log_jumprelu_threshold"]
        acts = gate * (gate > log_threshold.exp())
    elif activation == "topk":
        kth = gate.relu().topk(7).values[..., -1:]
        acts = gate.relu() * (gate.relu() >= kth)
    else:
        acts = gate.relu()
    acts = acts / norm
    return acts / s_in, (acts @ tensors["W_D"] + tensors.get("b_D", 0)) / s_out


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk"])
@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("norm", ["dataset-wise", "inference"])
def test_openmoss_folders_mean_what_its_formulas_say(activation, include, norm, tmp_path):
    changes = {
        "act_fn": activation,
        "sparsity_include_decoder_norm": include,
        "norm_activation": norm,
    }
    tensors = openmoss_folder(tmp_path / "moss", changes)
    dictionary = sae.load(str(tmp_path / "moss"))
    acts, x_hat = openmoss_means(tensors, changes, rows())
    if activation == "topk" and include:
        acts = acts * tensors["W_D"].norm(dim=1)
    assert_means(dictionary, acts, x_hat)
    assert metadata_of(dictionary) == {"model_name": "gpt2", **ENDS}


def test_an_openmoss_pickle_without_a_decoder_bias_is_read(tmp_path):
    tensors = openmoss_folder(tmp_path / "moss", {"act_fn": "relu"}, pickled=True, bias=False)
    acts, x_hat = openmoss_means(tensors, {"act_fn": "relu"}, rows())
    assert_means(sae.load(str(tmp_path / "moss")), acts, x_hat)


def test_a_latent_without_a_direction_never_passes_a_threshold_times_its_norm(tmp_path):
    tensors = openmoss_folder(tmp_path / "moss", {})
    tensors["W_D"][3] = 0
    save_file(tensors, tmp_path / "moss/sae_weights.safetensors")
    acts = sae.load(str(tmp_path / "moss")).encode(rows())
    assert float(acts[:, 3].max()) == 0
    assert float(acts.max()) > 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sae_type": "crosscoder"}, "sae_type=crosscoder; only sae can be read"),
        ({"act_fn": "batchtopk"}, "act_fn=batchtopk depends on the batch"),
        ({"use_glu_encoder": True}, "use_glu_encoder=true"),
        ({"norm_activation": "batch-wise"}, "norm_activation=batch-wise is not known"),
        ({"d_model": 31}, "d_model=31, but according to the weights beside it d_model=32"),
        (
            {"expansion_factor": 4},
            "expansion_factor=4 with d_model=32, but the weights have 48",
        ),
        ({"act_fn": "topk", "top_k": None}, "top_k=None; give a number"),
        ({"act_fn": "topk", "top_k": 99}, "k=99; give 1 to d_sae=48"),
        ({"hook_point_in": "elsewhere"}, r"lacks dataset_average_activation_norm\.elsewhere"),
        ({"act_fn": "relu", "no": 1}, "beside W_E"),
    ],
)
def test_what_openmoss_folders_cannot_mean_here_is_refused(changes, sentence, tmp_path):
    openmoss_folder(tmp_path / "moss", changes)
    if "no" in changes:
        tensors = {"extra": torch.zeros(3)} | {
            "W_E": uniform(D_IN, D_SAE),
            "b_E": uniform(D_SAE),
            "W_D": uniform(D_SAE, D_IN),
            "b_D": uniform(D_IN),
        }
        save_file(tensors, tmp_path / "moss/sae_weights.safetensors")
    with pytest.raises(UserError, match=sentence):
        sae.load(str(tmp_path / "moss"))


def test_a_latent_without_a_direction_keeps_a_threshold_that_can_be_saved_again(tmp_path):
    tensors = openmoss_folder(tmp_path / "moss", {}, norms=(90.0, 5.0))
    tensors["W_D"][3] = 0
    save_file(tensors, tmp_path / "moss/sae_weights.safetensors")
    dictionary = sae.load(str(tmp_path / "moss"))
    for name in ("saelens", "openmoss", "gemma_scope"):
        write_dictionary(dictionary, tmp_path / name, name)
        assert float(sae.load(str(tmp_path / name)).encode(rows())[:, 3].max()) == 0


def test_an_openmoss_folder_without_an_output_reconstructs_what_it_reads(tmp_path):
    tensors = openmoss_folder(tmp_path / "moss", {"hook_point_out": None}, norms=(9.0, 9.0))
    dictionary = sae.load(str(tmp_path / "moss"))
    acts, x_hat = openmoss_means(tensors, {}, rows(), norms=(9.0, 9.0))
    assert_means(dictionary, acts, x_hat)
    assert not dictionary.is_transcoder


def test_the_factor_that_openmoss_folders_say_gives_all_latents(tmp_path):
    # OpenMOSS takes the whole part of d_model times the factor, and 49 * (99 / 49) < 99.
    for d_in, d_sae in ((49, 99), (22, 15), (32, 48)):
        dictionary = random_dictionary("standard", d_in=d_in, d_sae=d_sae)
        write_dictionary(dictionary, tmp_path / str(d_sae), "openmoss")
        config = json.loads((tmp_path / str(d_sae) / "config.json").read_text())
        assert int(config["d_model"] * config["expansion_factor"]) == d_sae


def linear_moss_folder(folder, changes, log_threshold):
    """A folder as OpenMOSS wrote them before June 2025; its tensors by the later names."""
    tensors = openmoss_folder(folder, changes)
    linear = {
        "encoder.weight": tensors["W_E"].t(),
        "encoder.bias": tensors["b_E"],
        "decoder.weight": tensors["W_D"].t(),
        "decoder.bias": tensors["b_D"],
        log_threshold: tensors["activation_function.log_jumprelu_threshold"],
    }
    norms = {name: norm for name, norm in tensors.items() if "norm" in name}
    weights = {name: weight.contiguous() for name, weight in linear.items()}
    save_file(weights | norms, folder / "sae_weights.safetensors")
    return tensors


@pytest.mark.parametrize(
    "log_threshold",
    ["log_jumprelu_threshold", "activation_function.log_jumprelu_threshold"],
)
@pytest.mark.parametrize("subtracts", [False, True])
@pytest.mark.parametrize("include", [False, True])
def test_openmoss_folders_of_linear_layers_mean_what_their_formula_says(
    log_threshold, subtracts, include, tmp_path
):
    changes = {
        "apply_decoder_bias_to_pre_encoder": subtracts,
        "sparsity_include_decoder_norm": include,
    }
    tensors = linear_moss_folder(tmp_path / "L1R", changes, log_threshold)
    if subtracts:
        # Scaled first, then less the decoder's bias.
        tensors = tensors | {"b_E": tensors["b_E"] - tensors["b_D"] @ tensors["W_E"]}
    dictionary = sae.load(str(tmp_path / "L1R"))
    assert_means(dictionary, *openmoss_means(tensors, changes, rows()))
    assert metadata_of(dictionary) == {"model_name": "gpt2", **ENDS}


SCOPE = {
    "act_fn": "jumprelu",
    "jump_relu_threshold": 0.6,
    "norm_activation": "dataset-wise",
    "dataset_average_activation_norm": {"in": 9.0, "out": 9.0},
    "sparsity_include_decoder_norm": True,
    "apply_decoder_bias_to_pre_encoder": False,
    "use_decoder_bias": True,
    "hook_point_in": HOOK,
    "hook_point_out": HOOK,
    "d_model": D_IN,
    "d_sae": D_SAE,
    "top_k": 7,
}


def scope_folder(folder, changes, place="checkpoints/final.safetensors"):
    """A folder as Llama Scope's first release has them; gives back its tensors."""
    tensors = {
        "encoder.weight": uniform(D_SAE, D_IN) / 4,
        "encoder.bias": uniform(D_SAE),
        "decoder.weight": uniform(D_IN, D_SAE, seed=1) / 3,
        "decoder.bias": uniform(D_IN),
    }
    if not changes.get("use_decoder_bias", True):
        del tensors["decoder.bias"]
    (folder / place).parent.mkdir(parents=True)
    save_file(tensors, folder / place)
    (folder / "hyperparams.json").write_text(json.dumps(SCOPE | changes))
    (folder / "lm_config.json").write_text(
        json.dumps({"model_name": "meta-llama/Llama-3.1-8B"})
    )
    return tensors


def scope_means(tensors, config, x):
    """By its loader of 2024: on scaled rows, the threshold on raw ones and unit norms."""
    config = SCOPE | config
    norm = config["dataset_average_activation_norm"]["in"]
    scaled = config["norm_activation"] == "dataset-wise"
    s = math.sqrt(D_IN) / norm if scaled else 1.0
    bias = tensors.get("decoder.bias", torch.zeros(D_IN))
    before = bias if config["apply_decoder_bias_to_pre_encoder"] else 0
    pre = (x * s - before) @ tensors["encoder.weight"].t() + tensors["encoder.bias"]
    include = config["sparsity_include_decoder_norm"]
    rows_norm = tensors["decoder.weight"].norm(dim=0) if include else torch.ones(D_SAE)
    shown = pre / s * rows_norm
    if config["act_fn"] == "jumprelu" or (
        config["act_fn"] == "topk" and config["jump_relu_threshold"] > 0
    ):
        shown = shown * (shown > config["jump_relu_threshold"])
    elif config["act_fn"] == "topk":
        kth = shown.relu().topk(7).values[..., -1:]
        shown = shown.relu() * (shown.relu() >= kth)
    else:
        shown = shown.relu()
    x_hat = (shown / rows_norm * s) @ tensors["decoder.weight"].t() + bias
    return shown, x_hat / s


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sparsity_include_decoder_norm": False},
        {"apply_decoder_bias_to_pre_encoder": True},
        {"norm_activation": "inference"},
        {"use_decoder_bias": False},
        {"act_fn": "topk"},
        {"act_fn": "topk", "jump_relu_threshold": 0},
        {"act_fn": "relu", "apply_decoder_bias_to_pre_encoder": True},
    ],
    ids=str,
)
def test_folders_of_llama_scopes_first_release_mean_what_their_own_loader_made(
    changes, tmp_path
):
    about = {"model_name": "meta-llama/Llama-3.1-8B", "hook_name": HOOK}
    for place in ("checkpoints/final.safetensors", "sae_weights.safetensors"):
        folder = tmp_path / Path(place).stem
        tensors = scope_folder(folder, changes, place)
        dictionary = sae.load(str(folder))
        assert_means(dictionary, *scope_means(tensors, changes, rows()))
        assert metadata_of(dictionary) == about


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"norm_activation": "token-wise"}, "norm_activation=token-wise is not known"),
        ({"act_fn": "batchtopk"}, "act_fn=batchtopk is unknown"),
        ({"use_glu_encoder": True}, "use_glu_encoder=true"),
        ({"jump_relu_threshold": -1}, "jump_relu_threshold=-1; give a number from 0 on"),
        ({"jump_relu_threshold": "no"}, "jump_relu_threshold=no; give a number from 0 on"),
        ({"d_sae": 47}, "d_sae=47, but according to the weights beside it d_sae=48"),
        (
            {"dataset_average_activation_norm": None},
            "norm=None; give an object with in and out",
        ),
        ({"dataset_average_activation_norm": {"in": 0, "out": 1}}, "of in is 0; give a norm"),
        ({"dataset_average_activation_norm": {"in": 1}}, "of out is None; give a norm above 0"),
        (
            {"act_fn": "topk", "jump_relu_threshold": 0, "top_k": None},
            "top_k=None; give a numb",
        ),
    ],
)
def test_what_llama_scopes_folders_cannot_mean_here_is_refused(changes, sentence, tmp_path):
    scope_folder(tmp_path / "L8R", changes)
    with pytest.raises(UserError, match=sentence):
        sae.load(str(tmp_path / "L8R"))


def test_saelens_arrives_at_the_threshold_of_llama_scopes_first_release(tmp_path):
    # As SAELens 6.54 does it: the threshold times the scale, on rows that are scaled.
    tensors = scope_folder(tmp_path / "L8R", {"sparsity_include_decoder_norm": False})
    s = math.sqrt(D_IN) / 9
    pre = s * rows() @ tensors["encoder.weight"].t() + tensors["encoder.bias"]
    fires = pre > 0.6 * s
    assert torch.equal(sae.load(str(tmp_path / "L8R")).encode(rows()) > 0, fires)


def test_an_average_norm_of_zero_is_refused(tmp_path):
    openmoss_folder(tmp_path / "moss", {}, norms=(0.0, 1.0))
    with pytest.raises(UserError, match="=0; give a norm above 0"):
        sae.load(str(tmp_path / "moss"))


def gemma_arrays(d_out=D_IN):
    weights = {
        "W_enc": uniform(D_IN, D_SAE) / 6,
        "b_enc": uniform(D_SAE),
        "W_dec": uniform(D_SAE, d_out) / 6,
        "b_dec": uniform(d_out),
        "threshold": uniform(D_SAE).abs(),
    }
    return {name: weight.numpy() for name, weight in weights.items()}


def gemma_means(arrays, x):
    weights = {name.lower(): torch.from_numpy(a) for name, a in arrays.items()}
    pre = x @ weights["w_enc"] + weights["b_enc"]
    acts = pre * (pre > weights["threshold"])
    return acts, acts @ weights["w_dec"] + weights["b_dec"]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_gemma_scopes_arrays_mean_what_its_formula_says(save, tmp_path):
    folder = tmp_path / "models--google--gemma-scope-2b-pt-res/layer_12/width_16k/l0_82"
    folder.mkdir(parents=True)
    arrays = gemma_arrays()
    save(folder / "params.npz", **arrays)
    dictionary = sae.load(str(folder))
    assert_means(dictionary, *gemma_means(arrays, rows()))
    assert metadata_of(dictionary) == {
        "model_name": "google/gemma-2-2b",
        "hook_name": "blocks.12.hook_resid_post",
    }


def test_gemma_scopes_autoencoders_of_the_embedding_are_refused(tmp_path):
    folder = tmp_path / "gemma-scope-2b-pt-res/embedding/width_4k"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **gemma_arrays())
    with pytest.raises(UserError, match="multiplied by sqrt"):
        sae.load(str(folder))


GEMMA_2 = {
    "architecture": "jump_relu",
    "model_name": "gemma-v3-1b-pt",
    "hf_hook_point_in": "model.layers.12.output",
    "width": D_SAE,
    "type": "sae",
}


def gemma_2_folder(folder, config, d_out=D_IN, **more):
    arrays = gemma_arrays(d_out)
    tensors = {name.lower(): torch.from_numpy(a) for name, a in arrays.items()}
    folder.mkdir()
    save_file({**tensors, **more}, folder / "params.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return arrays


def test_gemma_scope_2s_folder_means_what_its_formula_says(tmp_path):
    arrays = gemma_2_folder(tmp_path / "one", GEMMA_2)
    dictionary = sae.load(str(tmp_path / "one"))
    assert_means(dictionary, *gemma_means(arrays, rows()))
    assert metadata_of(dictionary) == {
        "model_name": "google/gemma-3-1b-pt",
        "hook_name": "blocks.12.hook_resid_post",
    }


def test_gemma_scope_2s_affine_transcoder_adds_its_connection(tmp_path):
    config = GEMMA_2 | {
        "type": "transcoder",
        "affine_connection": True,
        "hf_hook_point_in": "model.layers.5.pre_feedforward_layernorm.output",
        "hf_hook_point_out": "model.layers.5.post_feedforward_layernorm.output",
    }
    skip = uniform(D_IN, 20) / 6
    arrays = gemma_2_folder(tmp_path / "one", config, 20, affine_skip_connection=skip)
    dictionary = sae.load(str(tmp_path / "one"))
    acts, x_hat = gemma_means(arrays, rows())
    assert_means(dictionary, acts, x_hat + rows() @ skip)
    assert dictionary.hook_name == "model.layers.5.pre_feedforward_layernorm"
    assert dictionary.hook_name_out == "model.layers.5.post_feedforward_layernorm"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"architecture": "topk"}, "architecture=topk; only jump_relu"),
        ({"type": "crosscoder"}, "type=crosscoder; only sae and transcoder"),
        ({"width": 47}, "width=47, but according to the weights beside it width=48"),
        ({"affine_connection": True}, "lacks affine_skip_connection"),
    ],
)
def test_what_gemma_scope_2_folders_cannot_mean_here_is_refused(changes, sentence, tmp_path):
    gemma_2_folder(tmp_path / "one", GEMMA_2 | changes)
    with pytest.raises(UserError, match=sentence):
        sae.load(str(tmp_path / "one"))


@pytest.mark.parametrize(
    ("hook", "expected"),
    [
        ("model.layers.3.self_attn.o_proj.input", "blocks.3.attn.hook_z"),
        ("model.layers.3.mlp.output", "model.layers.3.mlp"),
        ("model.layers.3.mlp.input", None),
    ],
)
def test_gemma_scope_2s_modules_become_hooks_where_the_name_is_sure(hook, expected, tmp_path):
    gemma_2_folder(tmp_path / "one", GEMMA_2 | {"hf_hook_point_in": hook})
    assert metadata_of(sae.load(str(tmp_path / "one"))).get("hook_name") == expected


@pytest.mark.parametrize(
    ("place", "changes", "expected"),
    [
        ("run/layers.9", {}, {"hook_name": "blocks.9.hook_resid_post"}),
        ("run/layers.9/seed1", {}, {"hook_name": "blocks.9.hook_resid_post"}),
        ("run/h.3.mlp", {}, {"hook_name": "h.3.mlp"}),
        ("run/layers.9.mlp", {"transcode": True}, {"hook_name_out": "layers.9.mlp"}),
        (
            "run/layers.9",
            {"transcode": True},
            {
                "hook_name": "blocks.9.hook_resid_pre",
                "hook_name_out": "blocks.9.hook_resid_post",
            },
        ),
        ("run/anything", {}, {}),
    ],
)
def test_a_hookpoints_folder_says_model_and_hooks(place, changes, expected, tmp_path):
    folder = tmp_path / place
    write_dictionary(of_kind("topk"), folder, "sparsify")
    (folder / "sae_atlas.json").unlink()
    (tmp_path / "run/config.json").write_text(json.dumps({"model": "org/lm"}))
    config = json.loads((folder / "cfg.json").read_text()) | changes
    (folder / "cfg.json").write_text(json.dumps(config))
    found = metadata_of(sae.load(str(folder)))
    hooks = {key: found[key] for key in ("hook_name", "hook_name_out") if key in found}
    assert (found["model_name"], hooks) == ("org/lm", expected)


@pytest.mark.parametrize(
    ("trainer", "buffer", "expected"),
    [
        (
            {"layer": 3, "submodule_name": "resid_post_layer_3"},
            {"ctx_len": 128},
            "3.hook_resid_post",
        ),
        ({"layer": 3, "submodule_name": "mlp_out"}, {}, "3.hook_mlp_out"),
        ({"layer": 3, "submodule_name": "resid_post_layer_4"}, {}, None),
        ({"layer": 3, "submodule_name": "somewhere"}, {}, None),
        ({"layer": 3}, {}, None),
    ],
)
def test_a_trainers_names_become_a_hook_where_they_are_sure(
    trainer, buffer, expected, tmp_path
):
    folder = tmp_path / "trainer_0"
    write_dictionary(of_kind("standard"), folder, "dictionary_learning")
    (folder / "sae_atlas.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    kept = {k: config["trainer"][k] for k in ("dict_class", "activation_dim", "dict_size")}
    config = {"trainer": {**kept, **trainer, "lm_name": "org/lm"}, "buffer": buffer}
    (folder / "config.json").write_text(json.dumps(config))
    found = metadata_of(sae.load(str(folder)))
    assert found["model_name"] == "org/lm"
    assert found.get("hook_name") == (expected and f"blocks.{expected}")
    assert found.get("context_size") == buffer.get("ctx_len")


OLD = {
    "d_in": D_IN,
    "d_sae": D_SAE,
    "dtype": "float32",
    "hook_point": HOOK,
    "model_name": "gpt2-small",
    "context_size": 128,
    "normalize_activations": False,
}


def old_saelens(folder, config, **more):
    draw = of_kind("standard")
    tensors = {name: w.clone() for name, w in draw.tensors.items()}
    folder.mkdir()
    save_file({**tensors, **more}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config))
    return tensors


def test_a_saelens_folder_from_before_version_6_subtracts_b_dec_and_keeps_its_hook(tmp_path):
    w = old_saelens(tmp_path / "old", OLD, scaling_factor=torch.ones(D_SAE))
    acts = ((rows() - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
    dictionary = sae.load(str(tmp_path / "old"))
    assert_means(dictionary, acts, acts @ w["W_dec"] + w["b_dec"])
    assert (dictionary.hook_name, dictionary.model_name) == (HOOK, "gpt2-small")
    assert metadata_of(dictionary)["context_size"] == 128


def test_an_old_top_k_of_saelens_is_one_of_top_k(tmp_path):
    settings = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}}
    w = old_saelens(tmp_path / "old", OLD | settings | {"apply_b_dec_to_input": False})
    dictionary = sae.load(str(tmp_path / "old"))
    assert dictionary.activation == TopK(5)
    assert torch.equal(dictionary.b_enc, w["b_enc"])


def test_a_logarithm_of_thresholds_in_an_old_saelens_folder_is_taken_back(tmp_path):
    log_threshold = uniform(D_SAE)
    config = OLD | {"architecture": "jumprelu", "apply_b_dec_to_input": False}
    old_saelens(tmp_path / "old", config, log_threshold=log_threshold)
    assert torch.equal(
        sae.load(str(tmp_path / "old")).activation.threshold, log_threshold.exp()
    )


@pytest.mark.parametrize(
    ("changes", "more", "sentence"),
    [
        ({"activation_fn": "tanh-relu"}, {}, "activation_fn=tanh-relu is not known"),
        ({"normalize_activations": True}, {}, "norm_scaling_factor=None; write that number"),
        ({}, {"scaling_factor": torch.full((D_SAE,), 2.0)}, "scaling_factor is not folded"),
    ],
)
def test_what_old_saelens_folders_did_not_fold_is_refused(changes, more, sentence, tmp_path):
    old_saelens(tmp_path / "old", OLD | changes, **more)
    with pytest.raises(UserError, match=sentence):
        sae.load(str(tmp_path / "old"))


def test_an_interrupted_write_leaves_no_folder(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", broken)
    for name in WRITTEN:
        dictionary = of_kind("topk" if name == "sparsify" else "standard")
        with pytest.raises(UserError, match="the disk is full"):
            write_dictionary(dictionary, tmp_path / name, name)
    assert list(tmp_path.iterdir()) == []
