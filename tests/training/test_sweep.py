"""Several dictionaries in one pass: each as if alone, killed, in turns, extended."""

import dataclasses
import json
import os
import random
import resource
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.files import unseal
from support.world import HOOK

import sae
from sae.base.errors import UserError
from sae.base.files import read_json_lines
from sae.commands import train
from sae.dictionary.metadata import metadata_of
from sae.training.checkpoint import CheckpointConfig, Checkpoints
from sae.training.config import SweepConfig, TrainConfig
from sae.training.loop import Trainer
from sae.training.optim import OptimConfig
from sae.training.turns import Load, bytes_together, turns

ARCHITECTURES = {
    "standard": sae.StandardConfig(d_sae=48, l1_coefficient=1.0),
    "batchtopk": sae.BatchTopKConfig(d_sae=64, k=6),
    "jumprelu": sae.JumpReLUConfig(d_sae=48, target_l0=6.0),
}


def config(tiny_run, run, **changes):
    settings = {
        "run": str(run),
        "cache": str(tiny_run / "cache.zarr"),
        "sae": ARCHITECTURES["standard"],
        "training_tokens": 12_800,
        "train_batch_size_tokens": 128,
        "sweep": SweepConfig(evaluate=False),
    }
    return TrainConfig(**{**settings, **changes})


def three(tiny_run, run, **changes):
    return [config(tiny_run, run, sae=one, **changes) for one in ARCHITECTURES.values()]


def weights(dictionary):
    return {
        field.name: value
        for field in dataclasses.fields(dictionary)
        if isinstance(value := getattr(dictionary, field.name), torch.Tensor)
    }


def equal(a, b):
    found, wanted = weights(a), weights(b)
    return found.keys() == wanted.keys() and all(
        torch.equal(found[name], wanted[name]) for name in found
    )


def figures(one):
    return read_json_lines(one.state_path / "metrics.jsonl")


@pytest.mark.slow
def test_each_dictionary_of_a_pass_is_bit_for_bit_what_it_is_alone(tiny_run, tmp_path):
    grid = three(tiny_run, tmp_path / "together")
    grid.append(replace(grid[0], seed=7))
    grid.append(replace(grid[0], optim=OptimConfig(lr=1e-3), training_tokens=6_400))
    together = sae.sweep(grid)
    for one, found in zip(grid, together, strict=True):
        alone = replace(one, run=str(tmp_path / "alone"))
        assert equal(sae.train(alone), found), one.id
        assert figures(alone) == figures(one)


@pytest.mark.slow
def test_rows_are_read_once_for_all_that_read_the_same(tiny_run, tmp_path, monkeypatch):
    asked = []
    real = train.open_source

    def counted(*args):
        asked.append(args[0].id)
        return real(*args)

    monkeypatch.setattr(train, "open_source", counted)
    same = three(tiny_run, tmp_path)
    other_order = replace(same[0], shuffle_seed=1)
    other_size = replace(same[0], train_batch_size_tokens=64, name="half")
    sae.sweep([*same, other_order, other_size])
    assert asked == [same[0].id, other_order.id, "half"]


@pytest.mark.slow
def test_too_little_memory_means_turns_and_the_same_weights(tiny_run, tmp_path, capsys):
    grid = three(tiny_run, tmp_path / "turns")
    together = sae.sweep(three(tiny_run, tmp_path / "together"))
    assert "3 dictionaries in one pass" in capsys.readouterr().err
    alone = max(bytes_together([Load.of(one, [32])]) for one in grid)
    little = SweepConfig(evaluate=False, memory_gb=alone / 1e9)
    found = sae.sweep([replace(one, sweep=little) for one in grid])
    assert "3 dictionaries in 3 turns of 1 and 1 and 1" in capsys.readouterr().err
    assert all(equal(a, b) for a, b in zip(found, together, strict=True))


def test_a_turn_holds_as_many_as_fit_and_one_that_never_fits_is_refused():
    loads = [Load(str(i), d_sae=10**6, latent_parameters=1000) for i in range(5)]
    two = bytes_together(loads[:2])
    assert turns(loads, two) == [range(2), range(2, 4), range(4, 5)]
    assert turns(loads, two - 1) == [range(i, i + 1) for i in range(5)]
    # 12 bytes of weights and moments for each of 10^9 parameters, and 22 for folding them.
    with pytest.raises(UserError, match=r"0 needs 34\.00 GB of memory to train, and 10\.00 GB"):
        turns(loads, 10e9)


