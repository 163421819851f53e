"""Dictionaries that normalise each row by itself: against SAELens, and in every use of one."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.files import unseal
from support.world import HOOK, random_dictionary

import sae
from sae.architectures import ARCHITECTURES
from sae.base.errors import UserError
from sae.core.scaling import InputScaling
from sae.dictionary import ACTIVATIONS, ConstantNorm, LayerNorm, save_dictionary
from sae.dictionary.normalisation import NORMALISATIONS
from sae.dictionary.storage import DTYPES
from sae.edits import ALL, Edit, Splice, edited
from sae.evaluation.held_out import measured_rows
from sae.exchange.formats import WRITTEN, write_dictionary
from sae.exchange.saebench import as_custom_sae
from sae.models.hooks import find_site
from sae.models.load import ModelConfig, load_model
from sae.rows.shuffle import joined, rows_in_order
from sae.steering.arms import unit_dose
from sae.steering.generate import steered

D_IN, D_SAE = 32, 48
EVERY = pytest.mark.parametrize("name", NORMALISATIONS)


def rows(n=200):
    """Rows of very different lengths and centres."""
    draw = torch.Generator().manual_seed(1)
    lengths = torch.logspace(-2, 3, n)[:, None]
    return lengths * (torch.randn(n, D_IN, generator=draw) + 0.5)


def normalising(name, architecture="standard", **settings):
    return random_dictionary(architecture, **settings).normalised(NORMALISATIONS[name])


def by_hand(name, x):
    """What is read of rows, their lengths and centres, in numpy's float64."""
    x = x.double().numpy()
    if name == "constant_norm_rescale":
        lengths = np.sqrt((x**2).sum(-1, keepdims=True)) / np.sqrt(D_IN)
        return x / lengths, lengths, 0.0
    centres = x.mean(-1, keepdims=True)
    lengths = x.std(-1, ddof=1, keepdims=True)
    return (x - centres) / (lengths + 1e-5), lengths, centres


def close(found, expected, within=1e-5):
    """Row by row, as rows are of very different lengths."""
    found, expected = found.double(), torch.as_tensor(expected).double()
    size = expected.abs().amax(-1, keepdim=True).clamp_min(1e-12)
    torch.testing.assert_close(found / size, expected / size, rtol=0, atol=within)


@EVERY
def test_each_row_is_read_by_its_own_length_and_its_reconstruction_has_it_again(name):
    dictionary, x = normalising(name), rows()
    read, lengths, centres = by_hand(name, x)
    w = {key: tensor.double().numpy() for key, tensor in dictionary.tensors.items()}
    acts = np.maximum(read @ w["W_enc"] + w["b_enc"], 0)
    close(dictionary.encode(x), acts)
    close(dictionary(x), (acts @ w["W_dec"] + w["b_dec"]) * lengths + centres)


@EVERY
@pytest.mark.parametrize("architecture", ACTIVATIONS)
def test_the_sparse_encoding_is_the_dense_one(name, architecture):
    dictionary, x = normalising(name, architecture), rows()
    found = dictionary.encode_sparse(x)
    dense = torch.zeros(len(x), D_SAE)
    dense[found.support.rows(), found.support.columns.long()] = found.values
    torch.testing.assert_close(dense, dictionary.encode(x), rtol=1e-4, atol=1e-5)


def test_a_row_without_a_direction_stays_one():
    x = torch.zeros(1, D_IN)
    found = normalising("constant_norm_rescale")(x)
    torch.testing.assert_close(found, x, rtol=0, atol=1e-30)
    assert bool(normalising("layer_norm")(x + 3).isfinite().all())


@EVERY
def test_activations_alone_decode_to_nothing_that_is_known(name):
    acts = normalising(name).encode(rows())
    with pytest.raises(
        UserError, match=r"give the row as well: reconstruct\(x, feature_acts\)"
    ):
        normalising(name).decode(acts)


@EVERY
def test_a_transcoder_reads_rows_so_and_writes_what_it_writes(name):
    plain = random_dictionary("standard", d_out=20, skip=True)
    dictionary, x = plain.normalised(NORMALISATIONS[name]), rows()
    acts = dictionary.encode(x)
    assert torch.equal(acts, plain.encode(NORMALISATIONS[name].read(x)))
    assert torch.equal(dictionary.decode(acts), plain.decode(acts))
    assert torch.equal(dictionary(x), plain.reconstruct(x, acts))


def test_the_digest_tells_what_is_done_to_rows():
    plain = random_dictionary("standard")
    digests = {plain.normalised(by).digest for by in (None, ConstantNorm(), LayerNorm())}
    assert len(digests) == 3
    assert plain.normalised(None).digest == plain.digest


@EVERY
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_comes_back_from_its_folder(name, dtype, tmp_path):
    dictionary = normalising(name, "jumprelu", hook_name=HOOK)
    save_dictionary(dictionary, tmp_path / "one", dtype)
    assert json.loads((tmp_path / "one/cfg.json").read_text())["normalize_activations"] == name
    again = sae.load(str(tmp_path / "one"))
    assert [port.normalisation for port in again.ports] == [NORMALISATIONS[name]] * 2
    if dtype == "float32":
        assert again.digest == dictionary.digest
    some = again.of_latents(torch.arange(5)).to("cpu")
    close(some.encode(rows()), again.encode(rows())[:, :5])


