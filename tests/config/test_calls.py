"""The commands as Python calls: their keywords, and what they say of wrong ones."""

import inspect

import pytest

import sae
from sae.base.errors import UserError
from sae.config.commands import python_calls


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


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
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
