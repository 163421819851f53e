"""An atlas for Neuronpedia, and Neuronpedia's exports as atlases."""

import gzip
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from support.atlas_samples import HOSTILE, sample_record
from support.browser import (
    at,
    needs_browser,
    rows,
)
from support.dashboards import (
    EXPLANATION,
    LABEL,
    PLACE,
    import_atlas,
    lines,
    same,
    seen,
    write_lines,
)
from support.files import flip, unseal
from support.world import HOOK

import sae
from sae.atlas import Atlas, write_record
from sae.atlas.labels import Labels, read_labels, set_label, write_labels
from sae.base.errors import UserError
from sae.base.files import read_json
from sae.cache.layout import open_cache
from sae.cli import main
from sae.config.commands import family
from sae.exchange.dashboards.circuit_tracer import paired
from sae.exchange.dashboards.columns import unit_norms
from sae.exchange.dashboards.exporting import export_atlas
from sae.exchange.dashboards.place import place_of
from sae.exchange.dashboards.rows import Exported, dashboards

# Of its database: Neuron, Activation and Explanation in apps/webapp/prisma/schema.prisma.
NEURON = set(
    "modelId layer index sourceSetName creatorId maxActApprox hasVector vector vectorLabel "
    "vectorDefaultSteerStrength hookName topkCosSimIndices topkCosSimValues "
    "neuron_alignment_indices neuron_alignment_values neuron_alignment_l1 "
    "correlated_neurons_indices correlated_neurons_pearson correlated_neurons_l1 "
    "correlated_features_indices correlated_features_pearson correlated_features_l1 neg_str "
    "neg_values pos_str pos_values frac_nonzero freq_hist_data_bar_heights "
    "freq_hist_data_bar_values logits_hist_data_bar_heights logits_hist_data_bar_values "
    "decoder_weights_dist umap_x umap_y".split()
)
ACTIVATION = set(
    "id tokens dataIndex index layer modelId dataSource maxValue maxValueTokenIndex minValue "
    "values dfaValues dfaTargetIndex dfaMaxValue creatorId lossValues logitContributions "
    "binMin binMax binContains qualifyingTokenIndex".split()
)
WORDS = set(
    "id modelId layer index authorId description notes typeName explanationModelName".split()
)


@pytest.fixture(scope="module")
def exported(atlas, tmp_path_factory):
    return export_atlas(atlas.folder, tmp_path_factory.mktemp("out"), fold=False, **PLACE)


@pytest.fixture
def copy(exported, tmp_path):
    """As others make them: without digests of what is in it."""
    target = tmp_path / "copy"
    shutil.copytree(exported, target)
    return unseal(target)


# Written


def test_the_folder_is_laid_out_as_neuronpedia_imports_it(exported, atlas):
    assert exported.parts[-2:] == ("tiny-llama", "1-res-mine")
    files = sorted(str(p.relative_to(exported)) for p in exported.rglob("*") if p.is_file())
    assert files == [
        "SHA256SUMS",
        "activations/batch-0.jsonl.gz",
        "explanations/batch-0.jsonl.gz",
        "features/batch-0.jsonl.gz",
        "model.jsonl",
        "release.jsonl",
        "source.jsonl",
        "sourceset.jsonl",
    ]
    heads = {
        name: json.loads((exported / f"{name}.jsonl").read_text())
        for name in ("model", "release", "source", "sourceset")
    }
    assert heads["model"]["id"] == "tiny-llama"
    assert heads["source"]["id"] == "1-res-mine"
    assert heads["source"]["setName"] == heads["sourceset"]["name"] == "res-mine"
    assert heads["sourceset"]["releaseName"] == heads["release"]["name"]
    assert heads["source"]["num_prompts"] == atlas.record.n_sequences
    assert heads["source"]["num_tokens_in_prompt"] == 32
    features = lines(exported / "features/batch-0.jsonl.gz")
    activations = lines(exported / "activations/batch-0.jsonl.gz")
    words = lines(exported / "explanations/batch-0.jsonl.gz")
    assert {row["index"] for row in features} == {str(i) for i in range(64)}
    assert all(set(row) <= NEURON and row["layer"] == "1-res-mine" for row in features)
    assert all(set(row) == ACTIVATION for row in activations)
    assert all(set(row) == WORDS for row in words)
    ids = [row["id"] for row in [*activations, *words]]
    assert len(set(ids)) == len(ids) == len(seen(atlas)) + len(words)
    assert {len(one) for one in ids} == {25}