@pytest.mark.parametrize("free", [0.3e9, 1e9, 10e9])
def test_the_width_that_is_named_fits_and_one_more_does_not(free):
    load = Load("x", d_sae=10**8, latent_parameters=2 * 576 + 4, batch_bytes=4 << 20)
    with pytest.raises(
        UserError, match=r"x needs .* GB may be used .*; sae.d_sae=\d+ would fit"
    ):
        turns([load], free)
    largest = load.largest(free)
    assert turns([replace(load, d_sae=largest)], free) == [range(1)]
    assert bytes_together([replace(load, d_sae=largest + 1)]) > free


def test_one_training_that_does_not_fit_is_refused_before_it_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr("sae.training.train.make_trainer", lambda *_: pytest.fail("made"))
    rows = [torch.randn(256, 576, generator=torch.Generator().manual_seed(0))]
    wide = {"sae": sae.StandardConfig(d_sae=100_000_000), "training_tokens": 256}
    settings = {"run": str(tmp_path), "cache": None, "train_batch_size_tokens": 128, **wide}
    sentence = r"standard-100000000-l1-4 needs [\d,]+\.\d\d GB .*; sae.d_sae=\d+ would fit"
    with pytest.raises(UserError, match=sentence):
        sae.train(**settings, rows=rows)
    assert not (tmp_path / "dictionaries").exists()
    little = SweepConfig(memory_gb=1e-4)
    small = settings | {"sae": sae.StandardConfig(d_sae=64), "sweep": little}
    with pytest.raises(UserError, match=r"0\.00 GB may be used .*; no width would fit"):
        sae.train(**small, rows=rows)


@pytest.mark.slow
def test_one_that_diverges_is_named_and_the_others_are_finished(tiny_run, tmp_path):
    grid = three(tiny_run, tmp_path, log_every_steps=1)
    grid.append(replace(grid[0], optim=OptimConfig(lr=1e18)))
    with pytest.raises(UserError, match=r"standard-48-l1-1-lr-1e\+18: .* lower optim\.lr"):
        sae.sweep(grid)
    assert [one.dictionary_path.exists() for one in grid] == [True, True, True, False]


def sweep_in_child(configs):
    sae.sweep(configs)


@pytest.mark.slow
def test_a_sweep_killed_at_six_random_instants_goes_on_to_the_same_bits(
    tiny_run, tmp_path, processes
):
    often = {"checkpoint": CheckpointConfig(every_seconds=0.02), "training_tokens": 76_800}
    often["eval_every_steps"] = 100
    killed, whole = (three(tiny_run, tmp_path / n, **often) for n in ("killed", "whole"))
    seed = time.time_ns()
    draw, steps = random.Random(seed), [0]
    for _ in range(6):
        child = processes.Process(target=sweep_in_child, args=(killed,))
        child.start()
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and newest(killed) == steps[-1]:
            time.sleep(0.005)
        child.join(draw.uniform(0, 0.2))
        child.kill()
        child.join()
        steps.append(newest(killed))
    assert len(set(steps)) > 5, steps
    assert steps[-1] < 600, "it was over before the last kill"
    for grid in (killed, whole):
        child = processes.Process(target=sweep_in_child, args=(grid,))
        child.start()
        child.join()
        assert child.exitcode == 0
    for one, other in zip(killed, whole, strict=True):
        assert equal(*(sae.load(str(c.dictionary_path)) for c in (one, other))), seed
        assert figures(one) == figures(other)
        assert [line["step"] for line in figures(one)] == list(range(10, 601, 10))
        left = [sorted(p.name for p in c.state_path.iterdir()) for c in (one, other)]
        assert left[0] == left[1]
        assert "step_0000000600.pt" in left[0]


def newest(configs):
    found = (int(p.stem[5:]) for c in configs for p in c.state_path.glob("step_*.pt"))
    return max(found, default=0)


