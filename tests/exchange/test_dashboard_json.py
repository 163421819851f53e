"""SAEDashboard's JSON: as its own converter writes it, and read as an atlas."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.dashboards import PLACE, import_atlas, same, seen
from support.files import unseal
from support.world import HOOK

import sae
from sae.base.errors import UserError
from sae.cache.layout import open_cache
from sae.exchange.dashboards.exporting import export_atlas
from sae.models.load import recorded_model
from sae.models.unembed import unembedding
from sae.text.token_texts import TokenTexts

THEIRS = f"tiny-llama_res-mine_{HOOK}_64"


@pytest.fixture(scope="module")
def exported(atlas, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / THEIRS
    return export_atlas(atlas.folder, folder, "saedashboard", fold=False, **PLACE)


@pytest.fixture
def copy(exported, tmp_path):
    """As others make them: without digests of what is in it."""
    shutil.copytree(exported, tmp_path / THEIRS)
    return unseal(tmp_path / THEIRS)


def batch(folder):
    return json.loads((folder / "batch-0.json").read_text())


@pytest.fixture(scope="module")
def converted(atlas, tmp_path_factory):
    """What SAEDashboard finds of the same dictionary and cache, by its own converter."""
    pytest.importorskip("sae_dashboard")
    from sae_dashboard.neuronpedia.neuronpedia_converter import NeuronpediaConverter
    from sae_dashboard.neuronpedia.neuronpedia_runner_config import NeuronpediaRunnerConfig

    from benchmarks.dashboard import cache_activations, dashboards

    run = atlas.folder.parents[1]
    cache = open_cache(run / "cache.zarr")
    rows = cache.read(HOOK, slice(0, cache.n_sequences)).float()
    folder = tmp_path_factory.mktemp("theirs")
    cache_activations(rows, HOOK, folder / "activations", 64)
    model = recorded_model(cache.model, "cpu")
    matrix = unembedding(model.module)
    n_words = matrix.shape[1]
    data = dashboards(
        run / "dictionaries" / "strong",
        matrix,
        torch.from_numpy(cache.tokens).long(),
        list(range(64)),
        folder / "activations",
        ignore_tokens=set(cache.attributes["special_token_ids"]),
        minibatch_size_tokens=64,
        minibatch_size_features=64,
    )
    words = TokenTexts(model.tokenizer).single(range(n_words))
    config = NeuronpediaRunnerConfig(
        sae_set="res-mine",
        sae_path=HOOK,
        outputs_dir="",
        model_id="tiny-llama",
        layer=1,
        n_prompts_total=cache.n_sequences,
        n_tokens_in_prompt=32,
        huggingface_dataset_path=atlas.record.data,
    )
    text = NeuronpediaConverter.convert_to_np_json(
        SimpleNamespace(cfg=SimpleNamespace(d_vocab=n_words)),
        data,
        config,
        dict(enumerate(words)),
    )
    (folder / THEIRS).mkdir()
    (folder / THEIRS / "batch-0.json").write_text(text)
    return folder / THEIRS


@pytest.mark.filterwarnings("ignore")  # of other packages
@pytest.mark.slow
def test_our_json_says_field_by_field_what_their_converter_says(converted, atlas, tmp_path):
    exported = export_atlas(atlas.folder, tmp_path / "ours", "saedashboard", **PLACE)
    ours, theirs = batch(exported), batch(converted)
    names = ("model_id", "layer", "sae_set", "sae_id_suffix")
    assert {name: ours[name] for name in names} == {name: theirs[name] for name in names}
    assert set(ours) == set(theirs)
    n_total = atlas.record.n_sequences * 32
    table = atlas.feature_table().to_pylist()
    # They correlate special tokens as well.
    of_text, of_all = (partners_over(atlas, special=special) for special in (False, True))
    for one, other, row in zip(ours["features"], theirs["features"], table, strict=True):
        assert set(one) == set(other)
        for name in ("feature_index", "n_prompts_total", "n_tokens_in_prompt", "dataset"):
            assert one[name] == other[name]
        for name in ("vector", "decoder_weights_dist"):
            assert one[name] == other[name] == []
        assert one["neuron_alignment_indices"] == other["neuron_alignment_indices"]
        for name in ("neuron_alignment_values", "neuron_alignment_l1"):
            assert one[name] == pytest.approx(other[name], abs=6e-4)
        for sign in ("pos", "neg"):
            assert one[f"{sign}_values"] == pytest.approx(other[f"{sign}_values"][:7], abs=2e-3)
            different = set(one[f"{sign}_str"]) ^ set(other[f"{sign}_str"][:7])
            # Of equal logits either may come first.
            assert len(different) <= 2
        # Theirs is a share of all tokens, from a title with five digits; ours of the text.
        assert other["frac_nonzero"] == pytest.approx(row["n_active"] / n_total, abs=1.1e-5)
        assert one["frac_nonzero"] == row["n_active"] / atlas.record.n_rows
        assert sum(one["freq_hist_data_bar_heights"]) == row["n_active"]
        assert sum(other["freq_hist_data_bar_heights"]) == row["n_active"]
        check_partners(one, of_text)
        check_partners(other, of_all)
        if row["n_active"]:
            check_bars(one, other)
            check_contexts(one, other, atlas.record.n_rows, n_total)


def check_bars(one, other):
    """The last bar ends at the highest activation in both."""
    ends = []
    for found in (one, other):
        middles = found["freq_hist_data_bar_values"]
        ends.append(middles[-1] + (middles[1] - middles[0]) / 2)
    assert ends[0] == pytest.approx(ends[1], abs=3e-3)
    assert len(one["freq_hist_data_bar_values"]) == len(other["freq_hist_data_bar_values"])


def partners_over(atlas, *, special):
    """Correlations and cosines of activations on the text, or on special tokens too."""
    run = atlas.folder.parents[1]
    cache = open_cache(run / "cache.zarr")
    x = cache.read(HOOK, slice(0, cache.n_sequences)).float()
    acts = sae.load(str(run / "dictionaries" / "strong")).encode(x).double().numpy()
    acts = acts.reshape(-1, 64) if special else acts[cache.text_rows()]
    lengths = np.linalg.norm(acts, axis=0)
    return np.corrcoef(acts.T), acts.T @ acts / np.outer(lengths, lengths)


def check_partners(row, expected):
    """What a row says of correlated features is what a dense count says."""
    others = row["correlated_features_indices"]
    for name, table in zip(("pearson", "l1"), expected, strict=True):
        found = row[f"correlated_features_{name}"]
        np.testing.assert_allclose(found, table[row["feature_index"], others], atol=6e-4)
    assert len(others) >= 3


def same_stretch(one, other):
    """Whether two contexts are the same from their peaks on, to the digits of theirs."""
    p, q = one["qualifying_token_index"], other["qualifying_token_index"]
    n = min(len(one["tokens"]) - p, len(other["tokens"]) - q)
    near = np.allclose(one["values"][p : p + n], other["values"][q : q + n], atol=6e-4)
    return near and one["tokens"][p : p + n] == other["tokens"][q : q + n]


def check_contexts(one, other, n_rows, n_total):
    for name in ("dfa_values", "dfa_maxValue", "dfa_targetIndex"):
        assert one["activations"][0][name] == other["activations"][0][name]
    assert all(set(a) == set(other["activations"][0]) for a in one["activations"])
    first, second = one["activations"][0], other["activations"][0]
    bins = ("bin_min", "bin_max", "bin_contains")
    assert [first[name] for name in bins] == pytest.approx([second[n] for n in bins], abs=6e-4)
    # Of equally strong ones either may come first.
    assert any(
        same_stretch(first, each) for each in other["activations"] if each["bin_min"] == -1
    )
    theirs = {round(a["bin_min"], 3): a for a in other["activations"] if a["bin_contains"] >= 0}
    for mine in one["activations"]:
        if mine["bin_contains"] < 0:
            continue
        near = min(theirs, key=lambda low: abs(low - mine["bin_min"]))
        if abs(near - mine["bin_min"]) > 2e-3:
            continue
        assert mine["bin_max"] == pytest.approx(theirs[near]["bin_max"], abs=2e-3)
        silent = n_total - n_rows if near == 0 else 0
        count = theirs[near]["bin_contains"] * n_total
        assert mine["bin_contains"] * n_rows + silent == pytest.approx(count, abs=0.6)


@pytest.mark.filterwarnings("ignore")  # of other packages
@pytest.mark.slow
def test_what_their_converter_writes_is_an_atlas(converted, atlas, tmp_path):
    dictionaries = atlas.folder.parents[1] / "dictionaries"
    shutil.copytree(dictionaries / "strong", tmp_path / "dictionaries" / "theirs")
    again = import_atlas(converted, tmp_path / "atlas" / "theirs")
    record = again.record
    assert record.hook_name == HOOK
    assert (record.d_sae, record.n_bands) == (64, 5)
    ours, theirs = atlas.feature_table(), again.feature_table()
    assert theirs["n_active"].to_pylist() == ours["n_active"].to_pylist()
    # Not what a title says, but the count over all tokens.
    n_total = record.n_sequences * 32
    assert theirs["density"].to_pylist() == [n / n_total for n in ours["n_active"].to_pylist()]
    np.testing.assert_allclose(
        theirs["max_activation"].to_numpy(), ours["max_activation"].to_numpy(), rtol=5e-3
    )
    places = {
        (row["feature"], row["position"], row["tokens"][row["position"] - row["start"]])
        for row in again.context_table().to_pylist()
        if row["rank"] == 0 and row["group"] == "top"
    }
    mine = {
        (row["feature"], row["position"], row["tokens"][row["position"] - row["start"]])
        for row in seen(atlas).to_pylist()
        if row["rank"] == 0 and row["group"] == "top"
    }
    assert len(places & mine) >= 0.9 * len(mine)


def test_a_folder_has_a_file_for_128_features_and_what_its_runner_writes_beside(exported):
    assert sorted(path.name for path in exported.iterdir()) == [
        "SHA256SUMS",
        "batch-0.json",
        "run_settings.json",
        "skipped_indexes.json",
    ]
    settings = json.loads((exported / "run_settings.json").read_text())
    assert (settings["n_quantiles"], settings["top_acts_group_size"]) == (5, 5)
    skipped = json.loads((exported / "skipped_indexes.json").read_text())
    assert skipped["skipped_indexes"] == []
    assert skipped["layer"] == "1"


def test_it_comes_back_with_all_that_the_format_holds(exported, atlas, tmp_path):
    again = import_atlas(exported, tmp_path / "atlas" / "strong")
    kept = "feature density n_active max_activation histogram correlated correlations "
    kept += "top_logit_tokens top_logits bottom_logit_tokens bottom_logits logit_agreement"
    one, other = atlas.feature_table(), again.feature_table()
    assert [name for name in kept.split() if not same(one[name], other[name])] == []
    mine, theirs = seen(atlas), again.context_table()
    names = ("feature", "group", "band", "rank", "activation", "tokens", "activations")
    assert [name for name in names if not same(mine[name], theirs[name])] == []
    assert again.record.n_rows == atlas.record.n_rows


def test_features_that_were_skipped_are_silent_ones(copy, tmp_path):
    content = batch(copy)
    content["features"] = content["features"][:40]
    (copy / "batch-0.json").write_text(json.dumps(content))
    settings = json.loads((copy / "run_settings.json").read_text())
    del settings["sae_atlas_manifest"]
    (copy / "run_settings.json").write_text(json.dumps(settings))
    (copy / "skipped_indexes.json").write_text(json.dumps({"skipped_indexes": [40, 69]}))
    found = import_atlas(copy, tmp_path / "x")
    assert found.record.d_sae == 70
    table = found.feature_table()
    assert table["density"].to_pylist()[40:] == [0] * 30
    assert table["label"].to_pylist()[69] == "dead"


def test_rare_features_keep_their_count_where_a_title_says_zero(copy, tmp_path):
    content = batch(copy)
    one = next(row for row in content["features"] if row["frac_nonzero"] > 0)
    for row in content["features"]:
        row["frac_nonzero"] = round(row["frac_nonzero"], 5)
    one["freq_hist_data_bar_heights"] = [1] + [0] * 49
    one["frac_nonzero"] = 0.0
    for row in content["features"]:
        row["n_prompts_total"] = row["n_tokens_in_prompt"] = None
    (copy / "batch-0.json").write_text(json.dumps(content))
    settings = {"n_prompts_total": 1_000_000, "n_tokens_in_prompt": 32}
    (copy / "run_settings.json").write_text(json.dumps(settings))
    table = import_atlas(copy, tmp_path / "x").feature_table()
    assert table["density"][one["feature_index"]].as_py() == 1 / 32_000_000


def test_numbers_that_are_none_are_no_partners_and_halves_of_characters_are_marked(
    copy, tmp_path
):
    content = batch(copy)
    row = content["features"][2]
    row["correlated_features_indices"] = [5, 6, 900]
    row["correlated_features_pearson"] = [float("nan"), 0.5, 0.4]
    row["pos_str"][0] = "half \ud83d"
    (copy / "batch-0.json").write_text(json.dumps(content))
    table = import_atlas(copy, tmp_path / "x").feature_table()
    assert table["correlated"][2].as_py() == [6]
    assert table["top_logit_tokens"][2].as_py()[0] == "half \ufffd"


def other_set(folder):
    (folder / "batch-1.json").write_text(
        json.dumps(batch(folder) | {"sae_set": "another", "features": []})
    )


def without(name):
    def change(folder):
        content = batch(folder)
        del content["features"][5][name]
        (folder / "batch-0.json").write_text(json.dumps(content))

    return change


DAMAGES = {
    "cut off": (
        lambda f: (f / "batch-0.json").write_bytes((f / "batch-0.json").read_bytes()[:-9]),
        "batch-0.json is incomplete or not JSON",
    ),
    "a list": (lambda f: (f / "batch-0.json").write_text("[]"), "has no list of features"),
    "another": (other_set, "and another file here of"),
    "no number": (without("feature_index"), "'None' is no number of a feature"),
    "settings": (lambda f: (f / "run_settings.json").write_text("[1]"), "is not a JSON object"),
    "skipped": (
        lambda f: (f / "skipped_indexes.json").write_text('{"skipped_indexes": [-3]}'),
        "'-3' is no number",
    ),
    "skipped words": (
        lambda f: (f / "skipped_indexes.json").write_text('{"skipped_indexes": 7}'),
        "skipped_indexes is no list",
    ),
    "no files": (lambda f: (f / "batch-0.json").unlink(), "has neither features/"),
    "nothing in them": (
        lambda f: (f / "batch-0.json").write_text('{"features": []}'),
        "contain no feature",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_json_is_refused_in_a_sentence(name, copy, tmp_path):
    damage, said = DAMAGES[name]
    damage(copy)
    with pytest.raises(UserError, match=said):
        import_atlas(copy, tmp_path / "runs" / "x")
    assert list((tmp_path / "runs").glob("*")) == []


def test_contexts_before_the_first_token_fall_back_on_the_highest(copy, tmp_path):
    """Their index of a prompt's first token is −1, as they leave that token out."""
    content = batch(copy)
    for row in content["features"]:
        for context in row["activations"]:
            context["qualifying_token_index"] = -1
    (copy / "batch-0.json").write_text(json.dumps(content))
    table = import_atlas(copy, tmp_path / "x").context_table()
    for row in table.to_pylist():
        assert row["activation"] == max(row["activations"])
        assert row["activations"][row["position"] - row["start"]] == row["activation"]
