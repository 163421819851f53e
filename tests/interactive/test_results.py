"""What results show in a notebook: tables, data frames and figures, from real artefacts."""

import html
import io
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from PIL import Image
from tqdm import tqdm

import sae
from sae.atlas.feature import AtlasFeature
from sae.base import progress, say
from sae.base.notebook import html_table, in_notebook
from sae.pages.results import Evaluation, Steering


def is_picture(figure):
    with Image.open(io.BytesIO(figure._repr_png_())) as picture:
        return picture.size[0] > 400


@pytest.fixture(scope="module", name="results")
def results_fixture(tiny_run, tmp_path_factory):
    run = tmp_path_factory.mktemp("results") / "run"
    shutil.copytree(tiny_run, run)
    figures = sae.eval(run, n_behaviour_tokens=64)
    sae.analyze(run, dictionary="strong")
    return SimpleNamespace(run=run, figures=figures)


def test_texts_of_a_table_are_escaped_and_numbers_short():
    table = html_table(("<a>", "b"), [("<script>", 0.123456), (None, 12345)], note="a & b")
    assert "<script>" not in table
    assert "&lt;script&gt;" in table
    assert ">0.123<" in table
    assert ">12,345<" in table
    assert table.endswith("<p>a &amp; b</p>")


def test_a_cache_shows_its_facts_and_sequences_and_norms(results):
    cache = sae.open_cache(results.run / "cache.zarr")
    shown = cache._repr_html_()
    assert cache.hook_names[0] in shown
    frame = cache.to_pandas()
    assert len(frame) == cache.n_sequences
    assert frame["held_out"].sum() == cache.held_out.sum()
    assert frame["n_text_tokens"].sum() == cache.text_rows().sum()
    assert is_picture(cache.plot())


def test_a_dictionary_shows_its_facts_and_features(results):
    dictionary = sae.load(str(results.run / "dictionaries" / "strong"))
    assert dictionary.hook_name in dictionary._repr_html_()
    frame = dictionary.to_pandas()
    assert list(frame["feature"]) == list(range(dictionary.d_sae))
    assert frame["decoder_norm"].to_numpy() == pytest.approx(1, abs=1e-4)
    assert frame["encoder_decoder_cosine"].abs().max() <= 1 + 1e-6
    assert is_picture(dictionary.plot())


def test_an_atlas_is_opened_searched_and_shown(results):
    atlas = sae.Atlas.open(results.run)
    assert atlas.folder == results.run / "atlas" / "strong"
    assert sae.Atlas.open(atlas.folder) == atlas
    frame = atlas.to_pandas()
    assert len(frame) == atlas.record.d_sae
    label = frame["label"][0]
    found = atlas.search(label.upper())
    assert 0 in found["feature"].to_list()
    assert len(atlas.search("no label says this")) == 0
    assert "strong" in atlas._repr_html_()
    assert is_picture(atlas.plot())


def test_features_of_a_text_bear_the_labels_of_an_atlas_of_theirs(results, tiny_model):
    folder = str(results.run / "dictionaries" / "strong")
    atlas = sae.Atlas.open(results.run)
    m = sae.model(str(tiny_model), device="cpu")
    found = m.features("the river ran past", folder, atlas=atlas)
    frame = found.to_pandas()
    own = atlas.to_pandas().set_index("feature")["label"]
    assert frame["label"].to_list() == own[frame["feature"]].to_list()
    strongest = frame.sort_values("activation").iloc[-1]
    assert f"{strongest['feature']} {strongest['label']} (" in html.unescape(
        found._repr_html_()
    )
    assert "label" not in m.features("the river ran past", folder).to_pandas()
    with pytest.raises(sae.UserError, match="is an atlas of another dictionary"):
        m.features("the river", str(results.run / "dictionaries" / "weak"), atlas=atlas)