def test_numbers_are_those_of_the_tables_and_strings_are_plain_text(exported, atlas):
    table = atlas.feature_table().to_pylist()
    for row, given in zip(lines(exported / "features/batch-0.jsonl.gz"), table, strict=True):
        assert row["frac_nonzero"] == given["density"]
        assert np.float32(row["maxActApprox"]) == np.float32(given["max_activation"])
        assert row["pos_str"] == given["top_logit_tokens"]
        assert np.float32(row["neg_values"]).tolist() == given["bottom_logits"]
        assert row["topkCosSimIndices"] == given["neighbours"]
        assert row["correlated_features_indices"] == given["correlated"]
        heights = given["histogram"] if given["n_active"] else []
        assert row["freq_hist_data_bar_heights"] == heights
        middles = row["freq_hist_data_bar_values"]
        if middles:
            assert 50 * (middles[0] * 2) == pytest.approx(given["max_activation"])
    activations = lines(exported / "activations/batch-0.jsonl.gz")
    for row, given in zip(activations, seen(atlas).to_pylist(), strict=True):
        assert np.float32(row["values"]).tolist() == given["activations"]
        assert row["tokens"] == given["tokens"]
        assert row["qualifyingTokenIndex"] == given["position"] - given["start"]
        assert row["maxValue"] == max(row["values"])
        assert row["values"][row["maxValueTokenIndex"]] == row["maxValue"]
        assert row["minValue"] == min(row["values"])
    assert any(token.startswith(" ") for row in activations for token in row["tokens"])


def test_the_strongest_are_marked_and_a_band_says_what_share_of_tokens_it_holds(
    exported,
    atlas,
):
    n_rows = atlas.record.n_rows
    table = {row["feature"]: row for row in atlas.feature_table().to_pylist()}
    for row, given in zip(
        lines(exported / "activations/batch-0.jsonl.gz"), seen(atlas).to_pylist(), strict=True
    ):
        feature = table[given["feature"]]
        if given["group"] == "top":
            assert (row["binMin"], row["binContains"]) == (-1, -1)
            assert np.float32(row["binMax"]) == np.float32(feature["max_activation"])
            continue
        band = given["band"]
        counts = np.array(feature["histogram"]).reshape(5, 10).sum(1)
        silent = n_rows - feature["n_active"] if band == 0 else 0
        assert row["binContains"] == pytest.approx((counts[band] + silent) / n_rows)
        assert row["binMin"] == pytest.approx(band * feature["max_activation"] / 5)
        assert row["binMin"] <= given["activation"] <= row["binMax"] * (1 + 1e-6)


def test_cosines_of_activations_are_those_of_a_dense_count(exported, atlas):
    run = atlas.folder.parent.parent
    cache, dictionary = (
        open_cache(run / "cache.zarr"),
        sae.load(str(run / "dictionaries/strong")),
    )
    x = cache.read(HOOK, slice(0, cache.n_sequences)).float()
    acts = dictionary.encode(x)[torch.from_numpy(cache.text_rows())].double()
    unit = acts / acts.norm(dim=0).clamp_min(1e-12)
    cosines = (unit.T @ unit).numpy()
    some = 0
    for row in lines(exported / "features/batch-0.jsonl.gz"):
        others = row["correlated_features_indices"]
        expected = cosines[int(row["index"]), others]
        np.testing.assert_allclose(row["correlated_features_l1"], expected, atol=2e-4)
        some += len(others)
    assert some > 50


def test_neurons_are_those_that_a_direction_is_largest_on(exported, atlas, tmp_path):
    dictionary = sae.load(str(atlas.folder.parents[1] / "dictionaries/strong"))
    row = lines(exported / "features/batch-0.jsonl.gz")[9]
    direction = dictionary.W_dec[9].float()
    order = direction.argsort(descending=True)[:3]
    assert row["neuron_alignment_indices"] == order.tolist()
    assert np.float32(row["neuron_alignment_values"]).tolist() == direction[order].tolist()
    shares = direction[order].abs() / direction.abs().sum()
    assert row["neuron_alignment_l1"] == pytest.approx(shares.tolist())
    alone = tmp_path / "atlas" / "strong"
    shutil.copytree(atlas.folder, alone)
    without = export_atlas(alone, tmp_path / "out", **PLACE)
    assert lines(without / "features/batch-0.jsonl.gz")[9]["neuron_alignment_values"] == []


