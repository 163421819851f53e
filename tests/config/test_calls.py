"""The commands as Python calls: their keywords, and what they say of wrong ones."""

import inspect
from pathlib import Path

import numpy
import pytest

import sae
from sae.base.errors import UserError
from sae.config.commands import COMMANDS, python_calls
from sae.config.compose import build


@pytest.fixture
def asked(monkeypatch):
    """The configurations that `sae.harvest` and `sae.train` would have worked with."""
    found = []
    monkeypatch.setattr("sae.commands.harvest.run", lambda config: found.append(config))
    monkeypatch.setattr(
        "sae.commands.train.run", lambda config, rows=None: found.append(config)
    )
    return found


def test_a_call_takes_a_configuration_or_its_fields(asked):
    sae.train(sae.TrainConfig(seed=3, run="a"))
    sae.train(seed=3, run="a")
    assert asked == [sae.TrainConfig(seed=3, run="a")] * 2


def test_a_part_may_be_given_by_the_word_of_the_command_line(asked):
    sae.harvest(model="gpt2", data="pile")
    sae.harvest(model="./it's, a=b", data="texts/**/*.txt")
    sae.train(sae="topk", logger="wandb")
    first, second, third = asked
    assert first.model == sae.ModelConfig(name="gpt2")
    assert first.data == sae.DataConfig(
        name="monology/pile-uncopyrighted", column="text", split="train"
    )
    assert second.model == sae.ModelConfig(name="./it's, a=b")
    assert second.data == sae.DataConfig(name="texts/**/*.txt")
    assert third.sae == sae.TopKConfig()
    assert third.logger == sae.LoggerConfig(name="wandb")


def test_a_part_may_be_given_as_a_dict_of_its_fields(asked):
    sae.train(sae={"k": 8}, optim={"lr": 1e-3}, control="frozen_decoder")
    sae.train(sae={"architecture": "batchtopk", "k": 8}, harvest={"model": "gpt2"}, cache=None)
    sae.train(sae={"d_sae": 64}, optim=sae.OptimConfig(beta1=0.5))
    first, second, third = asked
    assert (first.sae, first.optim) == (sae.TopKConfig(k=8), sae.OptimConfig(lr=1e-3))
    assert first.control == ["frozen_decoder"]
    assert second.sae == sae.BatchTopKConfig(k=8)
    assert second.harvest.model == sae.ModelConfig(name="gpt2")
    assert third.sae == sae.StandardConfig(d_sae=64)
    assert third.optim == sae.OptimConfig(beta1=0.5)


def test_a_call_and_the_command_line_end_in_the_same_configuration(asked):
    words = ["run=r", "sae.l1_coefficient=3", "optim.lr=1", "control=soft_frozen"]
    sae.train(
        run=Path("r"),
        sae=sae.StandardConfig(l1_coefficient=3),
        optim={"lr": 1},
        control=("soft_frozen",),
    )
    sae.train(seed=numpy.int64(3), dead_feature_window=numpy.float32(0.5))
    assert asked[0] == build(COMMANDS["train"], words)
    assert type(asked[0].sae.l1_coefficient) is float
    assert type(asked[1].seed) is int
    assert type(asked[1].dead_feature_window) is float


def test_what_needs_no_key_on_the_command_line_needs_none_here(monkeypatch):
    found = []
    monkeypatch.setattr("sae.commands.analyze.run", found.append)
    monkeypatch.setattr("sae.commands.cache.merge", found.append)
    sae.analyze("runs/mine", k=3)
    sae.cache_merge("both.zarr", "a.zarr", Path("b.zarr"))
    assert found == [
        sae.AnalyzeConfig(run="runs/mine", k=3),
        sae.CacheMergeConfig(out="both.zarr", caches=["a.zarr", "b.zarr"]),
    ]


def test_a_file_of_settings_and_a_preset_are_taken_too(asked, monkeypatch, tmp_path):
    (tmp_path / "mine.yaml").write_text("sae: {architecture: topk, k: 8}\nseed: 5\n")
    sae.train(config=tmp_path / "mine.yaml", seed=6)
    assert asked == [sae.TrainConfig(sae=sae.TopKConfig(k=8), seed=6)]
    found = []
    monkeypatch.setattr("sae.commands.patch.run", found.append)
    sae.patch(preset="ioi", run="r")
    assert (found[0].name, found[0].run, found[0].answer) == ("ioi", "r", " {first}")


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("train", {"seed": "x"}, "seed='x': give a whole number"),
        ("train", {"seed": 1.5}, r"seed=1\.5: give a whole number"),
        ("train", {"extend": 1}, "extend=1: give true or false"),
        ("train", {"control": 3}, r"control=3: give a list of words, as \[a,b\]"),
        ("train", {"optim": 3}, "optim=3 is no OptimConfig"),
        ("train", {"sae": {"kk": 3}}, r"sae\.kk is no key of sae train"),
        ("train", {"sae": {"k": "x"}}, r"sae\.k='x': give a whole number"),
        (
            "train",
            {"sae": sae.OptimConfig()},
            r"sae=OptimConfig\(.*give sae\.ArchitectureConfig",
        ),
        ("train", {"preset": "ioi"}, "preset is no keyword of sae.train"),
        ("train", {"sede": 1}, "sede is no keyword of sae.train; nearest: seed"),
        ("train", {"d_sae": 8}, "d_sae is no keyword of sae.train; it is one of sae: "),
        ("train", {"lr": 8}, r"it is one of optim: optim=sae\.OptimConfig\(lr=\.\.\.\)"),
        ("train", {"sae": "top"}, "sae=top is unknown; choose one of .*nearest: topk"),
        ("train", {"optim": "fast"}, r"optim='fast' is no OptimConfig; give sae\.OptimConfig"),
        ("cache_info", {"json": True}, r"sae\.cache_info needs cache=\.\.\."),
        ("harvest", {"rows": []}, "rows is no keyword of sae.harvest"),
    ],
)
def test_a_wrong_keyword_is_refused_with_what_would_be_right(name, settings, sentence, asked):
    with pytest.raises(UserError, match=sentence):
        getattr(sae, name)(**settings)
    assert asked == []


@pytest.mark.parametrize("config", [sae.OptimConfig(), "runs/mine", 3])
def test_another_configuration_than_the_call_s_own_is_refused(config, asked):
    with pytest.raises(UserError, match="takes one TrainConfig, or its fields by keyword"):
        sae.train(config)
    with pytest.raises(UserError, match="takes one TrainConfig"):
        sae.train(sae.TrainConfig(), seed=1)
    assert asked == []


@pytest.mark.parametrize("name", python_calls())
def test_a_notebook_sees_name_keywords_and_meaning_of_a_call(name):
    call = getattr(sae, name)
    assert call is getattr(sae, name)
    assert (call.__name__, call.__module__) == (name, "sae")
    expected = getattr(sae, python_calls()[name].config)
    shown = inspect.signature(call).parameters
    assert list(inspect.signature(expected).parameters) == [p for p in shown if p != "rows"]
    assert inspect.getdoc(call).startswith(inspect.getdoc(expected).split("\n")[0])
