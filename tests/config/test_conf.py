"""The table of commands and `conf/`: all of it composes, is explained, and agrees."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from support.words import needed

from sae.base.errors import UserError
from sae.cli import main
from sae.config.commands import COMMANDS, Command
from sae.config.compose import build, translated
from sae.config.groups import CLASSES, conf_folder, groups
from sae.config.keys import REQUIRED, idle_keys, is_below, keys
from sae.config.launch import check_sweep

CONF = conf_folder()
EVERY = pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)


def chosen(command: Command, word: str) -> list[str]:
    """A word with those without which the command refuses it."""
    # A training has a model and a text of its own only without a cache.
    return [word, *(["cache=null"] if command.name == "train" else [])]


def all_choices() -> Iterator[tuple[str, str, str]]:
    """Command, group as Hydra calls it, choice: for every choice of every group."""
    for command in COMMANDS.values():
        for key, group in groups(command).items():
            for choice in group.choices:
                yield command.name, key, choice


def at(config: object, path: str) -> object:
    for part in path.split("."):
        config = getattr(config, part)
    return config


@pytest.mark.slow
@pytest.mark.parametrize(("name", "key", "choice"), list(all_choices()))
def test_a_choice_composes_in_a_command_that_has_its_group(name, key, choice):
    command = COMMANDS[name]
    group = groups(command)[key]
    words = chosen(command, f"{key}={choice}")
    if "train.harvest" in group.path:
        words.append("train.cache=null")
    if name == "demo" and group.name == "sae" and choice != "standard":
        # It sweeps an L1 coefficient, which is refused where the demo is run.
        words.append("l1_coefficients=[1]")
    config = build(command, words)
    if not group.path:
        assert isinstance(config, command.config_class())
    elif group.name in CLASSES:
        assert type(at(config, group.path)) is CLASSES[group.name][choice]
    else:
        content = OmegaConf.load(CONF / group.name / f"{choice}.yaml")
        for name, value in content.items():
            assert getattr(at(config, group.path), name) == value


def test_every_file_of_conf_is_a_choice_of_a_command():
    of_groups = {
        (group.name if group.path else group.key, choice)
        for command in COMMANDS.values()
        for group in groups(command).values()
        for choice in group.choices
    }
    files = {
        (path.parent.relative_to(CONF).as_posix(), path.stem) for path in CONF.rglob("*.yaml")
    }
    assert files <= of_groups


def leaves(content: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def presets() -> list[str]:
    return sorted(path.stem for path in (CONF / "preset" / "demo").glob("*.yaml"))


@pytest.mark.parametrize("name", presets())
def test_the_demo_takes_every_value_of_a_preset(name):
    config = build(COMMANDS["demo"], [f"preset={name}"])
    wanted = dict(
        leaves(
            OmegaConf.to_container(OmegaConf.load(CONF / "preset" / "demo" / f"{name}.yaml"))
        )
    )
    assert wanted
    assert {key: at(config, key) for key in wanted} == wanted


@EVERY
def test_every_key_of_a_command_has_a_meaning_that_is_a_sentence(command: Command):
    found = keys(command.config_class())
    assert found
    for key in found:
        assert re.match(r"[A-Z].*[.]$", key.meaning), (key.name, key.meaning)


@pytest.mark.slow
@EVERY
def test_a_command_without_words_has_the_defaults_of_its_dataclass(command: Command):
    config = build(command, needed(command))
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    required = {key.name for key in keys(command.config_class()) if key.value is REQUIRED}
    assert config == command.config_class()(**{name: values[name] for name in required})


@pytest.mark.slow
@EVERY
def test_a_configuration_is_frozen(command: Command):
    config = build(command, needed(command))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, dataclasses.fields(config)[0].name, "elsewhere")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("model=EleutherAI/pythia-70m", "model.name", "EleutherAI/pythia-70m"),
        ("model=gpt2", "model.name", "gpt2"),
        ("model=./models/mine", "model.name", "./models/mine"),
        ("data=./folder", "data.name", "./folder"),
        ("data=factbook", "data.name", "factbook"),
        ("data=wikitext", "data.name", "wikitext"),
    ],
)
def test_a_choice_that_is_not_listed_is_a_name(word, key, value):
    assert at(build(COMMANDS["harvest"], [word]), key) == value
    assert at(build(COMMANDS["demo"], [word]), f"harvest.{key}") == value


def test_a_listed_choice_brings_all_that_its_file_says():
    data = build(COMMANDS["harvest"], ["data=pile"]).data
    assert data.name == "monology/pile-uncopyrighted"


def test_a_sweep_is_refused_for_one_bad_value_among_good_ones():
    with pytest.raises(UserError, match=r"optim\.lr=0\.0 is impossible"):
        check_sweep(COMMANDS["train"], ["-m", "sae.d_sae=8,16", "optim.lr=1e-3,0"])
    with pytest.raises(UserError, match=r"sae=nothing is unknown; choose one of .*standard"):
        check_sweep(COMMANDS["train"], ["-m", "sae=standard,nothing"])
    check_sweep(COMMANDS["train"], ["-m", "sae.d_sae=8,16", "hydra.verbose=true"])


@pytest.mark.parametrize(
    ("word", "instead"),
    [
        ("harvest.run=a", "run"),
        ("train.sae.l1_coefficient=2.0", "l1_coefficients"),
        ("train.sweep.max_l0=30.0", r"eval\.max_l0"),
        ("steer.dictionary=a", r"eval\.max_l0"),
    ],
)
def test_a_demo_refuses_the_keys_that_it_sets_itself(word, instead):
    with pytest.raises(UserError, match=f"{word} has no effect in a demo; give {instead}="):
        build(COMMANDS["demo"], [word])


def test_a_sweep_over_models_may_list_names():
    harvest = COMMANDS["harvest"]
    assert translated(harvest, ["model=smollm2,gpt2"]) == ["model=smollm2,gpt2"]
    assert translated(harvest, ["model=a/b,./c"]) == ["model.name=a/b,./c"]


@pytest.mark.parametrize(
    ("name", "word", "meant"),
    [
        ("train", "data=pile", "data@harvest.data=pile"),
        ("demo", "sae=topk", "sae@train.sae=topk"),
        ("demo", "logger=wandb", "logger@train.logger=wandb"),
        ("demo", "preset=smoke", "preset/demo=smoke"),
        ("demo", "model@train.harvest.model=gpt2", "model@train.harvest.model=gpt2"),
    ],
)
def test_a_group_may_be_called_by_its_own_name_wherever_it_is(name, word, meant):
    assert translated(COMMANDS[name], [word]) == [meant]


def test_a_text_may_be_longer_than_the_name_of_a_file():
    text = "the old mill " * 400
    assert build(COMMANDS["lens"], [text]).text == text
    assert build(COMMANDS["lens"], [f"text='{text}'"]).text == text


def help_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main([*words, "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.slow
@EVERY
def test_the_help_lists_every_group_and_key_that_can_have_an_effect(command, capsys):
    text = help_of(capsys, *command.name.split())
    config = build(command, needed(command))
    idle = idle_keys(config)
    for group in groups(command).values():
        listed = not is_below(group.path, idle)
        assert (f"  {group.name}=...  {', '.join(group.choices)}" in text) >= listed
    plain = " ".join(text.split())
    for key in keys(config):
        listed = not is_below(key.name, idle)
        assert (f"\n  {key.name}=" in text) == listed
        assert not listed or key.meaning in plain
    for word in idle.values():
        assert word is None or f"\n  {word} " in text


def test_keys_of_rows_without_a_cache_are_shown_where_there_is_none(capsys):
    plain = help_of(capsys, "train")
    assert "\n  harvest.context_size=" not in plain
    assert "\n  model=" not in plain
    assert "\n  cache=null         harvest.*, mix_rows\n" in plain
    assert "as sae train cache=null --help shows" in plain
    live = help_of(capsys, "train", "cache=null")
    assert "\n  cache=null\n" in live
    assert "\n  harvest.context_size=128" in live
    assert "\n  mix_rows=" in live
    assert "\n  model=...  gpt2, smollm2, or any name" in live
    # A training without a cache refuses these.
    assert "\n  harvest.n_tokens=" not in live
    assert "harvest.*" not in live


def test_the_help_is_of_what_the_words_choose(capsys):
    topk = help_of(capsys, "train", "sae=topk", "sae.k=7", "logger=wandb")
    assert "\n  sae.k=7\n" in topk
    assert "\n  sae.l1_coefficient=" not in topk
    assert "\n  logger.project=sae-atlas" in topk
    assert "\n  logger.project=" not in help_of(capsys, "train")
    assert help_of(capsys, "train", "sae=nothing") == help_of(capsys, "train")


def test_the_help_of_the_demo_leaves_out_what_the_demo_sets_itself(capsys):
    text = help_of(capsys, "demo")
    for key in ("harvest.run", "train.sae.l1_coefficient", "steer.dictionary"):
        assert f"\n  {key}=" not in text
    assert "\n  train.sae.d_sae=1152\n" in text


def test_a_smaller_configuration_of_a_command_stays_with_another_choice():
    assert build(COMMANDS["demo"], []).train.sae.d_sae == 1152
    assert build(COMMANDS["demo"], ["sae=topk"]).train.sae.d_sae == 1152
    assert build(COMMANDS["demo"], ["preset=smoke", "sae=topk"]).train.sae.d_sae == 768


def test_training_beside_the_model_takes_choices_of_model_and_text():
    words = ["cache=null", "model=gpt2", "data=./texts", "harvest.context_size=64"]
    config = build(COMMANDS["train"], [*words, "hook_name=blocks.3.hook_resid_post"])
    assert config.cache is None
    assert config.harvest.model.name == "gpt2"
    assert config.harvest.data.name == "./texts"
    assert config.harvest.context_size == 64


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["sae=topk", "sae.k=x"], "^sae.k=x: give a whole number$"),
        (["sae=topk", "sae.kk=1"], r"sae\.kk is no key of sae train; nearest: sae\.k,"),
        (["sae=gated", "sae.k=1"], r"sae\.k is no key of sae train"),
    ],
)
def test_a_refusal_knows_the_keys_of_the_chosen_architecture(words, sentence):
    with pytest.raises(UserError, match=sentence):
        build(COMMANDS["train"], words)


@pytest.mark.parametrize(
    ("word", "right"),
    [
        (
            "hook_names=a,b",
            "give one value, or a list as hook_names=[a,b], or add -m for a run",
        ),
        ("model=gpt2,smollm2", "give one value, or add -m for a run of each"),
    ],
)
def test_a_command_without_grids_says_what_several_values_could_be(word, right, capsys):
    assert main(["harvest", word]) == 2
    assert right in capsys.readouterr().err


def test_the_folder_of_choices_is_the_checkout_s_own():
    assert Path(__file__).resolve().parents[2] / "conf" == CONF


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["model=gpt2"],
            r"harvest\.model has an effect only with cache=null; .* reads runs/default",
        ),
        (["mix_rows=999999"], r"mix_rows=999999 has an effect only with cache=null"),
        (["cache=null", "harvest.n_tokens=999"], r"harvest\.n_tokens is no key of sae train"),
    ],
)
def test_keys_of_a_harvest_that_would_do_nothing_in_training_are_refused(words, sentence):
    with pytest.raises(UserError, match=sentence):
        build(COMMANDS["train"], words)


def test_a_key_that_the_usual_recipe_lacks_chooses_the_first_that_has_it(capsys):
    found = build(COMMANDS["train"], ["sae.k=8", "sae.d_sae=64"])
    assert found.sae == CLASSES["sae"]["topk"](k=8, d_sae=64)
    said = capsys.readouterr().err
    assert said.startswith("sae.k is given, so sae=topk is chosen; batchtopk, matr")
    assert build(COMMANDS["train"], ["sae.bandwidth=0.5"]).sae.architecture == "jumprelu"


def test_one_name_where_a_list_is_meant_is_a_list_of_one():
    assert build(COMMANDS["train"], ["control=frozen_decoder"]).control == ["frozen_decoder"]
    assert build(COMMANDS["steer"], ["features=7"]).features == [7]
    hooks = build(COMMANDS["harvest"], ["hook_names=blocks.1.hook_resid_post"]).hook_names
    assert hooks == ["blocks.1.hook_resid_post"]
