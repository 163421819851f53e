"""What analysis says of features, against brute force over the whole cache."""

import shutil

import pytest
import torch

import sae

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def analyzed(tiny_run, tmp_path_factory):
    run = tmp_path_factory.mktemp("analyzed") / "run"
    shutil.copytree(tiny_run, run)
    atlas = sae.analyze(run=str(run), dictionary="strong", n_contexts=4, context_radius=5)
    return run, atlas


@pytest.fixture(scope="module")
def acts(tiny_run):
    """Activations of the whole cache, zero at special tokens: (sequence, position, d_sae)."""
    cache = sae.open_cache(tiny_run / "cache.zarr")
    dictionary = sae.load(str(tiny_run / "dictionaries/strong"))
    x = cache.read(HOOK, slice(0, len(cache.tokens))).float()
    keep = torch.from_numpy(cache.text_rows())
    return dictionary.encode(x) * keep[..., None], keep


def test_density_maximum_and_mean_equal_brute_force(analyzed, acts):
    feature_acts, keep = acts
    flat = feature_acts[keep].double()
    for row in analyzed[1].features():
        column = flat[:, row["feature"]]
        assert row["n_active"] == int((column > 0).sum())
        assert row["density"] == pytest.approx(float((column > 0).double().mean()))
        assert row["max_activation"] == pytest.approx(float(column.max()), rel=1e-5)
        mean = float(column[column > 0].mean()) if row["n_active"] else 0.0
        assert row["mean_activation"] == pytest.approx(mean, rel=1e-5)


def test_top_contexts_equal_brute_force(analyzed, acts):
    feature_acts, _ = acts
    cache = sae.open_cache(analyzed[0] / "cache.zarr")
    best, where = feature_acts.max(dim=1)
    contexts = {}
    for row in analyzed[1].contexts():
        contexts.setdefault(row["feature"], []).append(row)
    for feature in range(feature_acts.shape[2]):
        values, sequences = best[:, feature].sort(descending=True, stable=True)
        expected = [
            (v, s) for v, s in zip(values[:4].tolist(), sequences.tolist(), strict=False)
        ]
        expected = [(v, s) for v, s in expected if v > 0]
        found = contexts.get(feature, [])
        assert [row["rank"] for row in found] == list(range(len(expected)))
        for row, (value, sequence) in zip(found, expected, strict=True):
            assert row["activation"] == pytest.approx(value, rel=1e-5)
            # Equal activations may stand in several sequences; the value decides, not the name.
            at = feature_acts[row["sequence"], row["position"], feature]
            assert float(at) == pytest.approx(value, rel=1e-5)
            if values.tolist().count(value) == 1:
                assert row["sequence"] == sequence
                assert row["position"] == int(where[sequence, feature])
            start, end = row["start"], row["start"] + len(row["activations"])
            assert start == max(0, row["position"] - 5)
            assert row["token_ids"] == cache.tokens[row["sequence"], start:end].tolist()
            stretch = feature_acts[row["sequence"], start:end, feature].tolist()
            assert row["activations"] == pytest.approx(stretch, rel=1e-5, abs=1e-6)


def test_text_is_stored_with_the_contexts(analyzed, tiny_model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    row = analyzed[1].contexts()[0]
    assert "".join(row["tokens"]) == tokenizer.decode(row["token_ids"])


def test_top_and_bottom_logits_equal_the_direct_product(analyzed, tiny_model):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    dictionary = sae.load(str(analyzed[0] / "dictionaries/strong"))
    logits = ((dictionary.W_dec * model.model.norm.weight) @ model.lm_head.weight.t()).detach()
    for row in analyzed[1].features():
        direct = logits[row["feature"]]
        high, low = direct.topk(10), direct.topk(10, largest=False)
        assert row["top_logit_ids"] == high.indices.tolist()
        assert row["bottom_logit_ids"] == low.indices.tolist()
        assert row["top_logits"] == pytest.approx(high.values.tolist(), rel=1e-4, abs=1e-5)
        sharpness = (high.values.mean() - direct.mean()) / direct.std()
        assert row["logit_sharpness"] == pytest.approx(float(sharpness), rel=1e-3)


def test_neighbours_are_the_nearest_decoder_directions(analyzed):
    dictionary = sae.load(str(analyzed[0] / "dictionaries/strong"))
    unit = torch.nn.functional.normalize(dictionary.W_dec, dim=1)
    cosines = (unit @ unit.t()).fill_diagonal_(-2)
    for row in analyzed[1].features():
        best = cosines[row["feature"]].topk(5)
        assert row["neighbour_cosines"] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_logit_agreement_counts_contexts_whose_peak_or_next_token_is_promoted():
    from sae.analysis.atlas import logit_agreement

    def context(feature, tokens, peak):
        return {"feature": feature, "tokens": tokens, "position": peak + 7, "start": 7}

    contexts = [
        context(0, ["a", " Cat", "b"], 1),
        context(0, ["a", "b", "cat"], 1),
        context(0, ["cat", "b", "c"], 1),
        context(1, ["x", "y"], 0),
    ]
    assert logit_agreement([[" cat"], ["z"], ["w"]], contexts) == [2 / 3, 0, 0]


def test_a_finished_atlas_is_reused_and_other_settings_make_another(analyzed):
    run, atlas = analyzed
    stamp = (atlas.folder / "features.parquet").stat().st_mtime_ns
    settings = {"run": str(run), "dictionary": "strong", "context_radius": 5}
    sae.analyze(**settings, n_contexts=4)
    assert (atlas.folder / "features.parquet").stat().st_mtime_ns == stamp
    sae.analyze(**settings, n_contexts=3)
    assert max(row["rank"] for row in atlas.contexts()) == 2
    sae.analyze(**settings, n_contexts=4)


def test_a_constant_direction_moves_no_logit_of_a_model_with_layer_norm(
    tmp_path, tokenizer_folder
):
    from conftest import save_tiny_model
    from transformers import AutoModelForCausalLM

    from sae.models.unembed import unembedding

    folder = save_tiny_model("gpt2", tmp_path / "gpt2", tokenizer_folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    matrix = unembedding(model)
    torch.testing.assert_close(torch.ones(32) @ matrix, torch.zeros(matrix.shape[1]))
    with torch.no_grad():
        x = torch.randn(32)
        normed = model.transformer.ln_f(x)
        logits = (normed - model.transformer.ln_f.bias) @ model.lm_head.weight.t()
    scale = (x - x.mean()).square().mean().add(1e-5).sqrt()
    torch.testing.assert_close(x @ matrix / scale, logits, rtol=1e-3, atol=1e-4)
