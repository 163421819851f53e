"""What no option of any command may be, and what is said of an option without effect."""

import pytest
from support.words import needed

import sae
from sae.base.errors import UserError
from sae.base.settings import check_idle, check_numbers
from sae.config.commands import COMMANDS
from sae.config.compose import build
from sae.config.groups import CLASSES
from sae.config.keys import keys

NUMBERS = [
    (command, key.name, key.kind)
    for command in COMMANDS.values()
    for key in keys(command.config_class())
    if key.kind in (float, float | None, list[float])
]
SEEDS = [
    (command, key.name)
    for command in COMMANDS.values()
    for key in keys(command.config_class())
    if key.name.endswith("seed")
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "key", "kind"), NUMBERS, ids=[f"{c.id}-{key}" for c, key, _ in NUMBERS]
)
def test_no_key_of_any_command_takes_what_is_no_number(command, key, kind):
    word = f"{key}=[nan]" if kind == list[float] else f"{key}=nan"
    with pytest.raises(UserError, match=key.rpartition(".")[2]):
        build(command, [*needed(command), word])


@pytest.mark.slow
@pytest.mark.parametrize(("command", "key"), SEEDS, ids=[f"{c.id}-{key}" for c, key in SEEDS])
def test_a_seed_that_generators_do_not_take_is_refused(command, key):
    with pytest.raises(UserError, match=rf"{key}={2**64}; give "):
        build(command, [*needed(command), f"{key}={2**64}"])


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seeds_are_from_0_to_below_2_to_the_63(seed):
    with pytest.raises(UserError, match=rf"^seed={seed}; give a whole number of at least 0"):
        check_numbers(sae.TrainConfig(seed=seed))
    check_numbers(sae.TrainConfig(seed=0, shuffle_seed=2**63 - 1))


@pytest.mark.parametrize("config", CLASSES["sae"].values())
def test_no_number_of_an_architecture_is_other_than_finite(config):
    for key in keys(config):
        if key.kind in (float, float | None):
            for value in (float("nan"), float("inf")):
                with pytest.raises(UserError, match=key.name):
                    check_numbers(config(**{key.name: value}), "sae.")


def test_python_calls_refuse_them_as_the_command_line_does():
    with pytest.raises(UserError, match=r"strengths=\[1\.0, nan\]; give only finite numbers"):
        sae.steer(strengths=[1.0, float("nan")])
    with pytest.raises(UserError, match="seed=-1; give"):
        sae.train(seed=-1)
    with pytest.raises(UserError, match="seed=9223372036854775808; give"):
        sae.sweep([sae.TrainConfig(seed=2**63)])


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            sae.TrainConfig(logger=sae.LoggerConfig(group="x")),
            "logger.group=x has no effect here; it is only used with logger.name=wandb",
        ),
        (
            sae.TrainConfig(sae=sae.JumpReLUConfig(tanh_scale=2.0)),
            "sae.tanh_scale=2.0 has no effect here; it is only used with sae.penalty=tanh",
        ),
        (
            sae.TrainConfig(sae=sae.TopKConfig(k_aux=3, aux_loss_coefficient=0.0)),
            "sae.k_aux=3 has no effect here; it is only used with "
            "sae.aux_loss_coefficient=0.03125",
        ),
        (
            sae.SteerConfig(features=[1], n_features=2),
            "n_features=2 has no effect here; it is only used with features=[]",
        ),
    ],
)
def test_a_key_without_effect_is_refused_with_what_would_wake_it(config, sentence):
    with pytest.raises(UserError) as refused:
        check_idle(config)
    assert str(refused.value) == sentence


def test_keys_that_have_an_effect_are_not_refused():
    check_idle(sae.TrainConfig(logger=sae.LoggerConfig(name="wandb", group="x")))
    check_idle(sae.TrainConfig(sae=sae.JumpReLUConfig(penalty="tanh", tanh_scale=2.0)))
    check_idle(sae.SteerConfig(n_features=2))
