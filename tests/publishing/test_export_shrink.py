"""Smaller dictionaries: fewer bits a weight, no dead features, and what that costs."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.figures import made_figures
from support.files import unseal
from support.world import random_dictionary, training_json

import sae
from sae.atlas.labels import read_labels, set_label
from sae.base.errors import UserError
from sae.dictionary import ACTIVATIONS
from sae.dictionary.files import load_dictionary, save_dictionary
from sae.dictionary.storage import as_loaded, named_dtype
from sae.evaluation.held_out import reconstruction
from sae.evaluation.shrink import held_out_rows, shrinking_cost
from sae.publishing.card import Export, model_card
from sae.publishing.folder import nested_widths
from sae.rows.shuffle import select_rows

HOOK = "blocks.1.hook_resid_post"
DEAD = [0, 3, 17, 63]


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    """A run whose dictionary has dead features, evaluated and analyzed."""
    folder = tmp_path_factory.mktemp("shrink") / "run"
    shutil.copytree(tiny_run, folder)
    found = sae.load(str(folder / "dictionaries/strong"))
    shutil.rmtree(folder / "dictionaries")
    b_enc = found.b_enc.clone()
    b_enc[DEAD] = -1e4
    save_dictionary(replace(found, b_enc=b_enc), folder / "dictionaries/some")
    sae.eval(run=str(folder), n_behaviour_tokens=64)
    atlas = sae.analyze(run=str(folder))
    assert [f["feature"] for f in atlas.features() if f["n_active"] == 0] == DEAD
    set_label(atlas.folder, 5, "my own words")
    return folder


def measured(run, dictionary):
    """Explained variance and L0 over all held-out rows."""
    rows = select_rows(sae.open_cache(run / "cache.zarr"), HOOK, held_out=True)
    found = reconstruction(dictionary, rows).metrics()
    return found["explained_variance"], found["l0"]


def rows_of(card, title):
    """The cells of a table in a card, by their first."""
    table = card.split(f"## {title}")[1].split("## ")[0]
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if "|" in line]
    return {first: rest for first, *rest in lines}


BITS = {"bfloat16": 16, "float16": 16, "int8": 8}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", BITS)
def test_a_smaller_type_costs_what_the_card_says(dtype, run):
    whole = sae.export(run=str(run), dictionary="some")
    folder = sae.export(run=str(run), dictionary="some", dtype=dtype)
    assert folder == run / f"export/some-{dtype}"
    weights = "sae_weights.safetensors"
    before, after = ((f / HOOK / weights).stat().st_size for f in (whole, folder))
    assert after < (BITS[dtype] / 32 + 0.12) * before
    full, small = (sae.load(str(f / HOOK)) for f in (whole, folder))
    assert small.W_enc.dtype == torch.float32
    card = (folder / "README.md").read_text()
    assert f"Weights are stored as `{dtype}`" in card
    found = rows_of(card, "Made smaller")
    variance, l0 = (found[key] for key in list(found)[2:4])
    expected = [f"{value:.6g}" for d in (full, small) for value in measured(run, d)]
    assert [variance[0], l0[0], variance[1], l0[1]] == expected
    assert variance[0] != variance[1] or dtype != "int8"
    assert abs(float(variance[0]) - float(variance[1])) < 0.01


def cost_of(folder):
    return json.loads((folder / "export.json").read_text())["shrunk"]


@pytest.mark.slow
def test_what_it_costs_the_model_is_what_evaluation_finds_for_it(run, tmp_path):
    folder = sae.export(run=str(run), dictionary="some", dtype="int8", drop_dead=True)
    cost = cost_of(folder)
    found = {}
    for side, source in (("before", run / "dictionaries/some"), ("after", folder / HOOK)):
        save_dictionary(sae.load(str(source)), tmp_path / "dictionaries" / side)
        (figures,) = sae.eval(
            run=str(tmp_path),
            cache=str(run / "cache.zarr"),
            dictionary=side,
            n_behaviour_tokens=2_048,
        )
        found[side] = figures.values
        assert cost["n_behaviour_tokens"] == figures.n_behaviour_tokens > 0
        # A score is among them where the ablation costs this model more than chance.
        names = {"ce_loss_with_sae", "kl_div_with_sae", "ce_loss_score", "kl_div_score"}
        assert names & {*cost[side]} == names & {*figures.values}
        for name in names & {*figures.values}:
            assert cost[side][name] == pytest.approx(found[side][name], rel=1e-5)
    assert cost["before"]["kl_div_with_sae"] != cost["after"]["kl_div_with_sae"]
    card = (folder / "README.md").read_text()
    assert f"for CE and KL {cost['n_behaviour_tokens']:,} tokens" in card
    table = rows_of(card, "Made smaller")
    for meaning, name in (("CE score: ", "ce_loss_score"), ("KL score: ", "kl_div_score")):
        if name not in figures.values:
            assert not any(title.startswith(meaning) for title in table)
            continue
        (shown,) = (cells for title, cells in table.items() if title.startswith(meaning))
        assert shown == [f"{cost[side][name]:.6g}" for side in ("before", "after")]
    (added,) = (cells for title, cells in table.items() if title.startswith("CE added"))
    of = found["after"]
    expected = of["ce_loss_with_sae"] - of["ce_loss_without_sae"]
    assert float(added[1]) == pytest.approx(expected, rel=1e-3)


def test_without_the_model_the_rest_is_measured_and_the_card_says_so(
    run, tiny_model, tmp_path, capsys
):
    words = {"run": str(run), "dtype": "int8", "out": str(tmp_path / "out")}
    tiny_model.rename(tmp_path / "elsewhere")
    try:
        folder = sae.export(**words)
    finally:
        (tmp_path / "elsewhere").rename(tiny_model)
    said = capsys.readouterr().err
    assert "export: the effect on the model's CE is not measured, because model.name=" in said
    card = (folder / "README.md").read_text()
    assert "the model's CE was not measured: the model was not to be had." in card
    assert not any("CE" in title for title in rows_of(card, "Made smaller"))
    assert cost_of(folder)["n_behaviour_tokens"] == 0
    # Once it is there again, the same words measure it.
    sae.export(**words)
    assert cost_of(folder)["n_behaviour_tokens"] > 0
    assert "was not measured" not in (folder / "README.md").read_text()
    sae.export(**words)
    assert "is finished already and is reused" in capsys.readouterr().err


def test_a_model_that_predicts_no_next_token_is_not_asked(run):
    dictionary = sae.load(str(run / "dictionaries/some"))
    rows = held_out_rows("some", dictionary, str(run / "cache.zarr"))
    small = as_loaded(dictionary, "int8")
    cost = shrinking_cost(dictionary, small, rows, causal=False)
    assert cost.n_behaviour_tokens == 0
    assert "ce_loss_score" not in cost.after
    figures = made_figures("some")
    about = Export(folder=HOOK, dtype="int8", shrunk=cost)
    assert "not measured:" not in model_card(small, figures, 64, about)


def test_int8_is_a_scale_a_latent_and_within_half_a_step_of_the_weights(tmp_path):
    dictionary = random_dictionary("gated", d_out=20, skip=True, hook_name=HOOK)
    save_dictionary(dictionary, tmp_path / "small", "int8")
    found = load_file(tmp_path / "small/sae_weights.safetensors")
    assert found["W_enc"].dtype == found["W_dec"].dtype == torch.int8
    assert found["W_enc_scale"].shape == found["W_dec_scale"].shape == (48,)
    assert found["W_skip_scale"].shape == (20,)
    assert found["r_mag"].dtype == torch.float32
    again = load_dictionary(tmp_path / "small")
    steps = {"W_enc": found["W_enc_scale"], "W_dec": found["W_dec_scale"][:, None]}
    for name, step in steps.items():
        off = (getattr(again, name) - getattr(dictionary, name)).abs()
        assert (off <= 0.5001 * step).all()
        assert off.max() > 0
    assert torch.equal(again.b_enc, dictionary.b_enc)
    assert again.digest == as_loaded(dictionary, "int8").digest


@pytest.mark.parametrize("dtype", BITS)
@pytest.mark.parametrize("architecture", ACTIVATIONS)
def test_what_is_loaded_is_what_was_measured(architecture, dtype, tmp_path):
    dictionary = random_dictionary(architecture, hook_name=HOOK)
    save_dictionary(dictionary, tmp_path / "small", dtype)
    again = load_dictionary(tmp_path / "small")
    assert again.digest == as_loaded(dictionary, dtype).digest != dictionary.digest
    # What is stored once does not wear off.
    for name, tensor in as_loaded(again, dtype).tensors.items():
        torch.testing.assert_close(tensor, again.tensors[name], rtol=1e-6, atol=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("architecture", ACTIVATIONS)
def test_saelens_loads_half_precision_and_has_the_same_weights(architecture, dtype, tmp_path):
    sae_lens = pytest.importorskip("sae_lens")
    dictionary = random_dictionary(architecture, hook_name=HOOK, model_name="a/model")
    save_dictionary(dictionary, tmp_path / "small", dtype)
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path / "small"))
    assert str(theirs.dtype) == f"torch.{dtype}"
    ours = load_dictionary(tmp_path / "small")
    assert torch.equal(theirs.W_dec.float(), ours.W_dec)
    theirs = theirs.to(torch.float32)
    x = torch.randn(100, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(theirs.encode(x), ours.encode(x), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_saelens_is_not_told_to_load_int8_and_does_not(run):
    sae_lens = pytest.importorskip("sae_lens")
    folder = sae.export(run=str(run), dtype="int8")
    card = (folder / "README.md").read_text()
    assert "sae_lens" not in card
    assert "library_name: sae-atlas" in card
    with pytest.raises(ValueError, match="Invalid dtype: int8"):
        sae_lens.SAE.load_from_disk(str(folder / HOOK))


def test_dead_features_go_and_everything_is_numbered_anew(run):
    folder = sae.export(run=str(run), drop_dead=True)
    atlas = sae.analyze(run=str(run))
    kept = np.array([f for f in range(64) if f not in DEAD])
    before, small = sae.load(str(run / "dictionaries/some")), sae.load(str(folder / HOOK))
    assert torch.equal(small.W_dec, before.W_dec[kept])
    cache = sae.open_cache(run / "cache.zarr")
    x = cache.read(HOOK, slice(0, 8))[:, 1:].reshape(-1, 32).float()
    torch.testing.assert_close(small.encode(x), before.encode(x)[:, kept])
    torch.testing.assert_close(small(x), before(x))
    lines = (folder / "feature_map.csv").read_text().splitlines()
    expected = [f"{new},{old}" for new, old in enumerate(kept)]
    assert lines == ["feature,original_feature", *expected]
    old = {f["feature"]: f for f in atlas.features()}
    new_of = {int(f): i for i, f in enumerate(kept)}
    features = pyarrow.parquet.read_table(folder / "features.parquet").to_pylist()
    assert [f["feature"] for f in features] == list(range(60))
    for found in features:
        was = old[found.pop("original_feature")]
        assert found.pop("feature") == new_of[was["feature"]]
        for names, beside in (
            ("neighbours", ["neighbour_cosines"]),
            ("correlated", ["correlations"]),
            ("coactive", ["coactive_counts", "coactive_jaccard"]),
        ):
            alive = [i for i, f in enumerate(was[names]) if f in new_of]
            assert found.pop(names) == [new_of[was[names][i]] for i in alive]
            for name in beside:
                assert found.pop(name) == [was[name][i] for i in alive]
        assert found == {name: was[name] for name in found}
    contexts = pyarrow.parquet.read_table(folder / "contexts.parquet").to_pylist()
    expected = [c for c in atlas.contexts() if c["feature"] in new_of]
    assert [c.pop("original_feature") for c in contexts] == [c["feature"] for c in expected]
    assert contexts == [c | {"feature": new_of[c["feature"]]} for c in expected]


def test_labels_move_with_their_features_and_the_sparsity_too(run):
    folder = sae.export(run=str(run), drop_dead=True)
    labels, before = read_labels(folder), read_labels(run / "atlas/some")
    assert labels.label[5 - 2] == "my own words"
    assert labels.by_hand == [3]
    assert labels.label == [text for i, text in enumerate(before.label) if i not in DEAD]
    found = load_file(folder / HOOK / "sparsity.safetensors")["sparsity"]
    assert found.shape == (60,)
    assert (found > -9).all()


def test_the_card_of_a_dictionary_without_its_dead_features_says_so(run):
    folder = sae.export(run=str(run), drop_dead=True, dtype="fp16")
    assert folder == run / "export/some-float16-alive"
    card = (folder / "README.md").read_text()
    assert "4 of 64 latents are left out" in card
    assert "`feature_map.csv`" in card
    assert "\n60 latents on activations" in card
    found = rows_of(card, "Made smaller")
    assert float(list(found.values())[2][1]) > 0


@pytest.mark.slow
def test_where_no_feature_is_dead_the_folder_is_the_same_and_it_is_said(
    tiny_run, tmp_path, capsys
):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    sae.eval(run=str(run), dictionary="weak", n_behaviour_tokens=64)
    assert sae.analyze(run=str(run), dictionary="weak").record.n_dead == 0
    whole = sae.export(run=str(run), dictionary="weak")
    said = "export: drop_dead=true leaves nothing out, because every feature fired"
    assert said not in capsys.readouterr().err
    alive = sae.export(run=str(run), dictionary="weak", drop_dead=True)
    assert said in capsys.readouterr().err
    names = {str(p.relative_to(whole)) for p in whole.rglob("*")} - {"export.json"}
    assert {str(p.relative_to(alive)) for p in alive.rglob("*")} - {"export.json"} == names
    for name in names:
        if (whole / name).is_file():
            assert (whole / name).read_bytes() == (alive / name).read_bytes()


@pytest.mark.slow
def test_the_card_of_a_nested_dictionary_has_the_widths_that_are_left(run, tmp_path):
    nested = tmp_path / "run"
    settings = {"run": str(nested), "cache": str(run / "cache.zarr")}
    found = sae.train(
        **settings,
        name="nested",
        sae=sae.MatryoshkaConfig(d_sae=64, k=8, matryoshka_widths=[4, 16, 32]),
        training_tokens=20_000,
        train_batch_size_tokens=256,
    )
    b_enc = found.b_enc.clone()
    b_enc[[1, 2, 20, *range(40, 50)]] = -1e4
    shutil.rmtree(nested / "dictionaries/nested")
    save_dictionary(replace(found, b_enc=b_enc), nested / "dictionaries/nested")
    sae.eval(**settings, n_behaviour_tokens=64)
    atlas = sae.analyze(**settings)
    kept = [f["feature"] for f in atlas.features() if f["n_active"]]
    assert not {1, 2, 20, 40} & set(kept)
    says = "Latents are nested (Matryoshka): the first {} alone"
    whole = (sae.export(run=str(nested)) / "README.md").read_text()
    assert says.format("4, 16 or 32") in whole
    folder = sae.export(**settings, drop_dead=True)
    widths = [sum(f < width for f in kept) for width in (4, 16, 32)]
    card = (folder / "README.md").read_text()
    assert says.format("{}, {} or {}".format(*widths)) in card
    # The first of them are the same latents in the same order.
    before, small = found.W_dec[kept], sae.load(str(folder / HOOK)).W_dec
    assert torch.equal(small, before)


def test_levels_without_a_latent_left_are_none_and_others_are_not_nested():
    def trained(architecture, **settings):
        ours = training_json(architecture=architecture, sae=settings)
        return random_dictionary("jumprelu", hook_name=HOOK, sae_atlas=ours)

    levels = {"k": 4, "matryoshka_widths": [4, 8, 16, 32]}
    nested = trained("matryoshka_batchtopk", d_sae=48, **levels)
    assert nested_widths(nested, np.arange(48)) == (4, 8, 16, 32)
    assert nested_widths(nested, np.array([5, 20, 21])) == (1,)
    # Taken over again after latents were left out, it has no longer the levels of its training.
    wider = trained("matryoshka_batchtopk", d_sae=64, **levels)
    assert nested_widths(wider, np.arange(48)) == ()
    assert nested_widths(trained("batchtopk", d_sae=48), np.arange(48)) == ()


def test_a_topk_keeps_no_more_than_its_latents(tmp_path):
    dictionary = random_dictionary("topk", hook_name=HOOK)
    assert dictionary.activation.k == 7
    assert dictionary.of_latents(torch.arange(9)).activation.k == 7
    assert dictionary.of_latents(torch.arange(4)).activation.k == 4
    assert dictionary.of_latents(torch.arange(48)) is dictionary


@pytest.mark.slow
def test_nothing_is_not_exported(run, tmp_path):
    odd = tmp_path / "run"
    shutil.copytree(run, odd)
    found = sae.load(str(odd / "dictionaries/some"))
    shutil.rmtree(odd / "dictionaries")
    save_dictionary(replace(found, b_enc=torch.full((64,), -1e4)), odd / "dictionaries/some")
    sae.eval(run=str(odd), n_behaviour_tokens=64)
    sae.analyze(run=str(odd))
    with pytest.raises(UserError, match="drop_dead=true would leave no feature"):
        sae.export(run=str(odd), drop_dead=True, out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_what_a_type_cannot_say_is_refused(run, tmp_path):
    odd = random_dictionary("standard", hook_name=HOOK)
    odd.W_enc[0, 0] = 1e5
    with pytest.raises(UserError, match=r"W_enc has entries beyond 65504, the largest number"):
        save_dictionary(odd, tmp_path / "small", "float16")
    assert not (tmp_path / "small").exists()
    never = random_dictionary("jumprelu", hook_name=HOOK)
    never.activation.threshold[3] = torch.finfo(torch.float32).max
    for dtype in ("float16", "bfloat16"):
        again = as_loaded(never, dtype)
        assert again.activation.threshold.isfinite().all()
    no_cache = {"cache": str(tmp_path / "no.zarr"), "out": str(tmp_path / "out")}
    with pytest.raises(UserError, match=r"no\.zarr"):
        sae.export(run=str(run), dtype="bf16", **no_cache)
    assert not list(tmp_path.iterdir())


def test_short_names_of_types_are_known():
    assert [named_dtype(word) for word in ("bf16", "fp16", "fp32", "int8")] == [
        "bfloat16",
        "float16",
        "float32",
        "int8",
    ]
    with pytest.raises(UserError, match=r"dtype=bfloat is unknown; .*nearest: bfloat16"):
        named_dtype("bfloat")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"W_enc_scale": None}, "W_enc is int8 and needs W_enc_scale of shape"),
        (
            {"W_dec_scale": torch.ones(47)},
            r"W_dec is int8 and needs W_dec_scale of shape \(",
        ),
        ({"W_dec_scale": torch.full((48,), torch.nan)}, "W_dec holds NaN or infinity"),
        ({"W_enc": torch.ones(32, 48, dtype=torch.int32)}, "torch.int32, where int8 is right"),
    ],
    ids=str,
)
def test_a_damaged_int8_folder_is_refused(change, sentence, tmp_path):
    save_dictionary(random_dictionary("standard", hook_name=HOOK), tmp_path / "small", "int8")
    path = tmp_path / "small/sae_weights.safetensors"
    unseal(path.parent)
    found = {**load_file(path), **change}
    save_file({name: tensor for name, tensor in found.items() if tensor is not None}, path)
    with pytest.raises(UserError, match=sentence):
        sae.load(str(tmp_path / "small"))
