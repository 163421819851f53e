"""What analysis says of features, against brute force over the whole cache."""

import collections
import shutil

import numpy as np
import pytest
import torch
from support.world import HOOK

import sae
from sae.analysis import shards as passes
from sae.analysis.tables import Vocabulary, agreement_of_ids
from sae.base.errors import UserError

pytestmark = pytest.mark.usefixtures("two_threads")

pytestmark = pytest.mark.usefixtures("two_threads")

RADIUS = 5
SETTINGS = {"n_contexts": 4, "context_radius": RADIUS}


@pytest.fixture(scope="module")
def analyzed(tiny_run, tmp_path_factory):
    run = tmp_path_factory.mktemp("analyzed") / "run"
    shutil.copytree(tiny_run, run)
    atlas = sae.analyze(run=str(run), dictionary="strong", **SETTINGS)
    return run, atlas


@pytest.fixture(scope="module")
def rows(analyzed):
    return analyzed[1].features()


@pytest.fixture(scope="module")
def contexts(analyzed):
    """Rows of contexts by (feature, group, band)."""
    found = collections.defaultdict(list)
    for row in analyzed[1].contexts():
        found[row["feature"], row["group"], row["band"]].append(row)
    return found


@pytest.fixture(scope="module")
def acts(tiny_run):
    """Activations of the whole cache, zero at special tokens: (sequence, position, d_sae)."""
    cache = sae.open_cache(tiny_run / "cache.zarr")
    dictionary = sae.load(str(tiny_run / "dictionaries/strong"))
    x = cache.read(HOOK, slice(0, len(cache.tokens))).float()
    keep = torch.from_numpy(cache.text_rows())
    return dictionary.encode(x) * keep[..., None], keep


@pytest.fixture(scope="module")
def cache(tiny_run):
    return sae.open_cache(tiny_run / "cache.zarr")


def test_the_contexts_of_one_feature_are_those_that_the_whole_table_has_of_it(analyzed):
    atlas = analyzed[1]
    of_each = collections.Counter(row["feature"] for row in atlas.contexts())
    busiest, n = of_each.most_common(1)[0]
    found = atlas.contexts(busiest)
    assert len(found) == n
    assert found == [row for row in atlas.contexts() if row["feature"] == busiest]
    with pytest.raises(UserError, match="feature=999; the atlas has features 0 to"):
        atlas.contexts(999)


def test_density_maximum_mean_and_spread_equal_brute_force(rows, acts):
    feature_acts, keep = acts
    flat = feature_acts[keep].double()
    for row in rows:
        column = flat[:, row["feature"]]
        active = column[column > 0]
        assert row["n_active"] == len(active)
        assert row["density"] == pytest.approx(len(active) / len(flat))
        assert row["max_activation"] == pytest.approx(float(column.max()), rel=1e-5)
        mean = float(active.mean()) if len(active) else 0.0
        spread = float(active.std(correction=0)) if len(active) else 0.0
        assert row["mean_activation"] == pytest.approx(mean, rel=1e-5)
        assert row["std_activation"] == pytest.approx(spread, rel=1e-4, abs=1e-7)


def test_histograms_count_every_activation_in_fifty_bins_up_to_the_highest(rows, acts):
    feature_acts, _ = acts
    for row in rows:
        column = feature_acts[..., row["feature"]]
        active = column[column > 0].double().numpy()
        assert sum(row["histogram"]) == len(active)
        if len(active):
            edges = np.linspace(0, active.max(), 51)
            # A value that rounding moves over an edge changes two bins by one.
            expected = np.histogram(active, edges)[0]
            assert np.abs(expected - row["histogram"]).sum() <= 4
            assert row["histogram"][-1] >= 1


