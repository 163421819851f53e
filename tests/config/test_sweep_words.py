"""Several values on one command line: a grid of finished configurations, or one sentence."""

import itertools

import pytest
import torch

import sae
from sae.base.errors import UserError
from sae.config import launch
from sae.config.commands import COMMANDS
from sae.config.compose import build

TRAIN = COMMANDS["train"]


def grid(*words: str) -> list:
    return launch.grid(TRAIN, words)


@pytest.mark.slow
def test_every_combination_of_values_is_one_configuration_as_if_given_alone():
    words = ["seed=7", "sae=topk", "optim.lr=1e-3,3e-3", "sae.d_sae=32,64", "sae.k=2,4,8"]
    fixed = ["seed=7", "sae=topk"]
    alone = [
        build(TRAIN, [*fixed, f"optim.lr={lr}", f"sae.d_sae={d_sae}", f"sae.k={k}"])
        for lr, d_sae, k in itertools.product(("1e-3", "3e-3"), (32, 64), (2, 4, 8))
    ]
    assert grid(*words) == alone


def test_words_without_several_values_are_one_configuration():
    assert grid("sae.d_sae=32", "name=x") == [build(TRAIN, ["sae.d_sae=32", "name=x"])]


@pytest.mark.parametrize(
    ("word", "seeds"),
    [
        ("seed=range(1,4)", [1, 2, 3]),
        ("seed=choice(5,9)", [5, 9]),
        ("seed=sort(9,5)", [5, 9]),
        ("seed=choice(5)", [5]),
    ],
)
def test_hydras_own_words_for_several_values_count(word, seeds):
    assert [config.seed for config in grid(word)] == seeds


def test_quotes_and_brackets_keep_commas_inside_one_value():
    (config,) = grid("name='a,b'", "cache=null", "harvest.hook_names=[x,y]")
    assert config.name == "a,b"
    assert config.harvest.hook_names == ["x", "y"]
    listed = grid("name='a,b',c", "cache=null", "harvest.hook_names=[x,y]")
    assert [config.name for config in listed] == ["a,b", "c"]
    lists = grid("cache=null", "harvest.hook_names=[x],[y,z]", "name='${harvest.hook_names.0}'")
    assert [config.harvest.hook_names for config in lists] == [["x"], ["y", "z"]]


def test_a_name_may_be_made_of_the_swept_key():
    found = grid("optim.beta1=0.5,0.9", "name='x-${optim.beta1}'")
    assert [config.id for config in found] == ["x-0.5", "x-0.9"]


def test_a_key_of_some_architectures_applies_to_those_and_nothing_is_made_twice():
    found = grid("sae=standard,topk", "sae.k=16,32", "sae.l1_coefficient=1,2")
    assert [config.id for config in found] == [
        "standard-4608-l1-1",
        "standard-4608-l1-2",
        "topk-4608-k-16",
        "topk-4608-k-32",
    ]


@pytest.mark.slow
def test_a_single_value_that_one_architecture_has_applies_to_it_alone():
    standard, topk = grid("sae=standard,topk", "sae.k=16")
    assert standard == build(TRAIN, [])
    assert topk == build(TRAIN, ["sae=topk", "sae.k=16"])


