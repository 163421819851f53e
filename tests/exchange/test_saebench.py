"""Our dictionaries in SAEBench and sae-probes: its interface here, and the real packages."""

import importlib
import importlib.util
import json
import sys
from dataclasses import asdict
from unittest.mock import MagicMock

import pytest
import torch
from support.world import random_dictionary, sentences, training_json, with_metadata

from sae.base.assets import package_folder
from sae.base.errors import UserError
from sae.dictionary import ACTIVATIONS
from sae.dictionary.files import save_dictionary
from sae.dictionary.metadata import metadata_of
from sae.exchange.saebench import as_custom_sae
from sae.text.embedded import SAE_PROBES

HOOK = "blocks.1.hook_resid_post"
D_IN, D_SAE = 32, 48


def of(architecture):
    return random_dictionary(architecture, model_name="org/lm", hook_name=HOOK)


def rows(*shape):
    return 3 * torch.randn(*shape, D_IN, generator=torch.Generator().manual_seed(1)) + 1


def close(found, expected):
    """Equal to 1e-5 of the largest entry."""
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * scale)


# -- what it asks of an object ----------------------------------------------------------------


@pytest.mark.parametrize("shape", [(500,), (20, 25)], ids=["rows", "sequences"])
@pytest.mark.parametrize("architecture", ACTIVATIONS)
def test_activations_are_times_the_norms_and_the_reconstruction_is_the_same(
    architecture, shape
):
    dictionary, x = of(architecture), rows(*shape)
    custom = as_custom_sae(dictionary)
    norms = dictionary.W_dec.norm(dim=1)
    assert float(norms.max() / norms.min()) > 1.5
    close(custom.W_dec.norm(dim=1), torch.ones(D_SAE))
    acts, expected = custom.encode(x), dictionary.encode(x)
    assert torch.equal(acts > 0, expected > 0)
    assert 0.02 < float((acts > 0).float().mean()) < 0.98
    close(acts, expected * norms)
    close(custom(x), dictionary(x))
    assert torch.equal(custom(x), custom.decode(acts))
    assert custom(x).shape == x.shape


@pytest.mark.parametrize("architecture", ACTIVATIONS)
def test_a_latent_whose_row_is_zero_fires_and_adds_nothing(architecture):
    dictionary = of(architecture)
    dictionary.W_dec[5] = 0
    dictionary.b_enc[5] = 4.0
    if architecture == "gated":
        dictionary.activation.b_mag[5] = 4.0
    custom, x = as_custom_sae(dictionary), rows(500)
    assert float((dictionary.encode(x)[:, 5] > 0).float().mean()) > 0.5
    assert torch.equal(custom.encode(x) > 0, dictionary.encode(x) > 0)
    close(custom.W_dec.norm(dim=1), torch.ones(D_SAE))
    close(custom(x), dictionary(x))


def test_the_dictionary_and_its_adapter_share_no_weights():
    dictionary = of("standard")
    custom = as_custom_sae(dictionary)
    custom.b_dec.zero_()
    assert float(dictionary.b_dec.abs().max()) > 0


@pytest.mark.parametrize("architecture", ACTIVATIONS)
def test_moving_it_takes_all_weights_and_is_noted_in_its_configuration(architecture):
    custom = as_custom_sae(of(architecture))
    assert (custom.dtype, custom.cfg.dtype) == (torch.float32, "float32")
    for same in (
        custom.to(device="cpu", dtype=torch.bfloat16),
        custom.to(torch.float64),
        custom.half(),
    ):
        assert same is custom
    assert {w.dtype for w in custom.state_dict().values()} == {torch.float16}
    assert (custom.dtype, custom.cfg.dtype) == (torch.float16, "float16")
    assert (custom.device, custom.cfg.device) == (torch.device("cpu"), "cpu")
    x = rows(50)
    assert custom.encode(x).dtype == torch.float16
    assert bool(custom.encode(x).isfinite().all())
    assert custom(x).dtype == torch.float16