def test_positions_and_documents_equal_brute_force(rows, acts, cache):
    feature_acts, _ = acts
    tenth = np.arange(cache.context_size) * 10 // cache.context_size
    for row in rows:
        fires = feature_acts[..., row["feature"]].numpy() > 0
        assert row["positions"] == np.bincount(tenth, fires.sum(0), 10).astype(int).tolist()
        counts = np.unique(cache.documents[fires], return_counts=True)[1]
        assert row["n_documents"] == len(counts)
        share = counts.max() / fires.sum() if len(counts) else 0.0
        assert row["top_document_share"] == pytest.approx(share)


def test_tokens_that_a_feature_fires_on_equal_brute_force(rows, acts, cache, tiny_model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    feature_acts, keep = acts
    total = np.bincount(cache.tokens[keep.numpy()], minlength=400)
    for row in rows:
        fires = feature_acts[..., row["feature"]].numpy() > 0
        counts = np.bincount(cache.tokens[fires], minlength=400)
        order = np.lexsort((np.arange(400), -counts))[:10]
        best = [int(i) for i in order if counts[i]]
        assert row["top_token_ids"] == best
        assert row["top_token_counts"] == counts[best].tolist()
        assert row["top_token_rates"] == pytest.approx((counts[best] / total[best]).tolist())
        assert row["top_tokens"] == [tokenizer.decode([i]) for i in best]


def test_correlations_over_all_rows_with_all_other_features_equal_brute_force(rows, acts):
    feature_acts, keep = acts
    x = feature_acts[keep].double()
    live = x.std(0) > 0
    r = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    r[live.outer(live)] = torch.corrcoef(x[:, live].t()).flatten()
    r.fill_diagonal_(-2)
    for row in rows:
        mine = r[row["feature"]]
        best = [v for v in mine.topk(10).values.tolist() if v > 0]
        assert row["correlations"] == pytest.approx(best, rel=1e-4)
        assert row["correlations"] == pytest.approx(mine[row["correlated"]].tolist(), rel=1e-4)
        assert len(set(row["correlated"])) == len(best)


def test_coactive_features_and_their_overlap_equal_brute_force(rows, acts):
    feature_acts, keep = acts
    fires = (feature_acts[keep] > 0).double()
    together = fires.t() @ fires
    n = fires.sum(0)
    jaccard = together / (n[:, None] + n - together).clamp_min(1)
    jaccard.fill_diagonal_(-1)
    for row in rows:
        mine = jaccard[row["feature"]]
        best = [v for v in mine.topk(10).values.tolist() if v > 0]
        assert row["coactive_jaccard"] == pytest.approx(best)
        assert row["coactive_jaccard"] == pytest.approx(mine[row["coactive"]].tolist())
        counts = together[row["feature"]][row["coactive"]]
        assert row["coactive_counts"] == counts.long().tolist()


def test_top_contexts_equal_brute_force(contexts, acts, cache):
    feature_acts, _ = acts
    best, where = feature_acts.max(dim=1)
    for feature in range(feature_acts.shape[2]):
        values, sequences = best[:, feature].sort(descending=True, stable=True)
        expected = [
            (v, s) for v, s in zip(values[:4].tolist(), sequences.tolist(), strict=False)
        ]
        expected = [(v, s) for v, s in expected if v > 0]
        found = contexts[feature, "top", -1]
        assert [row["rank"] for row in found] == list(range(len(expected)))
        for row, (value, sequence) in zip(found, expected, strict=True):
            assert row["activation"] == pytest.approx(value, rel=1e-5)
            # Equal activations may stand in several sequences; the value decides, not the name.
            at = feature_acts[row["sequence"], row["position"], feature]
            assert float(at) == pytest.approx(value, rel=1e-5)
            if values.tolist().count(value) == 1:
                assert row["sequence"] == sequence
                assert row["position"] == int(where[sequence, feature])
            check_stretch(row, feature_acts[..., feature], cache)


def check_stretch(row, feature_acts, cache):
    start, end = row["start"], row["start"] + len(row["activations"])
    assert start == max(0, row["position"] - RADIUS)
    assert end == min(cache.context_size, row["position"] + RADIUS + 1)
    assert row["token_ids"] == cache.tokens[row["sequence"], start:end].tolist()
    stretch = feature_acts[row["sequence"], start:end].tolist()
    assert row["activations"] == pytest.approx(stretch, rel=1e-5, abs=1e-6)
    assert row["activation"] == row["activations"][row["position"] - start]


def is_peak(feature_acts, sequence, position):
    start = max(0, position - RADIUS)
    stretch = feature_acts[sequence, start : position + RADIUS + 1]
    return int(stretch.argmax()) == position - start


@pytest.mark.slow
def test_band_contexts_are_peaks_in_their_band_and_as_many_as_there_are(contexts, acts, cache):
    feature_acts, _ = acts
    drawn = 0
    for feature in range(feature_acts.shape[2]):
        mine = feature_acts[..., feature]
        fires = (mine > 0).nonzero().tolist()
        peaks = [(s, p) for s, p in fires if is_peak(mine, s, p)]
        band_of = {
            (s, p): int(np.ceil(float(mine[s, p]) * 5 / float(mine.max()))) - 1
            for s, p in peaks
        }
        for band in range(5):
            found = contexts[feature, "band", band]
            possible = {s for (s, _), b in band_of.items() if b == band}
            assert len(found) == min(4, len(possible))
            assert len({row["sequence"] for row in found}) == len(found)
            values = [row["activation"] for row in found]
            assert values == sorted(values, reverse=True)
            assert [row["rank"] for row in found] == list(range(len(found)))
            for row in found:
                assert band_of[row["sequence"], row["position"]] == band
                check_stretch(row, mine, cache)
                drawn += 1
    assert drawn > 100


@pytest.mark.slow
def test_silent_contexts_hold_no_activation_of_the_feature(contexts, acts, cache):
    feature_acts, keep = acts
    found = 0
    for feature in range(feature_acts.shape[2]):
        places = set()
        for row in contexts[feature, "silent", -1]:
            assert row["activations"] == [0.0] * len(row["activations"])
            assert keep[row["sequence"], row["position"]]
            check_stretch(row, feature_acts[..., feature], cache)
            places.add((row["sequence"], row["position"]))
            found += 1
        assert len(places) == len(contexts[feature, "silent", -1])
    assert found > 50


def test_contexts_are_sorted_by_feature_group_band_and_rank(analyzed):
    order = {"top": 0, "band": 1, "silent": 2}
    keys = [
        (row["feature"], order[row["group"]], -row["band"], row["rank"])
        for row in analyzed[1].contexts()
    ]
    assert keys == sorted(keys)
    assert len(keys) == len(set(keys))


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


def test_neighbours_are_the_nearest_decoder_directions(analyzed, rows):
    dictionary = sae.load(str(analyzed[0] / "dictionaries/strong"))
    unit = torch.nn.functional.normalize(dictionary.W_dec, dim=1)
    cosines = (unit @ unit.t()).fill_diagonal_(-2)
    for row in analyzed[1].features():
        best = cosines[row["feature"]].topk(10)
        assert row["neighbour_cosines"] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_logit_agreement_counts_contexts_whose_peak_or_next_token_is_promoted():
    strings = ["a", " Cat", "b", "cat", "c", "x", "y", "z", "w"]
    vocabulary = Vocabulary(np.arange(9), strings)
    tokens = np.array([0, 1, 2, 0, 2, 3, 3, 2, 4, 5, 6, 3], dtype=np.int32)
    text = passes.Text(tokens, tokens, 4, 3, 12, 1, 1, np.zeros(9, np.int64))
    # Feature 0: its peak, the token after its peak, and neither; 1: at a sequence's end.
    chosen = np.array([[1, 4, 7], [8, -1, -1], [-1, -1, -1]])
    promoted = np.array([[3, 7], [5, 5], [8, 8]])
    found = agreement_of_ids(promoted, chosen, text, vocabulary)
    assert found.tolist() == [2 / 3, 0, 0]


def test_a_constant_direction_moves_no_logit_of_a_model_with_layer_norm(
    tmp_path, tokenizer_folder
):
    from support.world import save_tiny_model
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