@pytest.mark.slow
def test_members_at_different_steps_wait_for_each_other(tiny_run, tmp_path, monkeypatch):
    grid, whole = three(tiny_run, tmp_path / "x"), three(tiny_run, tmp_path / "whole")
    interrupted(monkeypatch, 20, lambda: sae.train(grid[0]))
    interrupted(monkeypatch, 50, lambda: sae.train(grid[1]))
    found, expected = sae.sweep(grid), sae.sweep(whole)
    assert all(equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(figures(a) == figures(b) for a, b in zip(grid, whole, strict=True))


def interrupted(monkeypatch, step, work):
    """Ctrl-C after a trainer's step number `step`."""
    real = Trainer.update

    def update(self, *args):
        report = real(self, *args)
        if report.step == step:
            os.kill(os.getpid(), signal.SIGINT)
        return report

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", update)
        with pytest.raises(KeyboardInterrupt):
            work()


@pytest.mark.slow
def test_a_member_that_waits_at_a_step_to_be_kept_makes_nobody_save_at_every_step(
    tiny_run, tmp_path, monkeypatch
):
    kept = CheckpointConfig(keep_every_steps=20)
    grid = three(tiny_run, tmp_path, checkpoint=kept)
    interrupted(monkeypatch, 20, lambda: sae.train(grid[0]))
    saved = []
    real = Checkpoints.save

    def counted(self, step, *rest):
        saved.append(step)
        real(self, step, *rest)

    monkeypatch.setattr(Checkpoints, "save", counted)
    sae.sweep(grid)
    assert set(saved) == {20, 40, 60, 80, 100}


def test_what_a_kill_left_half_written_is_removed(tiny_run, tmp_path):
    one = config(tiny_run, tmp_path)
    left = one.state_path / ".step_0000000010.pt.0123abcd.partial"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half a checkpoint")
    dictionary = one.dictionary_path.with_name(f".{one.id}.0123abcd.partial")
    dictionary.mkdir(parents=True)
    (dictionary / "cfg.json").write_text("{")
    other = dictionary.with_name(".other.0123abcd.partial")
    other.mkdir()
    sae.train(one)
    assert not left.exists()
    assert not dictionary.exists()
    assert other.exists(), "another process may be writing it"


def test_checkpoints_are_kept_as_asked(tiny_run, tmp_path):
    kept = CheckpointConfig(every_seconds=0.0, keep_last=2, keep_every_steps=30)
    one = config(tiny_run, tmp_path, checkpoint=kept)
    sae.train(one)
    steps = sorted(int(p.stem[5:]) for p in one.state_path.glob("step_*.pt"))
    assert {30, 60, 90, 100} <= set(steps)
    assert len(set(steps) - {30, 60, 90}) == 2


def test_a_longer_training_extends_a_shorter_one(tiny_run, tmp_path):
    short = config(tiny_run, tmp_path, name="x")
    first = sae.train(short)
    longer = replace(short, training_tokens=25_600)
    with pytest.raises(UserError, match="training_tokens=12800, in 1 parts; add extend=true"):
        sae.train(longer)
    second = sae.train(replace(longer, extend=True))
    assert not equal(first, second)
    assert metadata_of(second)["sae_atlas"]["identity"]["extended_at"] == [100]
    assert [line["step"] for line in figures(short)] == list(range(10, 201, 10))
    assert figures(short)[-1]["losses/overall_loss"] < figures(short)[9]["losses/overall_loss"]
    stamp = (longer.dictionary_path / "cfg.json").stat().st_mtime_ns
    assert equal(sae.train(replace(longer, extend=True)), second)
    assert (longer.dictionary_path / "cfg.json").stat().st_mtime_ns == stamp


def test_a_rate_that_nobody_gave_may_fall_where_a_training_is_extended(
    tiny_run, tmp_path, monkeypatch
):
    short = config(tiny_run, tmp_path, name="x")
    sae.train(short)
    monkeypatch.setattr("sae.training.optim._SHORT", short.n_steps * short.sae.d_sae)
    longer = replace(short, training_tokens=25_600)
    assert longer.lr == pytest.approx(short.lr / 2**0.5)
    with pytest.raises(UserError, match="training_tokens=12800, in 1 parts; add extend=true"):
        sae.train(longer)
    second = sae.train(replace(longer, extend=True))
    assert metadata_of(second)["sae_atlas"]["optim"]["lr"] == longer.lr
    assert metadata_of(second)["sae_atlas"]["identity"]["extended_at"] == [100]


def with_keys_of_before(identity):
    return {"output_hook_name" if k == "hook_name_out" else k: v for k, v in identity.items()}


def test_what_was_trained_before_a_key_was_renamed_is_reused_and_goes_on(tiny_run, tmp_path):
    short = config(tiny_run, tmp_path, name="x")
    first = sae.train(short)
    path = short.dictionary_path / "cfg.json"
    said = json.loads(path.read_text())
    ours = said["metadata"]["sae_atlas"]
    ours["identity"] = with_keys_of_before(ours["identity"])
    unseal(path.parent)
    path.write_text(json.dumps(said))
    (checkpoint,) = short.state_path.glob("step_*.pt")
    saved = torch.load(checkpoint, weights_only=True)
    saved["identity"] = with_keys_of_before(saved["identity"])
    unseal(checkpoint.parent)
    torch.save(saved, checkpoint)
    stamp = path.stat().st_mtime_ns
    assert equal(sae.train(short), first)
    assert path.stat().st_mtime_ns == stamp
    second = sae.train(replace(short, training_tokens=25_600, extend=True))
    identity = metadata_of(second)["sae_atlas"]["identity"]
    assert identity["extended_at"] == [100]
    assert "output_hook_name" not in identity


def test_an_extension_that_is_interrupted_goes_on_to_the_same_bits(
    tiny_run, tmp_path, monkeypatch
):
    found = []
    for run, stops in ((tmp_path / "whole", []), (tmp_path / "broken", [130, 170])):
        short = config(tiny_run, run, name="x")
        sae.train(short)
        longer = replace(short, training_tokens=25_600, extend=True)
        for stop in stops:
            interrupted(monkeypatch, stop, lambda: sae.train(longer))  # noqa: B023
        found.append((sae.train(longer), figures(longer)))
    assert equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_a_training_begins_with_the_weights_of_another(tiny_run, tmp_path):
    first = sae.train(config(tiny_run, tmp_path, training_tokens=25_600, name="x"))
    folder = str(tmp_path / "dictionaries/x")
    # So small a rate that it stays what it was.
    gently = {"optim": OptimConfig(lr=1e-12), "training_tokens": 1_280, "init_from": folder}
    second = sae.train(config(tiny_run, tmp_path, name="y", **gently))
    for name, value in weights(first).items():
        torch.testing.assert_close(weights(second)[name], value, rtol=1e-4, atol=1e-5)
    wide = replace(ARCHITECTURES["standard"], d_sae=50)
    with pytest.raises(UserError, match=r"the dictionary of init_from has .*48"):
        sae.train(config(tiny_run, tmp_path, name="z", sae=wide, init_from=folder))


def test_a_changed_beginning_is_another_training(tiny_run, tmp_path):
    for name, seed in (("x", 1), ("y", 2)):
        sae.train(config(tiny_run, tmp_path, name=name, seed=seed))
    begun = [
        config(tiny_run, tmp_path, name="z", init_from=str(tmp_path / f"dictionaries/{name}"))
        for name in ("x", "y")
    ]
    sae.train(begun[0])
    with pytest.raises(UserError, match=r"init_from is [0-9a-f]{16} there, [0-9a-f]{16} here"):
        sae.train(begun[1])


@pytest.mark.slow
def test_a_second_process_that_trains_the_same_is_refused(
    tiny_run, tmp_path, processes, monkeypatch
):
    long = config(tiny_run, tmp_path, training_tokens=12_800_000)
    child = processes.Process(target=sweep_in_child, args=([long],))
    child.start()
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (long.state_path / "metrics.jsonl").exists():
            time.sleep(0.01)
        with pytest.raises(UserError, match=rf"another process \(process {child.pid} on .*\)"):
            sae.train(long)
    finally:
        child.kill()
        child.join()


def test_a_checkpoint_of_another_configuration_is_refused_and_the_keys_are_named(
    tiny_run, tmp_path, monkeypatch
):
    begun = config(tiny_run, tmp_path, name="x")
    interrupted(monkeypatch, 20, lambda: sae.train(begun))
    other = replace(begun, sae=replace(begun.sae, l1_coefficient=2.0), seed=5)
    with pytest.raises(
        UserError,
        match=r"step_0000000020\.pt is a checkpoint of another .*: sae\.l1_coefficient is 1\.0 "
        r"there, 2\.0 here, seed is 42 there, 5 here; give this dictionary another name",
    ):
        sae.train(other)


def test_a_cache_that_changed_is_refused_and_both_digests_are_named(
    tiny_run, tmp_path, monkeypatch, tiny_model, tiny_text
):
    from support.world import harvest_settings

    begun = config(tiny_run, tmp_path)
    interrupted(monkeypatch, 20, lambda: sae.train(begun))
    settings = harvest_settings(tmp_path, tiny_model, tiny_text) | {"n_tokens": 4096}
    smaller = sae.harvest(**settings)
    with pytest.raises(UserError, match=f"cache is digest .* there, digest {smaller.digest}"):
        sae.train(replace(begun, cache=smaller.location))


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    tiny_run, tmp_path, monkeypatch
):
    begun = config(tiny_run, tmp_path)
    interrupted(monkeypatch, 20, lambda: sae.train(begun))
    (checkpoint,) = begun.state_path.glob("step_*.pt")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (checkpoint.stat().st_size // 2, before[1]))
    try:
        with pytest.raises(
            UserError, match=r"step_\d+\.pt: the system does not allow a file of this"
        ):
            sae.train(begun)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [p.name for p in begun.state_path.glob("*step_*")] == [checkpoint.name]
    whole = sae.train(config(tiny_run, tmp_path / "whole"))
    assert equal(sae.train(begun), whole)


def test_a_full_disk_leaves_the_checkpoint_before_as_it_was(
    tiny_run, tmp_path, monkeypatch, small_disk
):
    disk = small_disk(4 << 20)
    begun = config(tiny_run, disk / "run")
    interrupted(monkeypatch, 20, lambda: sae.train(begun))
    ballast = disk / "ballast"
    ballast.write_bytes(b"-" * (shutil.disk_usage(disk).free - (20 << 10)))
    with pytest.raises(UserError, match=r"step_\d+\.pt: the disk is full; free some space"):
        sae.train(begun)
    assert [p.name for p in begun.state_path.glob("*step_*")] == ["step_0000000020.pt"]
    ballast.unlink()
    assert equal(sae.train(begun), sae.train(config(tiny_run, tmp_path / "whole")))


def test_held_out_rows_and_densities_are_looked_at_on_a_schedule(tiny_run, tmp_path):
    one = config(tiny_run, tmp_path, eval_every_steps=25, log_every_steps=10)
    dictionary = sae.train(one)
    looks = [line for line in figures(one) if "sparsity/l0" in line]
    assert [line["step"] for line in looks] == [25, 50, 75, 100]
    for line in looks:
        counts = line["plots/feature_density_line_chart"]["counts"]
        assert sum(counts) <= 48
        assert line["sparsity/below_1e-6"] <= line["sparsity/below_1e-5"]
    cache = sae.open_cache(tiny_run / "cache.zarr")
    keep = torch.from_numpy(cache.text_rows() & cache.held_out[:, None])
    x = cache.read(cache.hook_names[0], slice(0, len(keep)))[keep].double()
    x_hat = dictionary.decode(dictionary.encode(x.float())).double()
    expected = 1 - (x - x_hat).square().sum() / (x - x.mean(0)).square().sum()
    found = looks[-1]["reconstruction_quality/explained_variance"]
    assert found == pytest.approx(float(expected), abs=1e-6)


def test_no_more_held_out_rows_are_looked_at_than_asked_for(tiny_run, tmp_path):
    found = []
    for n in (64, 512):
        one = config(tiny_run, tmp_path, n_eval_rows=n, eval_every_steps=50, name=f"x{n}")
        sae.train(one)
        found.append(figures(one)[-1]["reconstruction_quality/mse"])
    assert found[0] != found[1]


def test_looking_changes_no_weights(tiny_run, tmp_path):
    often = config(tiny_run, tmp_path / "often", eval_every_steps=1, log_every_steps=1)
    seldom = config(tiny_run, tmp_path / "seldom", log_every_steps=1000)
    assert equal(sae.train(often), sae.train(seldom))


@pytest.mark.slow
def test_a_sweep_in_wandb_is_a_group_of_runs(tiny_run, tmp_path):
    import subprocess
    import sys

    script = (
        "import sae\n"
        "from sae import LoggerConfig, StandardConfig, SweepConfig, TrainConfig\n"
        "logger = LoggerConfig(name='wandb', mode='offline')\n"
        f"sae.sweep([TrainConfig(run={str(tmp_path)!r}, logger=logger,\n"
        f"    cache={str(tiny_run / 'cache.zarr')!r}, training_tokens=2560,\n"
        "    sae=StandardConfig(d_sae=32, l1_coefficient=c), train_batch_size_tokens=128,\n"
        "    sweep=SweepConfig(evaluate=False)) for c in (1.0, 2.0)])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    from support.wandb_files import leveldb_records
    from wandb.proto import wandb_internal_pb2

    groups, names = set(), set()
    records = list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    for path in records:
        for data in leveldb_records(path.read_bytes()[7:]):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "run":
                groups.add(record.run.run_group)
                names.add(record.run.display_name)
    assert len(records) == 2
    assert names == {"standard-32-l1-1", "standard-32-l1-2"}
    assert len(groups) == 1
    assert groups.pop().startswith(tmp_path.name)


@pytest.mark.slow
def test_a_wandb_that_cannot_be_reached_is_said_once(tiny_run, tmp_path, monkeypatch, capsys):
    class Unreachable:
        def __init__(self, *_):
            raise ConnectionError("no route to host")

    monkeypatch.setattr("sae.training.train.WandbLogger", Unreachable)
    online = sae.LoggerConfig(name="wandb", mode="online")
    grid = [replace(one, logger=online) for one in three(tiny_run, tmp_path)]
    sae.sweep(grid)
    assert capsys.readouterr().err.count("no route to host") == 1
    assert all(figures(one) for one in grid)


@pytest.mark.slow
def test_a_sweep_ends_with_a_comparison_of_its_run(tiny_run, tmp_path, capsys):
    grid = [replace(one, sweep=SweepConfig()) for one in three(tiny_run, tmp_path)]
    sae.sweep(grid)
    pareto = json.loads((tmp_path / "pareto.json").read_text())
    assert {row["id"] for row in pareto["dictionaries"]} == {one.id for one in grid}
    assert pareto["recommended"] in capsys.readouterr().err


def test_runs_with_dictionaries_of_one_name_are_told_apart(tiny_run, tmp_path):
    grid = [config(tiny_run, tmp_path / run) for run in ("a", "b")]
    first, second = sae.sweep(grid)
    assert equal(first, second)
    assert all(one.dictionary_path.exists() for one in grid)


@pytest.mark.slow
def test_figures_of_a_dictionary_that_was_extended_are_not_shown(tiny_run, tmp_path, capsys):
    grid = [replace(one, sweep=SweepConfig()) for one in three(tiny_run, tmp_path)]
    sae.sweep(grid)
    sae.train(replace(grid[0], training_tokens=25_600, extend=True))
    capsys.readouterr()
    sae.sweep([replace(grid[1], seed=3)])
    rows = json.loads((tmp_path / "pareto.json").read_text())["dictionaries"]
    assert grid[0].id not in {row["id"] for row in rows}
    assert f"{grid[0].id} has changed since it was measured" in capsys.readouterr().err


def live(tiny_model, tiny_text, run, **changes):
    harvest = sae.HarvestConfig(
        model=sae.ModelConfig(name=str(tiny_model)),
        data=sae.DataConfig(name=str(tiny_text)),
        context_size=32,
    )
    settings = {"harvest": harvest, "cache": None, "hook_name": HOOK, "mix_rows": 1024}
    return config(Path(), run, **settings | changes)


@pytest.mark.slow
def test_without_a_cache_a_sweep_can_be_interrupted_and_go_on_in_other_groups(
    tiny_model, tiny_text, tmp_path, monkeypatch
):
    def grid(run):
        return [live(tiny_model, tiny_text, run, sae=one) for one in ARCHITECTURES.values()]

    whole, broken = grid(tmp_path / "whole"), grid(tmp_path / "broken")
    interrupted(monkeypatch, 30, lambda: sae.sweep(broken))
    found = [sae.train(broken[0]), *sae.sweep(broken[1:])]
    assert all(equal(a, b) for a, b in zip(sae.sweep(whole), found, strict=True))


def test_without_a_cache_a_training_can_be_extended(tiny_model, tiny_text, tmp_path):
    short = live(tiny_model, tiny_text, tmp_path, name="x")
    sae.train(short)
    found = sae.train(replace(short, training_tokens=25_600, extend=True))
    assert metadata_of(found)["sae_atlas"]["identity"]["extended_at"] == [100]


def test_other_rows_of_ones_own_are_another_training(tmp_path):
    rows = [torch.randn(2000, 16, generator=torch.Generator().manual_seed(i)) for i in (0, 1)]
    one = config(Path(), tmp_path, training_tokens=2_560)
    first = sae.train(one, rows=[rows[0]])
    assert equal(sae.train(one, rows=[rows[0]]), first)
    with pytest.raises(UserError, match=r"rows is digest .* there, digest .* here"):
        sae.train(one, rows=[rows[1]])
