"""Dictionaries as files, and the real SAELens reading them."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.files import unseal
from support.world import random_dictionary

import sae
from sae.dictionary import ACTIVATIONS
from sae.dictionary.files import load_dictionary, loads_in_saelens, save_dictionary
from sae.dictionary.metadata import metadata_of
from sae.run import Run


@pytest.fixture(scope="module")
def exported(tiny_run, tmp_path_factory):
    run = tmp_path_factory.mktemp("exported") / "run"
    shutil.copytree(tiny_run, run)
    sae.eval(run=str(run), dictionary="strong", n_behaviour_tokens=128)
    sae.analyze(run=str(run), dictionary="strong")
    return run, sae.export(run=str(run), dictionary="strong")


def rows(tiny_run):
    cache = sae.open_cache(tiny_run / "cache.zarr")
    return cache.read("blocks.1.hook_resid_post", slice(0, 8))[:, 1:].reshape(-1, 32).float()


def test_a_saved_dictionary_loads_bit_equal(tiny_run, tmp_path):
    dictionary = sae.load(str(tiny_run / "dictionaries/strong"))
    save_dictionary(dictionary, tmp_path / "copy")
    again = load_dictionary(tmp_path / "copy")
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert torch.equal(getattr(dictionary, name), getattr(again, name))
    assert metadata_of(again) == metadata_of(dictionary)


HOOKS = {
    "model_name": "a/model",
    "hook_name": "blocks.1.hook_resid_mid",
    "hook_name_out": "blocks.1.hook_mlp_out",
}
KINDS = [
    (architecture, d_out, skip)
    for architecture in ACTIVATIONS
    for d_out, skip in ((None, False), (20, False), (20, True))
]


def of_kind(architecture, d_out, skip):
    if d_out is None:
        return random_dictionary(architecture, hook_name="blocks.1.hook_resid_mid")
    return random_dictionary(architecture, d_out=d_out, skip=skip, **HOOKS)


def random_rows(n=500, d_in=32):
    return 3 * torch.randn(n, d_in, generator=torch.Generator().manual_seed(1)) + 1


def assert_same(dictionary, theirs, x, **closeness):
    """Ours and a SAELens one encode and reconstruct alike."""
    with torch.no_grad():
        theirs_acts, theirs_out = theirs.encode(x), theirs(x)
    ours_acts = dictionary.encode(x)
    assert torch.equal(ours_acts > 0, theirs_acts > 0)
    assert 0.02 < (ours_acts > 0).float().mean() < 0.98
    torch.testing.assert_close(ours_acts, theirs_acts, **closeness)
    torch.testing.assert_close(dictionary(x), theirs_out, **closeness)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_dictionary_comes_back_from_its_folder_as_it_was(kind, tmp_path):
    dictionary = of_kind(*kind)
    save_dictionary(dictionary, tmp_path / "saved")
    again = load_dictionary(tmp_path / "saved")
    assert list(again.tensors) == list(dictionary.tensors)
    for name, tensor in dictionary.tensors.items():
        assert torch.equal(tensor, again.tensors[name]), name
    assert again.architecture == dictionary.architecture
    assert again.activation.numbers == dictionary.activation.numbers
    assert again.digest == dictionary.digest
    assert again.hook_name_out == dictionary.hook_name_out
    assert again.is_transcoder == (kind[1] is not None)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", KINDS)
def test_saelens_computes_the_same_with_every_kind_that_it_knows(kind, tmp_path):
    sae_lens = pytest.importorskip("sae_lens")
    dictionary = of_kind(*kind)
    save_dictionary(dictionary, tmp_path / "saved")
    name = json.loads((tmp_path / "saved/cfg.json").read_text())["architecture"]
    if not loads_in_saelens(dictionary):
        assert name in {f"{r}_{s}transcoder" for r in ("topk", "gated") for s in ("", "skip_")}
        with pytest.raises(KeyError):
            sae_lens.SAE.load_from_disk(str(tmp_path / "saved"))
        return
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path / "saved"))
    assert theirs.cfg.architecture() == name
    assert_same(dictionary, theirs, random_rows(), rtol=1e-5, atol=1e-5)
    for key, value in metadata_of(dictionary).items():
        assert theirs.cfg.metadata[key] == value


def saelens_kinds():
    """Name in SAELens, settings of its configuration."""
    biased = {"apply_b_dec_to_input": True}
    plain = {"apply_b_dec_to_input": False}
    for settings in (biased, plain):
        yield "standard", settings
        yield "jumprelu", settings
        yield "gated", settings
        for rescale in (False, True):
            yield "topk", {**settings, "k": 9, "rescale_acts_by_decoder_norm": rescale}
    for name in ("transcoder", "skip_transcoder", "jumprelu_transcoder"):
        yield name, {**plain, "d_out": 20}
    yield "jumprelu_skip_transcoder", {**plain, "d_out": 20}


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", list(saelens_kinds()), ids=str)
def test_every_kind_that_saelens_saves_computes_the_same_here(kind, tmp_path):
    pytest.importorskip("sae_lens")
    from sae_lens.registry import get_sae_class
    from sae_lens.saes.sae import SAEMetadata

    name, settings = kind
    sae_class, config_class = get_sae_class(name)
    theirs = sae_class(
        config_class(d_in=32, d_sae=48, metadata=SAEMetadata(**HOOKS), **settings)
    )
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    theirs.save_model(tmp_path / "theirs")
    ours = load_dictionary(tmp_path / "theirs")
    # Sums of 32 products in another order, at activations of about 5.
    assert_same(ours, theirs, random_rows(), rtol=1e-5, atol=2e-5)
    assert ours.hook_name_out == HOOKS["hook_name_out"]
    save_dictionary(ours, tmp_path / "ours")
    assert load_dictionary(tmp_path / "ours").digest == ours.digest


def damaged(folder, architecture, d_out=None, drop=None, **changes):
    save_dictionary(of_kind(architecture, d_out, skip=False), folder)
    config = json.loads((folder / "cfg.json").read_text()) | changes
    (unseal(folder) / "cfg.json").write_text(json.dumps(config))
    tensors = load_file(folder / "sae_weights.safetensors")
    tensors.pop(drop, None)
    save_file(tensors, folder / "sae_weights.safetensors")
    return folder


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ({"architecture": "topk", "k": None}, "k=None; a topk dictionary needs a whole number"),
        ({"architecture": "topk", "k": 49}, "k=49; give 1 to d_sae=48"),
        ({"architecture": "gated", "drop": "b_gate"}, "lacks b_gate"),
        ({"architecture": "jumprelu", "drop": "threshold"}, "lacks threshold"),
        (
            {"architecture": "standard", "d_out": 20, "apply_b_dec_to_input": True},
            "the b_dec of a transcoder does not belong to its input",
        ),
    ],
)
def test_a_folder_that_does_not_make_a_dictionary_is_refused(damage, sentence, tmp_path):
    settings = dict(damage)
    architecture = settings.pop("architecture")
    with pytest.raises(ValueError, match=sentence):
        load_dictionary(damaged(tmp_path / "folder", architecture, **settings))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_saelens_loads_an_export_and_computes_the_same(exported, tiny_run):
    sae_lens = pytest.importorskip("sae_lens")
    folder = exported[1] / "blocks.1.hook_resid_post"
    theirs = sae_lens.SAE.load_from_disk(str(folder))
    ours = sae.load(str(folder))
    x = rows(tiny_run)
    with torch.no_grad():
        feature_acts = theirs.encode(x)
        torch.testing.assert_close(feature_acts, ours.encode(x), rtol=1e-5, atol=1e-5)
        decoded = theirs.decode(feature_acts)
    torch.testing.assert_close(decoded, ours.decode(ours.encode(x)), rtol=1e-5, atol=1e-5)
    assert theirs.cfg.metadata.hook_name == "blocks.1.hook_resid_post"
    assert theirs.cfg.metadata.model_name == ours.model_name
    assert theirs.cfg.metadata.sae_atlas["digest"] == metadata_of(ours)["sae_atlas"]["digest"]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_folder_that_saelens_saved_loads_here_and_computes_the_same(tmp_path, tiny_run):
    sae_lens = pytest.importorskip("sae_lens")
    torch.manual_seed(0)
    theirs = sae_lens.StandardSAE(
        sae_lens.StandardSAEConfig(d_in=32, d_sae=48, apply_b_dec_to_input=True)
    )
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn_like(parameter))
    theirs.save_model(tmp_path / "theirs")
    ours = sae.load(str(tmp_path / "theirs"))
    x = rows(tiny_run)
    with torch.no_grad():
        expected = theirs.encode(x)
        torch.testing.assert_close(ours.encode(x), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours(x), theirs.decode(expected), rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_an_export_holds_the_dictionary_the_tables_and_a_card(exported):
    _, folder = exported
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    inner = "blocks.1.hook_resid_post"
    assert found == {
        "README.md",
        "features.parquet",
        "contexts.parquet",
        "labels.csv",
        "decoder.safetensors",
        "export.json",
        f"{inner}/SHA256SUMS",
        f"{inner}/cfg.json",
        f"{inner}/sae_weights.safetensors",
        f"{inner}/sparsity.safetensors",
    }
    config = json.loads((folder / inner / "cfg.json").read_text())
    assert config["normalize_activations"] == "none"
    assert config["metadata"]["sae_lens_version"] >= "6.0.0"


def test_the_cards_metadata_and_figures_are_those_of_the_run(exported):
    from huggingface_hub import RepoCard

    run, folder = exported
    card = RepoCard.load(folder / "README.md")
    assert card.data.library_name == "saelens"
    assert {c["config_name"] for c in card.data.configs} == {"features", "contexts"}
    figures = json.loads((run / "evals/strong.json").read_text())
    assert f"{figures['explained_variance']:.4g}" in card.text
    assert f"{figures['ce_loss_with_sae']:.4g}" in card.text
    for why in figures.get("not_measurable", {}).values():
        assert f"not measurable: {why}" in card.text


def test_the_tables_load_as_a_data_set(exported, tmp_path):
    from datasets import load_dataset

    _, folder = exported
    features = load_dataset(
        "parquet",
        data_files=str(folder / "features.parquet"),
        split="train",
        cache_dir=str(tmp_path),
    )
    assert features.num_rows == 64
    assert features[3]["feature"] == 3


def test_an_export_is_reused_and_a_foreign_folder_is_refused(exported, tmp_path):
    run, folder = exported
    stamp = (folder / "README.md").stat().st_mtime_ns
    assert sae.export(run=str(run), dictionary="strong") == folder
    assert (folder / "README.md").stat().st_mtime_ns == stamp
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="not an export"):
        sae.export(run=str(run), dictionary="strong", out=str(tmp_path / "mine"))
    assert (tmp_path / "mine/letter.txt").read_text() == "dear"


def test_what_was_measured_on_other_weights_is_not_exported(exported, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(exported[0], run)
    changed = sae.load(str(run / "dictionaries/weak"))
    shutil.rmtree(run / "dictionaries/strong")
    save_dictionary(changed, run / "dictionaries/strong")
    with pytest.raises(ValueError, match="changed since it was measured; run again: sae eval"):
        sae.export(run=str(run), dictionary="strong")
    with pytest.raises(ValueError, match="run again: sae analyze"):
        sae.steer(run=str(run), dictionary="strong")


def test_what_was_measured_at_another_hook_is_not_exported(exported, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(exported[0], run)
    strong = sae.load(str(run / "dictionaries/strong"))
    moved = strong.placed("blocks.0.hook_resid_post")
    assert moved.digest == strong.digest
    shutil.rmtree(run / "dictionaries/strong")
    save_dictionary(moved, run / "dictionaries/strong")
    with pytest.raises(ValueError, match="changed since it was measured; run again: sae eval"):
        sae.export(run=str(run), dictionary="strong")


def test_an_unknown_dictionary_is_refused_with_those_that_are_there(exported):
    with pytest.raises(
        ValueError, match=r"dictionary=other is not in .*; it holds strong, weak"
    ):
        sae.export(run=str(exported[0]), dictionary="other")


def test_a_dictionary_that_was_not_finished_is_not_seen(exported, tmp_path):
    shutil.copytree(exported[0] / "dictionaries", tmp_path / "dictionaries")
    shutil.copytree(
        tmp_path / "dictionaries/weak", tmp_path / "dictionaries/.weak.01234567.partial"
    )
    assert Run.at(tmp_path).dictionary_names == ["strong", "weak"]