@pytest.mark.parametrize("file", ["source.jsonl", "activations/batch-0.jsonl.gz"])
def test_what_is_exported_here_and_damaged_since_is_not_imported(exported, tmp_path, file):
    there = tmp_path / "there"
    shutil.copytree(exported, there)
    flip(there / file, 40)
    with pytest.raises(UserError, match=rf"{file} is damaged, .*; write or fetch it again"):
        import_atlas(there, tmp_path / "x")
    (there / file).unlink()
    with pytest.raises(UserError, match=rf"{file} is gone"):
        import_atlas(there, tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_what_stands_beside_and_is_not_read_makes_no_other_atlas(copy, tmp_path):
    before = import_atlas(copy, tmp_path / "x").record.digest
    (copy / "release.jsonl").unlink()
    (copy / "note.txt").write_text("mine")
    assert import_atlas(copy, tmp_path / "y").record.digest == before


def test_the_same_atlas_gives_the_same_bytes_but_for_the_time(exported, atlas, tmp_path):
    again = export_atlas(atlas.folder, tmp_path, fold=False, **PLACE)
    for path in exported.rglob("*.gz"):
        assert path.read_bytes() == (again / path.relative_to(exported)).read_bytes()


def test_names_are_made_of_model_hook_and_dictionary(atlas):
    record = replace(atlas.record, model_name="openai-community/gpt2", dictionary="L1 = 2")
    place = place_of(record)
    assert (place.model_id, place.source) == ("gpt2-small", "1-res-l1-2")
    assert (place.layer, place.source_set) == (1, "res-l1-2")
    out = {
        "hook_name": "blocks.3.ln2.hook_normalized",
        "hook_name_out": "blocks.3.hook_mlp_out",
    }
    assert place_of(replace(record, **out)).source == "3-transcoder-l1-2"
    module = {"hook_name": "transformer.h.7.mlp", "hook_name_out": None}
    assert place_of(replace(record, **module)).source == "7-mlp-l1-2"
    with pytest.raises(UserError, match="names no layer; give source="):
        place_of(replace(record, hook_name="hook_embed"))
    assert place_of(replace(record, hook_name="hook_embed"), source="0-emb").layer == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model_id": "../../etc"}, "model_id=../../etc; Neuronpedia's ids"),
        ({"model_id": "-"}, "ids have letters"),
        ({"source": "res-8"}, "source=res-8; .* as 8-res-jb"),
        ({"source": "8-../x"}, "8-res-jb"),
        ({"creator_id": "a b"}, "creator_id=a b"),
        ({"creator": "A\udcff"}, "give a name that can be shown"),
        ({"creator": ""}, "give a name that can be shown"),
    ],
)
def test_names_that_neuronpedia_does_not_take_are_refused(given, said, atlas, tmp_path):
    with pytest.raises(UserError, match=said):
        export_atlas(atlas.folder, tmp_path / "out", **(PLACE | given))
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_not_replaced_and_a_broken_atlas_leaves_nothing(atlas, tmp_path):
    (tmp_path / "out/tiny-llama/1-res-mine").mkdir(parents=True)
    with pytest.raises(UserError, match="exists already; choose another"):
        export_atlas(atlas.folder, tmp_path / "out", **PLACE)
    broken = tmp_path / "broken"
    shutil.copytree(atlas.folder, broken)
    content = bytearray((broken / "contexts.parquet").read_bytes())
    content[200:600] = bytes(400)
    (broken / "contexts.parquet").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        export_atlas(broken, tmp_path / "new", **PLACE)
    assert [p for p in (tmp_path / "new").rglob("*") if p.is_file()] == []


def test_contexts_are_read_as_they_are_needed():
    taken = []

    def batches():
        for first in range(0, 64, 4):
            taken.append(first)
            owners = np.repeat(np.arange(first, first + 4), 3).astype(np.int32)
            n = len(owners)
            yield pyarrow.table(
                {
                    "feature": owners,
                    "group": ["top"] * n,
                    "band": pyarrow.array([-1] * n, pyarrow.int8()),
                    "sequence": np.arange(n),
                    "position": np.ones(n, np.int32),
                    "start": np.zeros(n, np.int32),
                    "tokens": [["a", "b"]] * n,
                    "activations": pyarrow.array(
                        [[0, 1]] * n, pyarrow.list_(pyarrow.float32())
                    ),
                }
            )

    names = ("density", "mean_activation", "std_activation", "max_activation", "map_x", "map_y")
    features = pyarrow.table({name: np.full(64, 0.5) for name in names})
    found = dashboards(
        Exported(
            sample_record(64, 0),
            features,
            batches(),
            Labels([], [], []),
            {},
        ),
        8,
    )
    first = next(found)
    assert [len(one.contexts) for one in first] == [3] * 8
    assert len(taken) <= 3
    assert [one.feature for block in found for one in block] == list(range(8, 64))


