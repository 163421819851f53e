"""The command `sae` as a process: quick answers, version, sweeps."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys

import pytest

import sae
from sae.base.interrupts import deferred_interrupts
from sae.base.provenance import code_version
from sae.cli import main
from sae.config.commands import COMMANDS, FAMILIES, python_calls
from sae.config.keys import idle_keys, is_below, keys

SMALL = ["sae.d_sae=16", "training_tokens=2048", "train_batch_size_tokens=256"]


def run(*words: str, **settings) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "sae.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, **settings)


def test_the_help_answers_in_under_a_second_and_without_torch():
    code = (
        "import sys; from sae.cli import main; main(['--help']); "
        "print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert done.stdout.splitlines()[-1] == "False False"
    single = [name for name in COMMANDS if " " not in name]
    assert all(f"\n  {name} " in done.stdout for name in (*single, *FAMILIES))
    assert spent < 1


def test_importing_sae_imports_neither_torch_nor_hydra():
    heavy = "{'torch', 'hydra', 'zarr'}"
    code = f"import sys, sae; dir(sae); print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("word", ["--help", "-h", "help"])
def test_every_way_to_ask_for_help_lists_the_commands(word, capsys):
    assert main([word]) == 0
    assert "sae COMMAND --help" in capsys.readouterr().out


def test_the_help_of_a_command_without_groups_names_none(capsys):
    assert main(["export", "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("sae export [RUN] [key=value ...]\n")
    assert "Groups" not in shown
    assert main(["train", "--help"]) == 0
    assert capsys.readouterr().out.startswith("sae train [group=choice ...] [key=value ...]\n")


@pytest.mark.parametrize(
    "words", [["train"], ["cache"], ["cache", "verify"], ["train", "sae=topk"]]
)
def test_help_before_the_words_is_help_behind_them(words, capsys):
    shown = []
    for asked in (["help", *words], [*words, "--help"]):
        assert main(asked) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] != ""


def test_help_of_what_is_no_command_is_refused_in_a_sentence(capsys):
    assert main(["help", "trian"]) == 2
    assert "trian is no command; nearest: train" in capsys.readouterr().err


def test_the_package_is_the_command_and_knows_its_version():
    done = subprocess.run(
        [sys.executable, "-m", "sae", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{sae.__version__}\n" == f"{code_version()}\n"


def test_a_word_without_a_key_is_refused_with_the_likely_one(capsys):
    assert main(["train", "runs/mine"]) == 2
    assert (
        "runs/mine: not of the form key=value; write run=runs/mine" in capsys.readouterr().err
    )


def test_no_words_at_all_show_the_help(capsys):
    assert main([]) == 0
    assert "Start with: sae demo" in capsys.readouterr().out


def test_the_version_is_printed_alone(capsys):
    assert main(["--version"]) == 0
    printed = capsys.readouterr().out
    assert printed == f"{code_version()}\n"
    assert re.match(r"\d+\.\d+", printed)


@pytest.mark.slow
def test_the_help_of_a_command_is_printed_by_the_process():
    done = run("train", "--help")
    assert done.returncode == 0
    idle = idle_keys(sae.TrainConfig())
    listed = [key.name for key in keys(sae.TrainConfig) if not is_below(key.name, idle)]
    assert all(f"  {name}=" in done.stdout for name in listed)


def test_the_hooks_of_a_model_are_listed_from_its_configuration_alone(
    tiny_model, tmp_path, command
):
    shutil.copy(tiny_model / "config.json", tmp_path)
    done = command("harvest", f"model={tmp_path}", "--list-hooks")
    assert done.returncode == 0, done.stderr
    header, *rows = (line.split() for line in done.stdout.splitlines())
    assert header == ["hook_name", "module", "side", "width"]
    assert [row[0] for row in rows if row[0].startswith("blocks.1.")] == [
        f"blocks.1.{name}"
        for name in (
            "hook_resid_pre",
            "hook_resid_post",
            "hook_resid_mid",
            "hook_attn_out",
            "attn.hook_z",
            "hook_mlp_out",
            "mlp.hook_post",
            "mlp.hook_in",
            "hook_mlp_in",
        )
    ]
    assert len(rows) == 3 * 9
    assert ["blocks.2.hook_resid_post", "model.layers.2", "output", "32"] in rows
    assert ["blocks.0.mlp.hook_post", "model.layers.0.mlp.down_proj", "input", "64"] in rows


def test_a_listing_of_hooks_without_widths_leaves_the_column_empty(
    tiny_model, monkeypatch, capsys
):
    monkeypatch.setattr("sae.commands.harvest.measured", lambda _, sites: sites)
    assert main(["harvest", "--list-hooks", f"model={tiny_model}"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[-1].split() == [
        "blocks.2.hook_mlp_in",
        "model.layers.2.post_attention_layernorm",
        "input",
    ]


def test_a_model_whose_blocks_have_no_names_here_says_so(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "xlnet"}')
    assert main(["harvest", "--list-hooks", f"model={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert "(XLNetLMHeadModel) has blocks without TransformerLens names" in said
    assert "module paths" in said


def test_only_harvest_lists_hooks_and_its_help_says_so(capsys):
    assert main(["train", "--list-hooks"]) == 2
    assert "--list-hooks is no flag here; write sae train [" in capsys.readouterr().err
    for command in ("harvest", "train"):
        assert main([command, "--help"]) == 0
        listed = "sae harvest --list-hooks model=" in capsys.readouterr().out
        assert listed == (command == "harvest")


@pytest.mark.slow
def test_hooks_are_listed_for_the_words_of_a_harvest(tiny_model, capsys):
    words = ["run=runs/x", f"model={tiny_model}", "--list-hooks", "hook_names=[blocks.1.x]"]
    assert main(["harvest", *words]) == 0
    assert "blocks.1.hook_resid_post" in capsys.readouterr().out
    assert main(["harvest", "--list-hooks", "--help"]) == 0
    said = capsys.readouterr().out
    assert "\n  model.name=" in said
    assert "\n  hook_names=" not in said


def test_every_command_is_a_call_of_the_package_and_has_a_public_configuration():
    assert set(python_calls()) <= set(sae.__all__)
    assert {name for name in COMMANDS if "--" not in name} == {
        command.name for command in python_calls().values()
    }
    for command in python_calls().values():
        assert getattr(sae, command.config) is command.config_class()


def test_an_interruption_ends_with_a_hint_and_status_130(monkeypatch, capsys, tmp_path):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("sae.commands.train.run", interrupted)
    assert main(["train", f"run={tmp_path}"]) == 130
    assert capsys.readouterr().err == "interrupted; run the same command again to go on\n"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_another_request_to_stop_ends_with_its_own_status(
    monkeypatch, capsys, tmp_path, number, status
):
    def waits(_):
        with deferred_interrupts() as interrupts:
            os.kill(os.getpid(), number)
            assert interrupts.asked is not None
            raise interrupts.asked

    monkeypatch.setattr("sae.commands.train.run", waits)
    assert main(["train", f"run={tmp_path}"]) == status
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == "interrupted; run the same command again to go on"


def test_several_values_go_to_one_sweep_and_a_single_one_does_not(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("sae.commands.train.run_all", asked.append)
    monkeypatch.setattr("sae.commands.train.run", asked.append)
    assert main(["train", f"run={tmp_path}", "sae.d_sae=16,32"]) == 0
    assert main(["train", f"run={tmp_path}", "sae.d_sae=48"]) == 0
    several, one = asked
    assert [config.sae.d_sae for config in several] == [16, 32]
    assert one.sae.d_sae == 48


def test_the_help_says_when_to_use_commas_alone_and_when_with_m(capsys):
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert "sae train key=1,2         several dictionaries side by side" in said
    assert "sae COMMAND -m key=1,2    a run for each value instead" in said
    for command in ("train", "eval"):
        assert main([command, "--help"]) == 0
        said = capsys.readouterr().out
        assert ("side by side in this process" in said) == (command == "train")
        assert "-m" in said


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch, tmp_path):
    def defect(_):
        raise ZeroDivisionError

    monkeypatch.setattr("sae.commands.train.run", defect)
    with pytest.raises(ZeroDivisionError):
        main(["train", f"run={tmp_path}"])


@pytest.mark.slow
def test_a_sweep_trains_one_dictionary_for_each_value(tmp_path, tiny_run, command):
    words = ["train", "-m", f"run={tmp_path}", f"cache={tiny_run / 'cache.zarr'}", *SMALL]
    done = command(*words, "sae.l1_coefficient=0.5,2", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    folders = {p.name for p in (tmp_path / "dictionaries").iterdir()}
    assert folders == {"standard-16-l1-0.5", "standard-16-l1-2"}
    for name in folders:
        config = json.loads((tmp_path / "dictionaries" / name / "cfg.json").read_text())
        assert f"-l1-{config['metadata']['sae_atlas']['sae']['l1_coefficient']:g}" in name
    # What a sweep of Hydra leaves stays inside the run.
    assert not (tmp_path / "multirun").exists()
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("optim.lr=1e-3,0", "sae train: optim.lr=0.0 is impossible; give more than 0"),
        ("sae.d_sea=8,16", "sae train: sae.d_sea is no key of sae train; nearest: sae.d_sae"),
        ("optim.lr=[1", "sae train: optim.lr=[1: not of the form key=value"),
    ],
)
def test_a_bad_value_in_a_sweep_is_refused_before_its_first_run(
    word, sentence, tmp_path, tiny_run, command
):
    words = [
        "train",
        "-m",
        f"run={tmp_path / 'new'}",
        f"cache={tiny_run / 'cache.zarr'}",
        *SMALL,
    ]
    done = command(*words, word, folder=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(sentence)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_refusal_inside_a_run_of_a_sweep_is_one_sentence(tmp_path):
    done = run("train", "-m", f"run={tmp_path}", "sae.l1_coefficient=1,2", cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("sae train: ")
    assert "cache.zarr is not an activation cache; make one with: sae harvest" in line


def test_a_sweep_whose_runs_would_write_one_folder_is_refused_before_it_starts(
    tmp_path, tiny_run, capsys
):
    words = ["train", "-m", f"run={tmp_path}", f"cache={tiny_run}/cache.zarr"]
    assert main([*words, "optim.beta1=0.5,0.9"]) == 2
    assert "would both write" in capsys.readouterr().err
    assert not (tmp_path / "training").exists()


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_gets_no_traceback():
    command = f"{sys.executable} -m sae.cli train --help | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("sae train")
    assert not done.stderr