def test_its_configuration_says_where_the_dictionary_belongs():
    about = {"context_size": 64, "prepend_bos": False}
    about |= {"sae_atlas": training_json(training_tokens=5000, architecture="batchtopk")}
    dictionary = of("jumprelu")
    cfg = as_custom_sae(with_metadata(dictionary, metadata_of(dictionary) | about)).cfg
    assert (cfg.model_name, cfg.hook_name, cfg.hook_layer) == ("org/lm", HOOK, 1)
    assert (cfg.d_in, cfg.d_sae, cfg.context_size) == (D_IN, D_SAE, 64)
    assert (cfg.architecture, cfg.prepend_bos) == ("batchtopk", False)
    assert cfg.training_tokens == 5000
    foreign = random_dictionary(
        model_name="org/lm", hook_name=HOOK, training_architecture="batchtopk"
    )
    found = as_custom_sae(foreign).cfg
    assert (found.architecture, found.training_tokens) == ("batchtopk", -100_000)
    # What SAEBench adds is no field, and stays out of its files.
    cfg.metadata = object()
    assert json.loads(json.dumps(cfg.to_dict())) == asdict(cfg) | {"seqpos_slice": [None]}


@pytest.mark.parametrize(
    ("dictionary", "sentence"),
    [
        (random_dictionary(d_out=20, model_name="a", hook_name=HOOK), "give an autoencoder"),
        (random_dictionary(skip=True, model_name="a", hook_name=HOOK), "give an autoencoder"),
        (
            random_dictionary(
                model_name="a", hook_name=HOOK, hook_name_out="blocks.1.hook_mlp_out"
            ),
            "give an autoencoder",
        ),
        (random_dictionary(hook_name=HOOK), "does not name its model"),
        (
            random_dictionary(model_name="a"),
            "hook_name=unknown is not a hook of TransformerLens",
        ),
        (
            random_dictionary(model_name="a", hook_name="model.layers.1"),
            "hook_name=model.layers.1 is not a hook of TransformerLens",
        ),
    ],
)
def test_what_saebench_cannot_place_is_refused(dictionary, sentence):
    with pytest.raises(UserError, match=sentence):
        as_custom_sae(dictionary)


# -- the real packages ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench():
    """SAEBench's own base class and core evaluation."""
    base = pytest.importorskip("sae_bench.custom_saes.base_sae", exc_type=ImportError)
    return base.BaseSAE, importlib.import_module("sae_bench.evals.core.main")


def placed(architecture, lens_folder):
    about = {"model_name": str(lens_folder), "hook_name": HOOK, "prepend_bos": True}
    return with_metadata(of(architecture), about)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("architecture", ACTIVATIONS)
def test_saebenchs_own_checks_pass(architecture, bench, lens_folder, capsys):
    base, _ = bench
    custom = as_custom_sae(placed(architecture, lens_folder))
    assert base.check_decoder_norms(custom)
    base.test_sae(custom, str(lens_folder))
    assert "average l0: " in capsys.readouterr().out
    assert base.check_decoder_norms(custom.to(dtype=torch.bfloat16))


def core_figures(core, sae, text, folder):
    """Figures of SAEBench's core evaluation, and the file that it writes."""
    (found,) = core.multiple_evals(
        [("mine", sae)],
        n_eval_reconstruction_batches=2,
        n_eval_sparsity_variance_batches=2,
        eval_batch_size_prompts=4,
        compute_featurewise_density_statistics=True,
        compute_featurewise_weight_based_metrics=True,
        exclude_special_tokens_from_reconstruction=True,
        dataset=str(text),
        context_size=32,
        output_folder=str(folder),
        device="cpu",
    )
    (file,) = folder.iterdir()
    return found, json.loads(file.read_text())