# Bodies of uploads


def test_uploads_are_of_1_to_128_features_that_fire(atlas, tmp_path):
    out = export_atlas(atlas.folder, tmp_path / "out", "upload", **PLACE)
    bodies = [json.loads(path.read_text()) for path in sorted(out.iterdir())]
    assert all(set(body) == {"modelId", "source", "features"} for body in bodies)
    assert all(1 <= len(body["features"]) <= 128 for body in bodies)
    table = atlas.feature_table()
    live = [i for i, n in enumerate(table["n_active"].to_pylist()) if n]
    found = [row for body in bodies for row in body["features"]]
    assert [row["index"] for row in found] == live
    contexts = seen(atlas).to_pylist()
    for row in found:
        own = [context for context in contexts if context["feature"] == row["index"]]
        assert row["density"] == table["density"][row["index"]].as_py()
        assert [one["tokens"] for one in row["activations"]] == [one["tokens"] for one in own]
        assert row["activations"][0]["quantileMin"] == -1
        assert len(row["topLogits"]) == 7
        check_upload(row)
    texts = [each["text"] for row in found for each in row["explanations"]]
    assert LABEL in texts
    assert EXPLANATION in texts


def check_upload(row):
    """What the schema of Neuronpedia's route asks of a feature, number by number."""
    assert 0 <= row["index"] <= 10_000_000
    assert 0 <= row["density"] <= 1
    for logits in (row["topLogits"], row["bottomLogits"]):
        assert len(logits) <= 20
        assert all(set(one) == {"token", "value"} and one["token"] for one in logits)
    for one in row["explanations"]:
        assert 1 <= len(one["text"].encode("utf-16-le")) // 2 <= 512
        # Names that its database does not know refuse the whole body; none is always known.
        assert set(one) == {"text"}
    for one in row["activations"]:
        assert 1 <= len(one["tokens"]) == len(one["values"]) <= 1024
        assert all(one["tokens"])
        assert max(one["quantileMin"], one["quantileMax"]) <= 99_999_999
        assert one["quantileFraction"] is None or 0 <= one["quantileFraction"] <= 1


def test_an_upload_has_no_empty_token_and_no_text_that_is_too_long(atlas, tmp_path):
    odd = tmp_path / "odd"
    shutil.copytree(atlas.folder, odd)
    contexts = atlas.context_table()
    tokens = contexts["tokens"].to_pylist()
    tokens[0][0] = ""
    place = contexts.column_names.index("tokens")
    contexts = contexts.set_column(place, "tokens", pyarrow.array(tokens))
    pyarrow.parquet.write_table(contexts, unseal(odd) / "contexts.parquet")
    feature = contexts["feature"][0].as_py()
    # 513 of JavaScript's characters, whose last two are one of ours.
    labels = read_labels(odd)
    labels.label[feature] = "a" * 511 + "\U0001f600"
    write_labels(odd, labels)
    out = export_atlas(odd, tmp_path / "out", "upload", **PLACE)
    bodies = [json.loads(path.read_text()) for path in out.iterdir()]
    rows = {row["index"]: row for body in bodies for row in body["features"]}
    for row in rows.values():
        check_upload(row)
    assert rows[feature]["explanations"][0]["text"] == "a" * 511
    assert "\u200b" in [one["tokens"][0] for one in rows[feature]["activations"]]


def test_a_context_that_is_too_long_to_upload_is_refused(atlas, tmp_path):
    long = tmp_path / "long"
    shutil.copytree(atlas.folder, long)
    table = atlas.context_table()
    for name in ("tokens", "activations", "token_ids"):
        column = table[name].to_pylist()
        column[0] = column[0] * 200
        place = table.column_names.index(name)
        table = table.set_column(place, name, pyarrow.array(column, table[name].type))
    pyarrow.parquet.write_table(table, unseal(long) / "contexts.parquet")
    with pytest.raises(
        UserError, match="takes at most 1024; run sae analyze with context_radius=511"
    ):
        export_atlas(long, tmp_path / "out", "upload", **PLACE)


# circuit-tracer