# -- a number that all rows are multiplied by --------------------------------------------------


def folder_with(folder, changes, architecture="standard"):
    dictionary = random_dictionary(architecture, hook_name=HOOK)
    save_dictionary(dictionary, folder)
    path = unseal(folder) / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return dictionary


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("expected_average_only_in", "norm_scaling_factor"),
        ("constant_scalar_rescale", "activation_normalization_factor"),
    ],
)
@pytest.mark.parametrize("subtracts", [False, True])
def test_one_number_for_all_rows_is_folded(name, key, subtracts, tmp_path):
    said = {"normalize_activations": name, key: 0.25, "apply_b_dec_to_input": subtracts}
    w = folder_with(tmp_path / "one", said).tensors
    found, x = sae.load(str(tmp_path / "one")), rows()
    scaled = x * 0.25
    acts = ((scaled - subtracts * w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
    close(found.encode(x), acts)
    close(found(x), (acts @ w["W_dec"] + w["b_dec"]) / 0.25)
    assert found.reads[0].normalisation is None


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"normalize_activations": "expected_average_only_in"},
            "norm_scaling_factor=None; write that number into the file as norm_scaling_factor",
        ),
        (
            {"normalize_activations": "constant_scalar_rescale"},
            "activation_normalization_factor=None; write that number",
        ),
        (
            {"normalize_activations": "covariance_whitening"},
            "occurs only in checkpoints of a training; save the dictionary in SAELens with",
        ),
        ({"normalize_activations": "other"}, "other is not known; known: none, constant_norm"),
    ],
)
def test_what_files_leave_open_is_refused_with_what_to_do(changes, sentence, tmp_path):
    folder_with(tmp_path / "one", changes)
    with pytest.raises(UserError, match=sentence):
        sae.load(str(tmp_path / "one"))


# -- other tools -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@EVERY
@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "gated"])
def test_saelens_and_we_compute_the_same_both_ways(name, architecture, tmp_path):
    sae_lens = pytest.importorskip("sae_lens")
    from sae_lens.registry import get_sae_class

    kind, config = get_sae_class(architecture)
    settings = {"k": 7} if architecture == "topk" else {}
    settings |= {"apply_b_dec_to_input": architecture in ("standard", "topk")}
    theirs = kind(config(d_in=D_IN, d_sae=D_SAE, normalize_activations=name, **settings))
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) / 4)
    theirs.save_model(tmp_path / "theirs")
    ours, x = sae.load(str(tmp_path / "theirs")), rows()
    with torch.no_grad():
        acts = theirs.encode(x)
        x_hat = theirs.decode(acts)
    if architecture != "topk":
        close(ours.encode(x), acts)
    close(ours(x), x_hat)
    # And what we write of it, which is the same in their class.
    save_dictionary(ours, tmp_path / "ours")
    again = sae_lens.SAE.load_from_disk(str(tmp_path / "ours"))
    assert again.cfg.normalize_activations == name
    with torch.no_grad():
        close(again.encode(x), ours.encode(x))
        close(again(x), x_hat)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@EVERY
@pytest.mark.parametrize("skip", [False, True])
def test_saelens_reads_a_transcoder_of_ours_the_same(name, skip, tmp_path):
    sae_lens = pytest.importorskip("sae_lens")
    ours = normalising(name, d_out=20, skip=skip)
    save_dictionary(ours, tmp_path / "one")
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path / "one"))
    with torch.no_grad():
        close(theirs.encode(rows()), ours.encode(rows()))
        close(theirs(rows()), ours(rows()))


@EVERY
@pytest.mark.parametrize("format", WRITTEN)
def test_a_format_holds_it_or_says_why_not(name, format, tmp_path):
    architecture = "jumprelu" if format.startswith("gemma") else "topk"
    dictionary = normalising(name, architecture, hook_name="blocks.1.hook_mlp_out")
    if format == "saelens" or (format, name) == ("openai", "layer_norm"):
        write_dictionary(dictionary, tmp_path / "one", format)
        again = sae.load(str(tmp_path / "one"))
        close(again.encode(rows()), dictionary.encode(rows()), 1e-4)
        close(again(rows()), dictionary(rows()), 1e-4)
        return
    reason = "normalises each|standard deviation"
    with pytest.raises(UserError, match=f"format={format} cannot hold .*({reason})"):
        write_dictionary(dictionary, tmp_path / "one", format)


def test_openmoss_norms_of_each_row_are_read(tmp_path):
    plain = random_dictionary("standard", hook_name=HOOK, model_name="org/lm")
    write_dictionary(plain, tmp_path / "one", "openmoss")
    (path,) = (tmp_path / "one").glob("config.json")
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"norm_activation": "token-wise"})
    )
    found = sae.load(str(tmp_path / "one"))
    expected = plain.normalised(ConstantNorm())
    close(found.encode(rows()), expected.encode(rows()))
    close(found(rows()), expected(rows()))


