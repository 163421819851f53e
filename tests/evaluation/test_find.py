"""`sae find`: features that tell one text from another, beside what chance finds."""

import itertools
import shutil

import pytest
import torch

import sae
from sae.evaluation.contrast import Windows, contrast


def windows(n, planted=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.rand(n, 200, generator=generator)
    rows = torch.randn(n, 16, generator=generator)
    if planted is not None:
        features[:, planted] += 2
        rows[:, 3] += 3
    return Windows(features, rows)


def told_apart(first, second, n):
    early, late = zip(first.halves, second.halves, strict=True)
    return contrast(early, late, n)


def test_a_planted_feature_is_found_first_and_nothing_else_is_as_sure():
    found = told_apart(windows(60, planted=17), windows(60, seed=1), 5)
    assert found.told[0].feature == 17
    assert found.told[0].auc.mean == 1
    assert all(one.auc.low < 0.5 for one in found.told[1:])
    assert found.told[0].mean[0] > found.told[0].mean[1] + 1
    assert found.difference_of_means.mean > 0.95
    assert found.n_windows == (30, 30)


def test_texts_that_are_alike_are_told_apart_no_better_than_shuffled_labels():
    best = [
        told_apart(windows(60, seed=i), windows(60, seed=100 + i), 1).told[0].auc.mean
        for i in range(20)
    ]
    found = told_apart(windows(60, seed=7), windows(60, seed=8), 1)
    assert sum(best) / len(best) == pytest.approx(0.5, abs=0.06)
    assert found.shuffled[0] == pytest.approx(0.5, abs=0.06)


@pytest.fixture(scope="module", name="run")
def run_fixture(tiny_run, tmp_path_factory):
    run = tmp_path_factory.mktemp("find") / "run"
    shutil.copytree(tiny_run, run)
    shutil.rmtree(run / "dictionaries" / "weak")
    return run


@pytest.fixture(scope="module", name="texts")
def texts_fixture(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    (folder / "sea.txt").write_text("the old mill by the river ran past the house " * 60)
    (folder / "sum.txt").write_text("where is the number of all that she said to him " * 60)
    return folder


def test_the_command_writes_what_it_shows_and_finds_it_again(run, texts, capsys):
    settings = {"run": run, "window": 8, "max_tokens": 512, "n_features": 4}
    found = sae.find(texts / "sea.txt", texts / "sum.txt", **settings)
    assert found.path == run / "find" / "sea-or-sum.json"
    shown = capsys.readouterr().out
    assert f"{found.features[0]:>6}  AUC " in shown
    assert "random directions" in shown
    frame = found.to_pandas()
    assert list(frame["feature"]) == found.features
    assert (frame["auc_low"] <= frame["auc"]).all()
    assert "difference" in "".join(found.summary)
    assert "direction between the means" in found._repr_html_()
    assert found.plot()._repr_png_().startswith(b"\x89PNG")
    sae.find(texts / "sea.txt", texts / "sum.txt", **settings)
    assert "is finished already and is reused" in capsys.readouterr().err


def test_a_text_that_is_too_short_or_no_text_is_refused(run, texts, tmp_path):
    (tmp_path / "short.txt").write_text("a few words")
    with pytest.raises(sae.UserError, match="1 windows of 8 tokens, too few to rank"):
        sae.find(tmp_path / "short.txt", texts / "sum.txt", run=run, window=8)
    with pytest.raises(sae.UserError, match="max_tokens=100 is too few; 16 windows of 32"):
        sae.find(texts / "sea.txt", texts / "sum.txt", run=run, max_tokens=100)
    assert not (run / "find" / "short-or-sum.json").exists()


@pytest.fixture(scope="module", name="table")
def table_fixture(tmp_path_factory):
    path = tmp_path_factory.mktemp("examples") / "rivers.csv"
    ends = [
        " ".join(pair) for pair in itertools.permutations(("one", "all", "she", "he", "it"), 2)
    ]
    lines = [f"the river ran past the mill {end},yes" for end in ends]
    lines += [f"where is the number of that {end},no" for end in ends]
    path.write_text("\n".join(["text,label", *lines]) + "\n")
    return path


def test_features_are_found_by_examples_of_a_concept(run, table, capsys):
    found = sae.find(table, run=run, n_features=3)
    assert found.path == run / "find" / "rivers-yes.json"
    shown = capsys.readouterr()
    assert "on 10 + 10 examples that chose nothing" in shown.out
    assert f"features=[{found.features[0]}]" in shown.err
    best = found.summary["features"][0]
    assert best["auc"] == 1
    assert best["mean_first"] > best["mean_second"]
    turned = sae.find(table, label="no", run=run, n_features=3)
    assert turned.path == run / "find" / "rivers-no.json"
    assert not {*turned.features} & {*found.features}


def test_examples_without_the_label_or_too_few_are_refused(run, table, tmp_path):
    with pytest.raises(sae.UserError, match=r"label=maybe, but .*rivers.csv has no and yes"):
        sae.find(table, label="maybe", run=run)
    few = tmp_path / "few.csv"
    few.write_text("\n".join(table.read_text().splitlines()[:31]) + "\n")
    with pytest.raises(sae.UserError, match=r"has too few examples: 5 of a label"):
        sae.find(few, run=run)
    with pytest.raises(sae.UserError, match="window=8 has no effect on examples"):
        sae.find(table, window=8, run=run)
    with pytest.raises(sae.UserError, match="label=yes is for examples"):
        sae.find(table, table, label="yes", run=run)