def test_circuit_tracers_files_have_the_examples_in_groups(atlas, tmp_path):
    out = export_atlas(atlas.folder, tmp_path / "out", "circuit_tracer", **PLACE)
    assert len(list(out.iterdir())) == 64
    assert [paired(0, 0), paired(1, 0), paired(0, 1), paired(1, 1)] == [0, 1, 2, 4]
    row = json.loads((out / f"{paired(1, 9)}.json").read_text())
    given = atlas.feature_table().to_pylist()[9]
    assert (row["index"], row["activation_frequency"]) == (9, given["density"])
    assert row["top_logits"] == given["top_logit_tokens"]
    own = [c for c in seen(atlas).to_pylist() if c["feature"] == 9]
    examples = [each for group in row["examples_quantiles"] for each in group["examples"]]
    assert [each["tokens"] for each in examples] == [c["tokens"] for c in own]
    assert [each["train_token_ind"] for each in examples] == [
        c["position"] - c["start"] for c in own
    ]
    assert row["examples_quantiles"][0]["quantile_name"] == "Top activations"


# Read


def test_an_export_of_ours_comes_back_with_all_that_the_format_holds(exported, atlas, tmp_path):
    again = import_atlas(exported, tmp_path / "atlas" / "strong")
    kept = "feature density n_active max_activation histogram correlated correlations "
    kept += "neighbours neighbour_cosines top_logit_tokens top_logits bottom_logit_tokens "
    kept += "bottom_logits map_x map_y logit_agreement"
    one, other = atlas.feature_table(), again.feature_table()
    assert [name for name in kept.split() if not same(one[name], other[name])] == []
    contexts = again.context_table()
    names = [name for name in contexts.column_names if name != "token_ids"]
    assert [name for name in names if not same(seen(atlas)[name], contexts[name])] == []
    ours, theirs = read_labels(atlas.folder), read_labels(again.folder)
    assert theirs.label == ours.label
    assert theirs.explanation == ours.explanation
    assert len(theirs.by_hand) == 1
    same_keys = "model_name hook_name hook_name_out n_rows n_sequences context_size d_in d_sae "
    same_keys += "n_dead n_bands data dictionary_digest architecture n_documents"
    for key in same_keys.split():
        assert getattr(again.record, key) == getattr(atlas.record, key), key


