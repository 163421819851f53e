"""`sae probe`: tables with their controls, what is found again, and what is refused."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from support.world import WORDS, save_tiny_model

import sae
from sae.base import UserError
from sae.cli import main
from sae.edits import Edits
from sae.probing.causal import Direction, Later, Trial
from sae.rows.pooled import tokenized_texts
from sae.text.labelled import labelled_texts

HOOK = "blocks.1.hook_resid_post"
ALL_HOOKS = [f"blocks.{i}.hook_resid_post" for i in range(3)]


def written(place, n=60, seed=0):
    """Texts whose label is whether a word is `cats` or `dog`, with that word's place."""
    draw = np.random.default_rng(seed)
    with place.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "label", "start", "end"])
        for i in range(n):
            words = [*draw.choice(WORDS, 5)]
            word = ("cats", "dog")[i % 2]
            before = f"{i} {' '.join(words)} "
            table.writerow(
                [f"{before}{word} fell", i % 2, len(before), len(before) + len(word)]
            )
    return str(place)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return written(tmp_path_factory.mktemp("task") / "words.csv")


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_run):
    folder = tmp_path_factory.mktemp("probe") / "run"
    shutil.copytree(tiny_run, folder)
    return folder


@pytest.fixture(scope="module")
def settings(run, tiny_model, task):
    model = sae.ModelConfig(name=str(tiny_model), device="cpu")
    return {"run": str(run), "model": model, "tasks": [task], "n_train": 24, "n_test": 20}


@pytest.fixture(scope="module")
def found(settings):
    return sae.probe(
        **settings, dictionary="strong", k=["1", "5", "all"], learning_curve=[8, 16],
        pools=["span", "mean", "attention"],
    )  # fmt: skip


def test_results_are_tables_a_page_and_a_picture(found):
    names = {path.name for path in found.folder.iterdir()}
    files = {"index.html", "layers.png", "probes.parquet", "results.json"}
    assert files | {"directions.safetensors"} <= names
    frame = found.to_pandas()
    assert {*frame.inputs} == {
        "raw", "difference_of_means", "channels", "features", "random_decoder"
    }  # fmt: skip
    assert {*frame[frame.inputs == "raw"].hook_name} == {*ALL_HOOKS}
    assert {*frame[frame.inputs == "features"].hook_name} == {HOOK}
    assert {*frame[frame.inputs == "features"].k.fillna(0)} == {0, 1, 5}
    assert {*frame.pool} == {"span", "mean", "attention"}
    key = ["hook_name", "pool", "inputs", "k"]
    assert not frame.duplicated(key).any()


def test_every_figure_has_its_interval_its_n_and_its_control(found):
    frame = found.to_pandas()
    for name in ("auc", "accuracy"):
        assert (frame[f"{name}_low"] <= frame[name]).all()
        assert (frame[name] <= frame[f"{name}_high"]).all()
    assert {*frame.n_test} == {20}
    assert frame.permuted_auc.between(0.2, 0.8).all()
    linear = frame[(frame.pool != "attention") & frame.k.isna()]
    logistic = linear[linear.inputs != "difference_of_means"]
    assert (logistic.compression - 24 / logistic.bits).abs().max() < 1e-9


def test_a_word_is_told_where_it_stands_and_shuffled_labels_are_not(found):
    frame = found.to_pandas()
    spans = frame[(frame.pool == "span") & (frame.inputs == "raw")]
    assert spans.auc.min() == 1
    assert (spans.auc_low > spans.permuted_auc).all()


def test_a_probe_that_knows_words_alone_is_not_selective(found):
    frame = found.to_pandas()
    spans = frame[(frame.pool == "span") & (frame.inputs == "raw")]
    assert {*spans.selectivity_n} == {20}
    # The label is the word, so a label drawn for each word is as easy.
    assert (spans.selectivity <= 0).all()


def test_pools_and_hooks_are_chosen_by_validation(found):
    frame = found.to_pandas()
    own = frame[frame.inputs == "raw"]
    for _, at in own.groupby("hook_name"):
        assert at.chosen.sum() == 1
        assert at[at.chosen].validation_auc.item() == at.validation_auc.max()
    assert own.best.sum() == 1
    assert own[own.best].validation_auc.item() == own.validation_auc.max()


def test_the_random_decoder_is_as_sparse_as_the_dictionary(found):
    about = found.summary["dictionary"]
    assert about["control_k"] == max(1, round(about["l0"]))
    assert about["name"] == "strong"