def test_a_pattern_chooses_all_architectures_that_fit_it():
    found = grid("sae=glob(*topk)", "sae.k=16")
    assert [config.sae.architecture for config in found] == [
        "batchtopk",
        "hierarchical_topk",
        "matryoshka_batchtopk",
        "ordered_topk",
        "topk",
    ]
    with pytest.raises(UserError, match=r"sae=glob\(x\*\): no choice of sae is like that"):
        grid("sae=glob(x*)")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["optim.lr=1e-3,0"], r"^optim\.lr=0\.0 is impossible; give more than 0"),
        (["optim.lr=1e-3,x"], r"^optim\.lr=x: give a number or null$"),
        (["sae.d_sea=8,16"], r"^sae\.d_sea is no key of sae train; nearest: sae\.d_sae"),
        (["sae=standard,gated", "sae.k=8,16"], r"^sae\.k is no key of sae train"),
        (["sae=gated,p_anneal", "sae.k=8"], r"^sae\.k is no key of sae train"),
        (["sae.k=8,16", "sae.bandwidth=1"], r"^sae\.k is no key of sae train"),
        (["sae=standard,nothing"], r"^sae=nothing is unknown; choose one of batchtopk"),
        (["optim.lr=1e-3,"], r"^optim\.lr=1e-3,: not of the form key=value"),
        (["seed=1,2", "--quiet"], r"^--quiet is no flag here; write sae train \[group=choice"),
        (["+seed=1,2"], r"^\+seed=1,2: keys are set, not added or removed"),
        (["optim.lr=interval(0,1)"], r"^optim\.lr=interval\(0,1\) gives no values"),
    ],
)
def test_one_bad_value_among_good_ones_refuses_all_with_one_sentence(words, sentence):
    with pytest.raises(UserError, match=sentence) as refused:
        grid("sae.d_sae=32,64", *words)
    assert "\n" not in str(refused.value)


def test_two_dictionaries_in_one_folder_are_refused():
    with pytest.raises(UserError, match="would both write runs/default/dictionaries/standard"):
        grid("optim.beta1=0.5,0.9")
    with pytest.raises(UserError, match="would both write runs/default/dictionaries/x;"):
        sae.sweep([sae.TrainConfig(name="x"), sae.TrainConfig(name="x", seed=1)])


def test_a_hundred_dictionaries_are_trained_unasked():
    found = grid("seed=range(10)", "sae.d_sae=range(1,11)")
    assert len({config.id for config in found}) == 100


def test_more_have_to_be_meant_and_the_time_is_told_from_a_sample(monkeypatch):
    samples = []

    def seconds(configs):
        samples.append(configs)
        return 9.0 * 3600

    monkeypatch.setattr("sae.training.turns.expected_seconds", seconds)
    lrs = "optim.lr=" + ",".join(f"{n}e-4" for n in range(1, 11))
    with pytest.raises(UserError) as refused:
        grid("sae=standard,gated", "seed=range(500)", lrs)
    assert str(refused.value) == (
        "this grid has 10,000 dictionaries, about 187.5 days on this machine; give "
        "sweep.yes=true to train them all"
    )
    (sample,) = samples
    assert len(sample) == 20
    # Spread over every axis, the fastest one included.
    halves = [config.sae.architecture for config in sample]
    assert halves == ["standard"] * 10 + ["gated"] * 10
    assert len({config.seed for config in sample}) > 10
    assert len({config.optim.lr for config in sample}) > 4


def test_a_grid_beyond_counting_is_refused_as_fast_without_an_estimate(monkeypatch):
    monkeypatch.setattr("sae.training.turns.expected_seconds", lambda _: None)
    with pytest.raises(UserError) as refused:
        grid("seed=range(10000)", "sae.d_sae=range(1,10001)", "shuffle_seed=range(10000)")
    assert str(refused.value) == (
        "this grid has 1,000,000,000,000 dictionaries; give sweep.yes=true to train them all"
    )


def test_a_large_grid_that_is_meant_is_made():
    found = grid("seed=range(101)", "sweep.yes=true")
    assert [config.seed for config in found] == list(range(101))


def test_a_sweep_in_python_takes_training_configurations_alone():
    with pytest.raises(UserError, match="no configuration; give at least one TrainConfig"):
        sae.sweep([])
    with pytest.raises(UserError, match="takes TrainConfigs, but was given: OptimConfig"):
        sae.sweep([sae.OptimConfig()])


def test_rows_of_ones_own_reach_the_training(monkeypatch):
    given = []
    monkeypatch.setattr(
        "sae.commands.train.run", lambda config, rows=None: given.append((config, rows))
    )
    rows = [torch.zeros(4, 2)]
    sae.train(rows=rows, seed=3)
    sae.train(sae.TrainConfig(seed=3))
    assert given == [(sae.TrainConfig(seed=3), rows), (sae.TrainConfig(seed=3), None)]