def test_a_feature_shows_its_contexts_with_active_tokens_shaded(results):
    atlas = sae.Atlas.open(results.run)
    feature = atlas.feature(3)
    assert feature.values == atlas.features()[3]
    assert feature.contexts == atlas.contexts(3)
    assert list(feature.to_pandas()["position"]) == [
        one["position"] for one in feature.contexts
    ]
    shown = feature._repr_html_()
    assert f"Feature 3: {html.escape(feature.label)}" in shown
    top = feature.contexts[0]
    strongest = max(top["activations"])
    assert strongest == feature.values["max_activation"]
    at = top["activations"].index(strongest)
    token = html.escape(top["tokens"][at]).replace("\n", "↵")
    assert f'0.70)" title="{strongest:.3g}">{token}</span>' in shown
    null = feature.values["dial_score_null"]
    assert (null is None) == ("dial score" not in shown)
    with pytest.raises(sae.UserError, match="feature=64; the atlas has features 0 to 63"):
        atlas.feature(64)


def test_the_tokens_and_label_of_a_feature_are_escaped():
    values = {"feature": 0, "density": 0.5, "max_activation": 2.0, "top_tokens": ["<b>"]}
    values |= {"stability": 0.8, "dial_score": 0.9, "dial_score_null": 0.4}
    context = {"group": "top", "tokens": ["<script>", " a"], "activations": [2.0, 0.0]}
    silent = {"group": "silent", "tokens": ["quiet"], "activations": [0.0]}
    shown = AtlasFeature("<i>", values, [context, silent], 0.25)._repr_html_()
    assert "<script>" not in shown
    assert "<i>" not in shown
    assert ">&lt;script&gt;</span> a</div>" in shown
    assert "quiet" not in shown
    cell = '<td style="text-align:left">'
    for value, floor in ((0.8, 0.25), (0.9, 0.4)):
        assert f"{cell}{value}</td>{cell}{floor}</td>" in shown


def test_a_folder_without_an_atlas_is_refused(tmp_path):
    with pytest.raises(sae.UserError, match="contains no atlas; give the folder of an atlas"):
        sae.Atlas.open(tmp_path)


def test_an_evaluation_is_a_list_that_shows_a_table_and_the_picture(results):
    figures = results.figures
    assert isinstance(figures, list)
    assert {one.id for one in figures} == {"strong", "weak"}
    frame = figures.to_pandas().set_index("id")
    for one in figures:
        assert frame.loc[one.id, "l0"] == one.values["l0"]
    shown = figures._repr_html_()
    assert f"{figures.pareto.recommended.id} is recommended" in shown
    low, high = figures[0].intervals["explained_variance"]
    assert f"[{low:.3f}, {high:.3f}]" in shown
    assert is_picture(figures.plot())


def test_controls_stand_below_what_they_belong_to(results):
    first, second = results.figures
    control = replace(first, control="frozen_decoder")
    shown = Evaluation([control, second], results.figures.pareto)
    table = shown._repr_html_()
    assert table.index(second.id) < table.index(control.id)
    assert "frozen decoder" in table


def test_steering_shows_its_baselines_with_intervals():
    def figure(mean):
        return {"mean": mean, "low": mean - 1, "high": mean + 1}

    arms = [{"title": "This feature", "figures": {"shift": figure(2.0), "kl": figure(0.1)}}]
    summary = {"headline": "<it> wins", "read_back": "found", "arms": arms}
    measured = {"direction": "feature", "strength": 1.0, "shift": figure(2.0)}
    results = Steering(
        summary=summary, features=[{"feature": 7, "measurements": [measured]}], vocabulary=None
    )
    shown = results._repr_html_()
    assert "2 [1, 3]" in shown
    assert "&lt;it&gt; wins" in shown
    (record,) = results.to_pandas().to_dict("records")
    assert record == {
        "feature": 7,
        "direction": "feature",
        "strength": 1.0,
        "shift": 2.0,
        "shift_low": 1.0,
        "shift_high": 3.0,
    }


def test_a_notebook_has_a_bar_that_goes_and_words_on_standard_output(monkeypatch, capsys):
    assert not in_notebook()
    kernel = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setitem(sys.modules, "IPython", kernel)
    monkeypatch.setattr(sys.modules["sae.base.progress"], "find_spec", lambda name: None)
    assert in_notebook()
    bar = progress(10, "reading", "rows")
    assert type(bar) is tqdm
    assert (bar.disable, bar.leave) == (False, False)
    bar.close()
    say("a word")
    assert "a word" in capsys.readouterr().out