def test_the_best_probes_direction_is_tried_beside_random_ones(found):
    frame = found.to_pandas()
    tried = frame[frame.steer_kl.notna()]
    assert len(tried) == 1
    row = tried.iloc[0]
    assert (row.inputs, row.causal_n) == ("raw", 20)
    assert row.steer_kl > 0
    assert row.steer_kl_random > 0
    assert row.ablate_kl > 0


def test_learning_curves_are_of_the_best_hook(found):
    (task,) = found.summary["tasks"]
    sizes = {one["n_train"] for one in task["learning_curves"]}
    assert sizes == {8, 16}
    assert all("permuted_auc" in one for one in task["learning_curves"])


def test_asked_again_nothing_is_computed_and_other_settings_are(settings, monkeypatch, capsys):
    asked = settings | {"name": "again", "causal": False}
    first = sae.probe(**asked)
    before = (first.folder / "results.json").stat().st_mtime_ns
    with monkeypatch.context() as patched:
        patched.setattr("sae.commands.probe.probe", None)
        again = sae.probe(**asked)
    assert "is finished already and is reused" in capsys.readouterr().err
    assert (again.folder / "results.json").stat().st_mtime_ns == before
    with monkeypatch.context() as patched:
        # Other folds are fitted to the rows that were read.
        patched.setattr("sae.rows.pooled.pooled_rows", None)
        (first.folder / "index.html").write_text("damaged")
        mended = sae.probe(**asked)
    assert (mended.folder / "index.html").read_text() != "damaged"


def test_places_fitted_one_by_one_or_all_at_once_find_the_same(settings, monkeypatch):
    asked = settings | {"hooks": ["all"], "pools": ["mean", "last"], "causal": False}
    found = []
    for together in (1, 10_000):
        monkeypatch.setattr("sae.probing.study._ROWS_TOGETHER", together)
        table = sae.probe(**asked, name=f"together-{together}").table.to_pandas()
        found.append(table.sort_values(["inputs", "hook_name", "pool"], ignore_index=True))
    numbers = found[0].select_dtypes("number")
    assert len(numbers) >= 8
    np.testing.assert_allclose(numbers, found[1][numbers.columns], rtol=1e-6, atol=1e-6)


def test_other_weights_are_probed_again(settings, tokenizer_folder, tmp_path):
    place = tmp_path / "model"
    save_tiny_model("llama", place, tokenizer_folder)
    asked = settings | {"run": str(tmp_path / "run"), "causal": False}
    asked["model"] = sae.ModelConfig(name=str(place), device="cpu")
    before = sae.probe(**asked, pools=["mean"]).to_pandas()
    shutil.rmtree(place)
    save_tiny_model("llama", place, tokenizer_folder, seed=3)
    assert not before.equals(sae.probe(**asked, pools=["mean"]).to_pandas())


def test_a_direction_is_saved_as_an_edit(found, tmp_path):
    out = tmp_path / "dog.yaml"
    assert main(["probe", "edit", str(found.folder), str(out), f"hook_name={HOOK}"]) == 0
    (record,) = Edits.read(out).records
    assert (record.at, record.do) == (HOOK, "add")
    held = np.load(record.direction)
    assert np.linalg.norm(held) == pytest.approx(1)
    name = found.summary["tasks"][0]["name"]
    (length,) = [
        v for k, v in found.summary["tasks"][0]["lengths"].items()
        if k.startswith(HOOK) and np.array_equal(
            held, found.direction(name, *k.split(" ")).numpy())
    ]  # fmt: skip
    assert record.by == pytest.approx(length)
    assert main(["edit", "check", str(out)]) == 0
    (record,) = found.edits(hook_name=HOOK, pool="mean", do="orthogonal").records
    assert record.by is None


def test_edits_that_cannot_be_saved_are_refused_in_a_sentence(found, tmp_path):
    for asked, sentence in (
        ({"task": "nouns"}, "task=nouns was not probed"),
        ({"hook_name": "blocks.9.mlp"}, "has no linear probe of"),
        ({"do": "ablate"}, "do=ablate; give add or orthogonal"),
        ({"do": "orthogonal", "by": 2.0}, "by=2.0 has no effect"),
    ):
        with pytest.raises(UserError, match=sentence):
            found.edits(**asked)
    with pytest.raises(UserError, match="contains no results of probing"):
        sae.probe_edit(results=str(tmp_path), out=str(tmp_path / "x.yaml"))