def test_with_the_dictionary_in_the_run_directions_say_what_they_said(
    exported, atlas, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(atlas.folder.parents[1] / "dictionaries", run / "dictionaries")
    again = import_atlas(exported, run / "atlas/strong")
    one, other = atlas.feature_table(), again.feature_table()
    names = (
        "decoder_norm",
        "encoder_norm",
        "neighbours",
        "neighbour_cosines",
        "map_x",
        "map_y",
    )
    assert [name for name in names if not same(one[name], other[name])] == []
    with pytest.raises(
        UserError, match=r"imported, and dashboards of other tools do not have the ids"
    ):
        sae.steer(run=str(run))


def test_norms_are_folded_as_these_tools_fold_them_and_unfolded_again(atlas, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(atlas.folder.parents[1] / "dictionaries", run / "dictionaries")
    out = export_atlas(atlas.folder, tmp_path / "out", **PLACE)
    table = atlas.feature_table()
    norms = table["decoder_norm"].to_numpy()
    assert abs(norms - 1).max() > 0.1
    found = lines(out / "features/batch-0.jsonl.gz")
    highest = np.float32([row["maxActApprox"] for row in found])
    np.testing.assert_allclose(highest, table["max_activation"].to_numpy() * norms, rtol=1e-6)
    ups = np.float32([row["pos_values"] for row in found])
    expected = np.float32(table["top_logits"].to_pylist()) / norms[:, None]
    np.testing.assert_allclose(ups, expected, rtol=1e-6)
    alone = import_atlas(out, tmp_path / "alone")
    assert alone.record.folded is True
    beside = import_atlas(out, run / "atlas" / "strong")
    assert beside.record.folded is False
    for name in ("max_activation", "top_logits", "bottom_logits"):
        pair = (np.array(each[name].to_pylist()) for each in (beside.feature_table(), table))
        np.testing.assert_allclose(*pair, rtol=3e-7)
    pair = (
        each["activations"].combine_chunks().flatten()
        for each in (beside.context_table(), seen(atlas))
    )
    np.testing.assert_allclose(*pair, rtol=3e-7)
    again = export_atlas(tmp_path / "alone", tmp_path / "again", **PLACE)
    assert lines(again / "features/batch-0.jsonl.gz")[0]["pos_values"] == found[0]["pos_values"]
    assert json.loads((again / "source.jsonl").read_text())["saelensConfig"]["metadata"][
        "sae_atlas_manifest"
    ]["folded"]


def test_top_k_has_no_norms_to_fold():
    norms = np.float32([0.5, 2, np.nan, 0, 1 + 1e-7])
    assert unit_norms(norms, "jumprelu").tolist() == [0.5, 2, 1, 1, 1]
    assert unit_norms(norms, "topk").tolist() == [1] * 5


def test_dashboards_of_another_dictionary_are_refused(exported, tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run / "dictionaries" / "weak", run / "dictionaries" / "weak")
    with pytest.raises(UserError, match="to another dictionary than weak"):
        import_atlas(exported, run / "atlas" / "weak")
    assert not (run / "atlas" / "weak").exists()


def published(folder: Path) -> Path:
    """As Neuronpedia gives it out: by numbers as texts, without what it does not hand on."""
    draw = random.Random(0)
    for kind in ("features", "activations"):
        found = lines(folder / kind / "batch-0.jsonl.gz")
        (folder / kind / "batch-0.jsonl.gz").unlink()
        if kind == "features":
            found.sort(key=lambda row: row["index"])
        else:
            draw.shuffle(found)
        for row in found:
            for name in ("qualifyingTokenIndex", "dataIndex", "umap_x", "umap_y"):
                row.pop(name, None)
            if kind == "features":
                row |= {"topkCosSimIndices": [], "topkCosSimValues": []}
        half = len(found) // 2
        write_lines(folder / kind / "batch-0.jsonl.gz", found[:half])
        write_lines(folder / kind / "batch-1.jsonl.gz", found[half:])
    source = json.loads((folder / "source.jsonl").read_text())
    source["saelensConfig"] = None
    (folder / "source.jsonl").write_text(json.dumps(source) + "\n")
    return folder


def test_what_neuronpedia_gives_out_is_read_in_any_order(copy, atlas, tmp_path):
    again = import_atlas(published(copy), tmp_path / "atlas" / "other")
    one, other = atlas.feature_table(), again.feature_table()
    assert same(one["feature"], other["feature"])
    assert same(one["histogram"], other["histogram"])
    assert other["map_x"].null_count == 64
    contexts, mine = again.context_table(), seen(atlas)
    assert same(mine["feature"], contexts["feature"])
    assert same(mine["group"], contexts["group"])
    assert set(contexts["sequence"].to_pylist()) == {-1}
    tops = [t.filter(pyarrow.compute.equal(t["group"], "top")) for t in (mine, contexts)]
    assert sorted(map(str, tops[0]["tokens"].to_pylist())) == sorted(
        map(str, tops[1]["tokens"].to_pylist())
    )
    assert same(tops[0]["rank"], tops[1]["rank"])
    record = again.record
    assert (record.model_name, record.hook_name) == ("tiny-llama", HOOK)
    assert record.n_rows == record.n_sequences * record.context_size
    assert record.d_in is None


def test_an_imported_atlas_can_be_exported_and_labelled_again(copy, tmp_path):
    first = import_atlas(published(copy), tmp_path / "atlas" / "other")
    set_label(first.folder, 2, "a better name")
    out = export_atlas(first.folder, tmp_path / "out", model_id="m", source="1-x")
    second = import_atlas(out, tmp_path / "atlas" / "third")
    one, other = first.feature_table(), second.feature_table()
    names = [name for name in one.column_names if name != "label"]
    assert [name for name in names if not same(one[name], other[name])] == []
    assert same(first.context_table()["tokens"], second.context_table()["tokens"])
    assert read_labels(second.folder).label == read_labels(first.folder).label


def test_labels_of_others_are_labels_and_further_ones_explain(copy, tmp_path):
    rows_ = [
        {"index": "3", "description": "references to\nX\x00", "typeName": "oai", "notes": None},
        {"index": "3", "description": "a second opinion", "typeName": "np", "notes": None},
        {"index": "5", "description": "=1+1", "notes": None},
    ]
    write_lines(copy / "explanations/batch-0.jsonl.gz", rows_)
    labels = read_labels(import_atlas(copy, tmp_path / "atlas" / "x").folder)
    assert labels.label[3] == "references to X"
    assert labels.explanation[3] == "a second opinion"
    assert labels.label[5] == "=1+1"
    assert labels.by_hand == []


@pytest.mark.slow
def test_hostile_texts_arrive_as_texts(atlas, tmp_path):
    bad = [
        HOSTILE,
        "zero \x00 byte",
        "'; DROP TABLE",
        "../../etc/passwd",
        "\u202e",
        "\ufffd",
        "",
    ]
    mine = tmp_path / "mine"
    shutil.copytree(atlas.folder, mine)
    table = atlas.context_table()
    tokens = [
        [bad[(i + j) % len(bad)] for j in range(len(row))]
        for i, row in enumerate(table["tokens"].to_pylist())
    ]
    place = table.column_names.index("tokens")
    table = table.set_column(place, "tokens", pyarrow.array(tokens))
    pyarrow.parquet.write_table(table, unseal(mine) / "contexts.parquet")
    set_label(mine, 1, HOSTILE)
    out = export_atlas(mine, tmp_path / "out", **PLACE)
    assert b"\\u0000" not in gzip.decompress(
        (out / "activations/batch-0.jsonl.gz").read_bytes()
    )
    again = import_atlas(out, tmp_path / "again")
    expected = [
        [t.replace("\x00", "\ufffd") for t in row]
        for row in seen(Atlas(mine))["tokens"].to_pylist()
    ]
    assert again.context_table()["tokens"].to_pylist() == expected
    assert read_labels(again.folder).label[1] == read_labels(mine).label[1]
    assert "<img src=x" not in (again.folder / "index.html").read_text()


# Refused


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def garbled(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = b"x" * 40
    path.write_bytes(content)


def changed(kind, **values):
    def change(folder):
        path = folder / kind / "batch-0.jsonl.gz"
        found = lines(path)
        found[3] = found[3] | values
        write_lines(path, found)

    return change


DAMAGES = {
    "cut off": (lambda f: cut(f / "features/batch-0.jsonl.gz"), "features/batch-0.*incomplete"),
    "garbled": (lambda f: garbled(f / "activations/batch-0.jsonl.gz"), "damaged|incomplete"),
    "no gzip": (
        lambda f: (f / "features/batch-0.jsonl.gz").write_bytes(b"{}\n"),
        "damaged .*gzip",
    ),
    "not json": (
        lambda f: (f / "features/batch-0.jsonl.gz").write_bytes(gzip.compress(b"{\n")),
        "line 1, is incomplete or not JSON",
    ),
    "deep": (
        lambda f: (f / "features/batch-0.jsonl.gz").write_bytes(gzip.compress(b"[" * 200_000)),
        "line 1, is incomplete or not JSON",
    ),
    "a list": (
        lambda f: (f / "features/batch-0.jsonl.gz").write_bytes(gzip.compress(b"[1]\n")),
        "line 1, is not a JSON object",
    ),
    "no features": (lambda f: shutil.rmtree(f / "features"), "has neither features/batch-N"),
    "a word for a number": (changed("features", index="three"), "'three' is no number"),
    "below zero": (changed("features", index=-1), "'-1' is no number of a feature"),
    "beyond all": (changed("features", index=10**9), "from 0 to 4,194,303"),
    "true": (changed("features", index=True), "'True' is no number"),
    "twice": (changed("features", index="4"), "feature 4 occurs twice"),
    "strange owner": (
        changed("activations", index="999"),
        "feature 999 has contexts but is not among the features",
    ),
    "two models": (changed("features", modelId="x"), "beside those of tiny-llama/1-res-mine"),
    "density": (changed("features", frac_nonzero=7), "feature 3 has frac_nonzero=7"),
    "lengths": (changed("features", pos_str=["a"]), "feature 3 .* pos_str and pos_values"),
    "words": (changed("features", pos_values=["a"] * 7), "pos_values is not a list of numbers"),
    "neighbour": (
        changed("features", topkCosSimIndices=[-4], topkCosSimValues=[0.5]),
        "feature 3 names feature -4",
    ),
    "histogram": (
        changed("features", freq_hist_data_bar_heights=[-1], freq_hist_data_bar_values=[1]),
        "feature 3 has a histogram",
    ),
    "tokens": (changed("activations", tokens=["a"]), "of different lengths, tokens and values"),
    "no tokens": (changed("activations", tokens=[], values=[]), "a context without tokens"),
    "numbers": (changed("activations", tokens=[1, 2]), "tokens is not a list of texts"),
    "nan": (
        changed("activations", tokens=["a"], values=[float("nan")]),
        "an activation that is no finite number",
    ),
    "too great": (changed("activations", tokens=["a"], values=[1e300]), "no finite number"),
    "no description": (changed("explanations", description=None), "without a description"),
    "explains nothing": (changed("explanations", index=7000), "explanation is of feature 7000"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_exports_are_refused_in_a_sentence_and_leave_nothing(name, copy, tmp_path):
    damage, said = DAMAGES[name]
    damage(copy)
    with pytest.raises(UserError, match=said) as refused:
        import_atlas(copy, tmp_path / "runs" / "atlas" / "x")
    assert len(str(refused.value)) < 700
    assert {path.name for path in (tmp_path / "runs").rglob("*")} <= {"atlas", ".x.lock"}


def test_a_row_longer_than_any_is_not_taken_into_memory(copy, tmp_path, monkeypatch):
    monkeypatch.setattr("sae.exchange.dashboards.files._LONGEST_LINE", 1000)
    with pytest.raises(UserError, match="is longer than"):
        import_atlas(copy, tmp_path / "x")


def test_a_link_out_of_the_folder_is_not_followed(copy, tmp_path):
    (tmp_path / "secret.jsonl").write_text("{}\n")
    (copy / "features/batch-7.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(UserError, match="leads out of its folder"):
        import_atlas(copy, tmp_path / "x")


def test_several_sources_and_what_is_there_already_are_refused(exported, copy, tmp_path):
    both = tmp_path / "both"
    shutil.copytree(copy, both / "m" / "1-a")
    shutil.copytree(copy, both / "m" / "2-b")
    with pytest.raises(UserError, match=r"holds 2 sources; give one: .*1-a, .*2-b"):
        import_atlas(both, tmp_path / "x")
    assert import_atlas(both / "m" / "1-a", tmp_path / "x").record.d_sae == 64
    with pytest.raises(UserError, match="exists already"):
        import_atlas(exported, tmp_path / "x")
    with pytest.raises(UserError, match="is not a folder"):
        import_atlas(tmp_path / "nothing", tmp_path / "y")


# The command, and what is shown


@pytest.mark.slow
def test_the_verbs_work_from_the_command_line(atlas, tmp_path, capsys, monkeypatch):
    assert main(["atlas"]) == 0
    listed = capsys.readouterr().out
    assert all(command.example in listed for command in family("atlas"))
    said = []
    monkeypatch.setattr("tqdm.tqdm.write", lambda text, **_: said.append(text))
    run = atlas.folder.parents[1]
    out = tmp_path / "np"
    assert main(["atlas", "export", str(run), str(out), "model_id=m", "source=1-a"]) == 0
    assert said[-1] == str(out / "m" / "1-a")
    assert main(["atlas", "import", str(out), str(tmp_path / "back")]) == 0
    assert "64 features" in said[-1]
    head = json.loads((out / "m/1-a/release.jsonl").read_text())
    assert head["creatorName"] == "sae-atlas"
    words = ["atlas", "export", str(run), str(tmp_path / "o"), "creator=Ann", "creator_id=c1"]
    assert main([*words, "model_id=m", "source=1-a"]) == 0
    head = json.loads((tmp_path / "o/m/1-a/release.jsonl").read_text())
    assert (head["creatorName"], head["creatorId"]) == ("Ann", "c1")
    assert main(["atlas", "export", str(run), str(out), "format=word"]) == 2
    assert "neuronpedia, upload, saedashboard, circuit_tracer" in capsys.readouterr().err
    assert main(["atlas", "export", str(tmp_path), str(out)]) == 2
    assert "contains no atlas; give the folder of an atlas" in capsys.readouterr().err


def test_a_run_with_several_atlases_asks_for_one(atlas, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(atlas.folder, tmp_path / "atlas" / name)
    with pytest.raises(UserError, match=r"has 2 atlases; give one: .*/atlas/a, "):
        export_atlas(tmp_path, tmp_path / "out")


def test_a_served_run_lists_an_imported_atlas(copy, tmp_path):
    from sae.commands.serve import ServeConfig, pages_of

    found = import_atlas(published(copy), tmp_path / "atlas" / "other")
    write_record(found.folder, replace(found.record, n_rows=None))
    pages = pages_of(ServeConfig(run=str(tmp_path)))
    figures = pages.atlases["other"].figures
    assert figures["features"] == "64"
    assert figures["tokens"] == "–"
    assert read_json(found.folder / "atlas.json")["imported"] is True


@needs_browser
@pytest.mark.slow
def test_the_page_of_an_imported_atlas_leaves_out_what_is_not_known(visit, copy, tmp_path):
    found = import_atlas(published(copy), tmp_path / "atlas" / "other")
    live = (
        found.feature_table()["density"]
        .to_pylist()
        .index(max(found.feature_table()["density"].to_pylist()))
    )
    page = visit(found.folder / "index.html")
    assert not page.is_visible("#map")
    assert len(rows(page)) > 5
    page = visit(found.folder / "index.html", f"#f={live}")
    at(page, f"#f={live}")
    assert not page.is_visible("#nearby")
    assert page.locator(".context").count() > 4
    titles = page.locator("figure.panel figcaption").all_inner_texts()
    assert any(title.startswith("How strongly") for title in titles)
    assert not any(title.startswith(("Where in the text", "Fires on the")) for title in titles)
    assert "NaN" not in page.inner_text("body")
    assert "undefined" not in page.inner_text("body")