def test_what_takes_rows_as_they_are_refuses_it():
    dictionary = normalising("layer_norm", hook_name=HOOK, model_name="org/lm")
    with pytest.raises(UserError, match=r"this dictionary normalises each row \(layer_norm\)"):
        as_custom_sae(dictionary)
    scaling = InputScaling.of(rows())
    config = ARCHITECTURES["standard"](d_sae=D_SAE)
    trainable = config.build(scaling(rows()), torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match=r"a normalisation for each row \(layer_norm\)"):
        trainable.begin_with(dictionary, scaling, scaling)
    at_two = replace(dictionary, writes=normalising("layer_norm", d_out=D_IN).writes)
    assert at_two.writes[0].normalisation == LayerNorm()


# -- in a model, and through every stage -------------------------------------------------------


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_model(ModelConfig(name=str(tiny_model), device="cpu"))


@EVERY
def test_a_dose_adds_what_a_higher_activation_would_at_every_row(name, model):
    """An activation raised by 2 changes the reconstruction as much as the dose does."""
    dictionary = normalising(name)
    by, site = dictionary.writes[0].normalisation, find_site(model.module, HOOK)
    ids = torch.arange(8, 28).view(2, 10)
    seen = {}

    def keep(module, args, output):
        seen["x"] = output[0] if isinstance(output, tuple) else output

    layer = model.module.get_submodule(site.module)
    with torch.no_grad():
        hook = layer.register_forward_hook(keep)
        plain = model.module(ids).logits
        x = seen["x"].clone()
        hook.remove()
        acts = dictionary.encode(x)
        more = acts.clone()
        more[..., 5] += 2.0
        moved = dictionary.reconstruct(x, more) - dictionary.reconstruct(x, acts)
        moved[:, 0] = 0
        dose = unit_dose(dictionary, 5, 2.0)
        with edited(model.module, [steered(site, dose, by)]):
            hook = layer.register_forward_hook(keep)
            found = model.module(ids).logits
            hook.remove()
        torch.testing.assert_close(seen["x"] - x, moved, rtol=1e-4, atol=1e-5)
        assert not torch.equal(found, plain)
        with edited(model.module, [steered(site, 0 * dose, by)]):
            assert torch.equal(model.module(ids).logits, plain)
        with edited(model.module, [Edit(site, Splice(dictionary), ALL)]):
            hook = layer.register_forward_hook(keep)
            model.module(ids)
            hook.remove()
        torch.testing.assert_close(seen["x"], dictionary(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_it_goes_through_every_stage_and_its_card_computes_it(tiny_run, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(tiny_run / "cache.zarr", run / "cache.zarr")
    cache = sae.open_cache(run / "cache.zarr")
    trained = sae.load(str(tiny_run / "dictionaries/weak"))
    record = replace(trained.record, training=None)
    one = replace(normalising("layer_norm").placed(cache.site(HOOK)), record=record)
    save_dictionary(one, run / "dictionaries/one")
    (figures,) = sae.eval(run=str(run), n_behaviour_tokens=64)
    (x,) = joined(rows_in_order(measured_rows(one, cache, held_out=True)))
    read, lengths, centres = by_hand("layer_norm", x.float())
    w = {key: tensor.double().numpy() for key, tensor in one.tensors.items()}
    acts = np.maximum(read @ w["W_enc"] + w["b_enc"], 0)
    x_hat = (acts @ w["W_dec"] + w["b_dec"]) * lengths + centres
    error = ((x_hat - x.double().numpy()) ** 2).sum(1).mean()
    assert figures.values["mse"] == pytest.approx(error, rel=1e-4)
    assert figures.values["l0"] == pytest.approx((acts > 0).sum(1).mean(), rel=1e-3)
    sae.analyze(run=str(run), n_contexts=3)
    steered = sae.steer(run=str(run), n_features=1, max_new_tokens=2, strengths=[0.0, 1.0])
    (result,) = steered["features"]
    assert result["normalisation"] == "layer_norm"
    folder = sae.export(run=str(run), out=str(tmp_path / "out"))
    card = (folder / "README.md").read_text()
    assert "of rows that are first made `(x - mean(x)) / (std(x) + 1e-5)`" in card
    found = dict(re.findall(r"^### ([^\n]+)\n\n```python\n(.*?)\n```", card, re.S | re.M))
    monkeypatch.chdir(folder)
    alone: dict = {}
    exec(found["With torch and safetensors alone"], alone)
    ours = sae.load(str(folder / HOOK))
    close(alone["acts"], ours.encode(alone["raw"]))
    close(alone["x_hat"], ours(alone["raw"]))


def test_an_old_folder_that_says_true_means_one_number_for_all_rows(tmp_path):
    w = random_dictionary("standard").tensors
    (tmp_path / "old").mkdir()
    save_file(
        {n: t.contiguous() for n, t in w.items()}, tmp_path / "old/sae_weights.safetensors"
    )
    said = {"d_in": D_IN, "d_sae": D_SAE, "normalize_activations": True}
    (unseal(tmp_path / "old") / "cfg.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match="expected_average_only_in multiplies all rows by one"):
        sae.load(str(tmp_path / "old"))