def test_tasks_that_cannot_be_probed_are_told_and_the_others_are_done(
    settings, task, tmp_path, capsys
):
    one = tmp_path / "one.csv"
    one.write_text("text,label\na,1\nb,1\n")
    asked = settings | {"tasks": [task, str(one)], "name": "some", "causal": False}
    found = sae.probe(**asked, hooks=[HOOK], pools=["span"])
    assert "all 2 texts are labelled '1'" in capsys.readouterr().err
    (left_out,) = found.summary["left_out"]
    assert left_out["task"] == str(one)
    assert [x["name"] for x in found.summary["tasks"]] == [task]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["hooks=[blocks.7.hook_resid_post]"], "layer 7 is out of range"),
        (["dictionary=weak", "hooks=[blocks.0.hook_resid_post]"], "not among the given hooks"),
        (["dictionary=nothing"], "nothing"),
        (["pools=[median]"], "pools=median is unknown"),
        (["k=[0]", "dictionary=weak"], "k=0 is not a number of features"),
        (["learning_curve=[64]", "n_train=32"], "learning_curve=64 is not between"),
        (["tasks=[nowhere.csv]"], "is not a file"),
        (["hooks=[all,x]"], "give all alone"),
        (["n_train=2"], "n_train=2"),
    ],
)
def test_what_cannot_be_probed_is_refused_before_weights_are_loaded(
    words, sentence, run, tiny_model, task, monkeypatch, capsys
):
    monkeypatch.setattr("sae.commands.probe.load_model", None)
    base = [f"run={run}", f"model={tiny_model}", "name=refused", f"tasks=[{task}]"]
    taken = {word.partition("=")[0] for word in words}
    given = [word for word in base if word.partition("=")[0] not in taken]
    assert main(["probe", *given, *words]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert len(said.strip().splitlines()) == 1
    assert not (run / "probing" / "refused").exists()


def test_a_task_without_spans_has_no_span_pool(settings, tmp_path):
    plain = tmp_path / "plain.csv"
    plain.write_text("text,label\n" + "".join(f"text {i},{i % 2}\n" for i in range(60)))
    with pytest.raises(UserError, match="has no spans"):
        sae.probe(**settings | {"tasks": [str(plain)]}, pools=["span"])


def test_an_encoder_is_probed_without_asking_what_it_causes(encoder, task, tmp_path):
    asked = {"run": str(tmp_path / "run"), "tasks": [task], "n_train": 24, "n_test": 20}
    model = sae.ModelConfig(name=str(encoder), device="cpu")
    found = sae.probe(**asked, model=model, pools=["mean"])
    assert found.to_pandas().steer_kl.isna().all()
    assert "the model predicts no next token" in (found.folder / "index.html").read_text()


def test_a_direction_of_length_zero_causes_nothing(tiny_model, task):
    from sae.classifiers import LinearProbe
    from sae.models import find_site, load_model

    model = load_model(sae.ModelConfig(name=str(tiny_model), device="cpu"))
    texts = labelled_texts(task, "text", "label")
    tokens = tokenized_texts(model, texts, 64).texts[:12]
    probe = LinearProbe(np.arange(32.0), 0.0)
    later = Later(find_site(model.module, "blocks.2.hook_resid_post"), probe, "last")
    site = find_site(model.module, "blocks.0.hook_resid_post")
    trial = Trial(model, site, tokens, texts.labels[:12], later)
    unit = torch.nn.functional.normalize(torch.ones(32), dim=0)
    effects = trial.effects(Direction(unit, 0.0), seed=0)
    assert effects["steer_kl"] == pytest.approx(0, abs=1e-6)
    assert effects["steer_later"] == pytest.approx(0, abs=1e-4)
    assert effects["ablate_kl"] > 1e-6
    # The very stream that the later probe reads moves by as much as is added there.
    own = Trial(model, later.site, tokens, texts.labels[:12], later)
    moved = own.effects(Direction(unit, 3.0), seed=0)["steer_later"]
    assert moved == pytest.approx(3.0 * float(probe.weights @ unit.numpy()), rel=1e-3)


def test_a_notebook_shows_the_best_probes_with_what_the_field_found(found):
    assert "arXiv 2502.16681" in found._repr_html_()
    assert repr(found).startswith("ProbeResults(1 tasks, ")
    assert found.plot().size[0] > 100
    assert json.loads((found.folder / "results.json").read_text())["statement"]