def flat(metrics):
    return {f"{g}/{n}": v for g, part in metrics.items() for n, v in part.items()}


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("architecture", ACTIVATIONS)
def test_saebenchs_core_evaluation_finds_the_same_as_on_saelenss_own_class(
    architecture, bench, lens_folder, tiny_text, tmp_path
):
    from sae_lens import SAE

    _, core = bench
    # SAELens folds the norms of a topk one only where they are equal.
    dictionary = placed(architecture, lens_folder)
    if architecture == "topk":
        directions = torch.nn.functional.normalize(dictionary.W_dec, dim=1)
        dictionary = dictionary.with_weights({"W_dec": directions})
    save_dictionary(dictionary, tmp_path / "folder")
    theirs = SAE.load_from_disk(str(tmp_path / "folder"))
    theirs.fold_W_dec_norm()
    ours, saved = core_figures(core, as_custom_sae(dictionary), tiny_text, tmp_path / "a")
    expected, _ = core_figures(core, theirs, tiny_text, tmp_path / "b")
    found = flat(ours["metrics"])
    assert found == pytest.approx(flat(expected["metrics"]), rel=1e-4, abs=1e-6)
    assert 1 < found["sparsity/l0"] < D_SAE
    assert found["misc_metrics/frac_alive"] > 0.2
    for name, values in ours["feature_metrics"].items():
        # A latent that never fired has no average.
        wanted = pytest.approx(expected["feature_metrics"][name], 1e-4, 1e-5, nan_ok=True)
        assert values == wanted
    assert saved["sae_cfg_dict"]["architecture"] == architecture


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_saebenchs_core_evaluation_runs_on_the_heads_outputs(
    bench, lens_folder, tiny_text, tmp_path
):
    dictionary = placed("standard", lens_folder)
    custom = as_custom_sae(dictionary.placed("blocks.1.attn.hook_z"))
    found, _ = core_figures(bench[1], custom, tiny_text, tmp_path / "a")
    assert 1 < flat(found["metrics"])["sparsity/l0"] < D_SAE


@pytest.fixture(scope="module")
def probes():
    """The real sae-probes, from where our texts are; one of its baselines wants xgboost."""
    pytest.importorskip("sae_lens")
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("sae_probes") is None:
            patch.syspath_prepend(str(package_folder(SAE_PROBES)))
        if importlib.util.find_spec("xgboost") is None:
            patch.setitem(sys.modules, "xgboost", MagicMock())
        return importlib.import_module("sae_probes")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["custom", "dictionary", "transcoder"])
def test_sae_probes_finds_what_a_latent_knows(kind, probes, tmp_path):
    data = importlib.import_module("sae_probes.utils_data")
    dataset, model = "119_us_state_TX", "made"
    assert dataset in probes.DATASETS
    # One latent of ours knows the answer: activations as its model might have them.
    y = torch.from_numpy(data.get_yvals(dataset)).float()
    x = torch.randn(len(y), D_IN, generator=torch.Generator().manual_seed(2))
    x[:, 3] = 4 * y - 2
    cache = tmp_path / "cache" / f"model_activations_{model}"
    cache.mkdir(parents=True)
    torch.save(x, cache / f"{dataset}_{HOOK}.pt")
    d_out = 20 if kind == "transcoder" else None
    about = {"model_name": model, "hook_name": HOOK}
    dictionary = random_dictionary("jumprelu", d_out=d_out, **about)
    dictionary.W_enc[:, 7] = torch.eye(D_IN)[3]
    dictionary.b_enc[7] = 0
    dictionary.activation.threshold[7] = 1.0
    probes.run_sae_evals(
        sae=as_custom_sae(dictionary) if kind == "custom" else dictionary,
        model_name=model,
        hook_name=HOOK,
        reg_type="l1",
        setting="normal",
        ks=[1, 2],
        results_path=tmp_path / "results",
        model_cache_path=tmp_path / "cache",
        datasets=[dataset],
        device="cpu",
    )
    (file,) = (tmp_path / "results").rglob("*.json")
    one, two = json.loads(file.read_text())
    assert one["indices"] == [7]
    assert two["indices"][0] == 7
    assert one["test_auc"] > 0.99
    assert one["test_acc"] > 0.99


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_sae_probes_reads_our_hook_of_a_model_itself(probes, lens_folder, tmp_path):
    generate = importlib.import_module("sae_probes.generate_model_activations")
    from transformer_lens import HookedTransformer

    from sae.models.hooks import find_site, read_activations
    from sae.models.load import ModelConfig, load_model

    lens = HookedTransformer.from_pretrained_no_processing(str(lens_folder), device="cpu")
    texts = sentences(6, seed=5)
    theirs = generate._process_activations(lens, texts, 3, 64, [HOOK], None, "cpu")[HOOK]
    model = load_model(ModelConfig(name=str(lens_folder)))
    dictionary = of("topk")
    for text, row in zip(texts, theirs, strict=True):
        ids = torch.tensor([lens.tokenizer(text)["input_ids"]])
        ours = read_activations(model.module, [find_site(model.module, HOOK)], ids)[HOOK]
        close(dictionary.encode(row), dictionary.encode(ours[0, -1]))
