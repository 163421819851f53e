"""Configuration files and folders of one's own, and settings that are kept to be given back."""

import pytest

import sae
from sae.base.errors import UserError
from sae.cli import main
from sae.config.commands import COMMANDS
from sae.config.compose import build
from sae.run import keep_settings, settings_file

TRAIN = COMMANDS["train"]


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "run: it's, a=b ${here}\n"
        "sae: {architecture: topk, k: 8}\n"
        "optim: {lr: 1e-3}\n"
        "harvest: {model: gpt2, hook_names: blocks.1.hook_resid_post}\n"
        "logger: wandb\n"
    )
    return path


def test_a_file_says_what_the_same_words_say(mine):
    found = build(TRAIN, [f"config={mine}", "cache=null"])
    assert found == sae.TrainConfig(
        run="it's, a=b ${here}",
        cache=None,
        sae=sae.TopKConfig(k=8),
        optim=sae.OptimConfig(lr=1e-3),
        harvest=sae.Reading(
            model=sae.ModelConfig(name="gpt2"), hook_names=["blocks.1.hook_resid_post"]
        ),
        logger=sae.LoggerConfig(name="wandb"),
    )


def test_words_have_the_last_say_wherever_the_file_stands(mine):
    found = build(TRAIN, ["sae.k=16", "run=r", f"config={mine}", "cache=null"])
    assert (found.sae, found.run) == (sae.TopKConfig(k=16), "r")
    # Another recipe takes of the file's keys those that it has.
    assert build(
        TRAIN, [f"config={mine}", "cache=null", "sae=batchtopk"]
    ).sae == sae.BatchTopKConfig(k=8)


def test_a_file_is_the_base_of_a_sweep(mine, monkeypatch):
    found = []
    monkeypatch.setattr("sae.commands.train.run_all", found.extend)
    assert main(["train", f"config={mine}", "cache=null", "sae.k=4,8", "seed=1,2"]) == 0
    assert [(one.sae.k, one.seed) for one in found] == [(4, 1), (4, 2), (8, 1), (8, 2)]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "there is no such file; give a YAML file of keys"),
        ("- a\n- b\n", "holds no keys with values"),
        ("a: [b\n", "cannot be read as YAML"),
        ("sede: 1\n", "sede is no key of sae train; nearest: seed"),
        ("sae: {kk: 1}\n", r"sae\.kk is no key of sae train; nearest: "),
        ("seed: x\n", "seed='x': give a whole number"),
        ("optim: fast\n", "optim='fast' is no OptimConfig"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_sentence(text, sentence, tmp_path):
    path = tmp_path / "wrong.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=sentence):
        build(TRAIN, [f"config={path}"])


def test_choices_and_presets_of_one_s_own_stand_beside_those_of_the_package(
    tmp_path, monkeypatch
):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tiny.yaml").write_text("name: ./tiny\n")
    (tmp_path / "preset" / "train").mkdir(parents=True)
    preset = "# @package _global_\nseed: 7\nsae:\n  d_sae: 64\n"
    (tmp_path / "preset" / "train" / "mine.yaml").write_text(preset)
    monkeypatch.setenv("SAE_CONFIG_DIR", str(tmp_path))
    assert build(COMMANDS["harvest"], ["model=tiny"]).model.name == "./tiny"
    assert build(COMMANDS["harvest"], ["model=gpt2"]).model.name == "gpt2"
    found = build(TRAIN, ["preset=mine", "run=r"])
    assert (found.seed, found.sae.d_sae, found.run) == (7, 64, "r")


@pytest.mark.parametrize("flag", [["--config-dir={}"], ["--config-dir", "{}"]])
def test_a_flag_names_the_folder_for_one_command(flag, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SAE_CONFIG_DIR", "")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tiny.yaml").write_text("name: ./tiny\n")
    words = [word.format(tmp_path) for word in flag]
    assert main(["harvest", *words, "--help"]) == 0
    assert "gpt2, smollm2, tiny" in capsys.readouterr().out


def test_a_folder_that_is_not_there_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("SAE_CONFIG_DIR", "")
    assert main(["train", "--config-dir=/nowhere/at/all"]) == 2
    assert "there is no such folder" in capsys.readouterr().err
    assert main(["train", "--config-dir"]) == 2
    assert "--config-dir needs a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train", ["sae=jumprelu", "sae.d_sae=64", "name='1e-3'", "control=soft_frozen"]),
        ("train", ["cache=null", "model=gpt2", "run='1e-3'"]),
        ("harvest", ["data=pile", "hook_names=[a,b]"]),
        ("patch", ["preset=ioi"]),
        ("demo", ["preset=smoke"]),
        ("patchscope", ["text='two\nlines: {a}'"]),
        ("truth", ["world=mini"]),
    ],
)
def test_settings_that_were_kept_give_the_same_configuration_back(command, words, tmp_path):
    config = build(COMMANDS[command], words)
    artefact = tmp_path / "made-l1-1.5"
    keep_settings(config, command, artefact)
    kept = settings_file(artefact)
    assert kept.name == "made-l1-1.5.yaml"
    assert build(COMMANDS[command], [f"config={kept}"]) == config
