"""Training: seeds, resuming, figures, wandb, and that every option counts."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from support.files import unseal
from support.wandb_files import leveldb_records
from support.world import HOOK

import sae
from sae.architectures import ARCHITECTURES, StandardConfig
from sae.base.errors import UserError
from sae.base.files import read_json_lines
from sae.dictionary.metadata import metadata_of
from sae.training.checkpoint import CheckpointConfig
from sae.training.config import TrainConfig
from sae.training.loop import Trainer
from sae.training.optim import OptimConfig, schedule


def settings(tiny_run, tmp_path, **changes):
    return {
        "run": str(tmp_path),
        "cache": str(tiny_run / "cache.zarr"),
        "sae": StandardConfig(d_sae=48, l1_coefficient=1.0),
        "training_tokens": 12_800,
        "train_batch_size_tokens": 128,
        **changes,
    }


def weights(dictionary):
    return [getattr(dictionary, n) for n in ("W_enc", "b_enc", "W_dec", "b_dec")]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(tiny_run, tmp_path):
    first = sae.train(**settings(tiny_run, tmp_path / "a"))
    again = sae.train(**settings(tiny_run, tmp_path / "b"))
    other = sae.train(**settings(tiny_run, tmp_path / "c", seed=1))
    assert equal(first, again)
    assert not equal(first, other)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"sae": StandardConfig(d_sae=48, l1_coefficient=2.0)},
        {"sae": StandardConfig(d_sae=48, l1_coefficient=1.0, l1_warm_up_fraction=0.5)},
        {"sae": StandardConfig(d_sae=50, l1_coefficient=1.0)},
        {"optim": OptimConfig(lr=1e-3)},
        {"optim": OptimConfig(beta1=0.5)},
        {"optim": OptimConfig(beta2=0.9)},
        {"optim": OptimConfig(lr_warm_up_steps=50)},
        {"optim": OptimConfig(lr_decay_steps=80)},
        {"training_tokens": 9_600},
        {"train_batch_size_tokens": 64},
        {"max_norm_multiple": 1.0},
    ],
    ids=str,
)
def test_every_option_changes_the_weights(tiny_run, tmp_path, change):
    plain = sae.train(**settings(tiny_run, tmp_path / "a"))
    changed = sae.train(**settings(tiny_run, tmp_path / "b", **change))
    assert plain.d_sae != changed.d_sae or not equal(plain, changed)


@pytest.mark.slow
def test_a_short_dead_window_counts_more_dead_latents(tiny_run, tmp_path):
    dead = []
    for window in (0.01, 1.0):
        run = tmp_path / str(window)
        strong = StandardConfig(d_sae=48, l1_coefficient=6.0)
        sae.train(**settings(tiny_run, run, sae=strong, dead_feature_window=window))
        lines = read_json_lines(next(run.glob("training/*/metrics.jsonl")))
        dead.append(sum(line["sparsity/dead_features"] for line in lines))
    assert dead[0] > dead[1]


def test_the_loss_falls_and_a_larger_coefficient_means_fewer_active_latents(tiny_run):
    curves = {
        n: read_json_lines(tiny_run / f"training/{n}/metrics.jsonl") for n in ("weak", "strong")
    }
    for lines in curves.values():
        assert lines[-1]["losses/mse_loss"] < lines[0]["losses/mse_loss"]
        assert lines[-1]["metrics/explained_variance"] > 0.5
    assert curves["strong"][-1]["metrics/l0"] < curves["weak"][-1]["metrics/l0"]
    expected = {"losses/overall_loss", "losses/mse_loss", "losses/l1_loss", "metrics/l0"}
    expected |= {"metrics/explained_variance", "sparsity/dead_features"}
    assert expected <= set(curves["weak"][-1])


def interrupted_at(step, monkeypatch):
    """Ctrl-C while that step is computed."""
    real = Trainer.update

    def interrupted(self, *args):
        report = real(self, *args)
        if report.step == step:
            os.kill(os.getpid(), signal.SIGINT)
        return report

    monkeypatch.setattr(Trainer, "update", interrupted)


def figures_of(run):
    return read_json_lines(next(run.glob("training/*/metrics.jsonl")))


@pytest.mark.slow
@pytest.mark.usefixtures("two_threads")
def test_ctrl_c_saves_and_the_training_ends_in_the_same_bits(tiny_run, tmp_path, monkeypatch):
    whole = sae.train(**settings(tiny_run, tmp_path / "whole", eval_every_steps=15))
    broken = settings(tiny_run, tmp_path / "broken", eval_every_steps=15)
    with monkeypatch.context() as patch:
        interrupted_at(37, patch)
        with pytest.raises(KeyboardInterrupt):
            sae.train(**broken)
    assert not (tmp_path / "broken/dictionaries").exists()
    (checkpoint,) = (tmp_path / "broken").glob("training/*/step_*.pt")
    assert checkpoint.name == "step_0000000037.pt"
    assert equal(whole, sae.train(**broken))
    assert figures_of(tmp_path / "broken") == figures_of(tmp_path / "whole")


@pytest.mark.slow
def test_sigterm_saves_within_seconds_and_exits_with_143(tiny_run, tmp_path, start):
    words = ["train", f"cache={tiny_run}/cache.zarr"]
    words += ["sae.d_sae=48", "training_tokens=20_000_000", "train_batch_size_tokens=128"]
    words += ["name=x", f"run={tmp_path}"]
    child = start(*words)
    figures = tmp_path / "training/x/metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not figures.exists():
        time.sleep(0.05)
    time.sleep(0.5)
    child.process.terminate()
    done = child.ended(seconds=10)
    assert done.returncode == 143
    assert "run the same command again to go on" in done.stderr
    (checkpoint,) = tmp_path.glob("training/x/step_*.pt")
    step = int(checkpoint.stem.removeprefix("step_"))
    assert step > 0
    lines = read_json_lines(figures)
    assert [line["step"] for line in lines] == list(range(10, step + 1, 10))


def test_a_finished_training_is_reused_and_another_configuration_is_refused(tiny_run, tmp_path):
    first = sae.train(**settings(tiny_run, tmp_path, name="x"))
    stamp = (tmp_path / "dictionaries/x/cfg.json").stat().st_mtime_ns
    again = sae.train(**settings(tiny_run, tmp_path, name="x"))
    assert equal(first, again)
    assert (tmp_path / "dictionaries/x/cfg.json").stat().st_mtime_ns == stamp
    with pytest.raises(UserError, match="another configuration"):
        sae.train(**settings(tiny_run, tmp_path, name="x", seed=5))


def test_a_batch_with_nan_is_refused_and_named_and_the_weights_stay():
    sample = torch.randn(64, 8)
    config = StandardConfig(d_sae=16)
    model = config.build(sample, torch.Generator().manual_seed(0))
    from sae.core.scaling import InputScaling

    scaling = InputScaling(torch.zeros(8), 1.0)
    trainer = Trainer(model, scaling, OptimConfig(), lr=1e-3, n_steps=2, dead_window_rows=100)
    bad = sample.clone()
    bad[3, 2] = float("nan")
    trainer.update(*trainer.scaled((sample,)))
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(UserError, match="batch 1 holds NaN"):
        trainer.scaled((bad,))
    bad[3, 2] = 1e30
    with pytest.raises(UserError, match=r"batch 1 holds activations 1e\+30 times the usual"):
        trainer.scaled((bad,))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_diverging_training_stops_and_names_the_knob(tiny_run, tmp_path):
    wild = settings(tiny_run, tmp_path, optim=OptimConfig(lr=1e18), log_every_steps=1)
    with pytest.raises(UserError, match=r"lower optim\.lr"):
        sae.train(**wild)


def test_the_learning_rate_rises_stays_and_falls_to_nearly_zero():
    config = OptimConfig(lr_warm_up_steps=10, lr_decay_steps=20)
    rates = [schedule(config, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[50] == rates[79] == 1.0
    assert rates[99] == pytest.approx(1 / 20)
    assert rates == sorted(rates[:50]) + sorted(rates[50:], reverse=True)


@pytest.mark.parametrize(
    ("optim", "ends"),
    [
        ({"lr_warm_up_steps": 1000}, "rise over 1,000 steps and fall over 20"),
        ({"lr_warm_up_steps": 81}, "rise over 81 steps and fall over 20"),
        ({"lr_decay_steps": 101}, "rise over 5 steps and fall over 101"),
        ({"lr_warm_up_steps": 60, "lr_decay_steps": 50}, "rise over 60 steps and fall over 50"),
    ],
)
def test_a_schedule_that_never_reaches_its_peak_is_refused(optim, ends):
    size = {"training_tokens": 100 * 64, "train_batch_size_tokens": 64}
    with pytest.raises(
        UserError, match=rf"{ends}, but the training has 100, so it would never"
    ):
        TrainConfig(optim=OptimConfig(**optim), **size)
    TrainConfig(optim=OptimConfig(lr_warm_up_steps=80), **size)
    TrainConfig(optim=OptimConfig(lr_warm_up_steps=50, lr_decay_steps=50), **size)


OWN = [torch.randn(256, 8, generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"max_norm_multiple": 3.0}, "max_norm_multiple"),
        ({"shuffle_seed": 1}, "shuffle_seed"),
        ({"n_eval_rows": 7}, "n_eval_rows"),
        ({"mix_rows": 4096}, "mix_rows"),
    ],
)
def test_what_does_nothing_with_rows_of_ones_own_is_refused(tmp_path, change, named):
    with pytest.raises(UserError, match=f"^{named} has no effect on rows="):
        sae.train(run=str(tmp_path), cache=None, rows=OWN, **change)


@pytest.mark.parametrize("name", ["topk", "standard"])
def test_rows_of_width_one_give_finite_weights_and_no_limit_of_norms(tmp_path, name):
    settings = {"k": 1} if name == "topk" else {}
    dictionary = sae.train(
        run=str(tmp_path),
        cache=None,
        sae=ARCHITECTURES[name](d_sae=8, **settings),
        rows=[x[:, :1] for x in OWN],
        training_tokens=64 * 20,
        train_batch_size_tokens=64,
    )
    assert all(bool(w.isfinite().all()) for w in weights(dictionary))
    # Nothing was left out of these rows, so nothing is when they are measured.
    assert dictionary.record.max_norm_multiple is None


@pytest.mark.slow
def test_wandb_offline_records_the_figures_that_the_file_has(tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    script = (
        "import sae, json, sys\n"
        "from sae import LoggerConfig, StandardConfig\n"
        f"sae.train(run={str(tmp_path)!r}, cache={str(tiny_run / 'cache.zarr')!r}, name='x',\n"
        "    sae=StandardConfig(d_sae=32), training_tokens=2560, train_batch_size_tokens=128,\n"
        "    logger=LoggerConfig(name='wandb', mode='offline', project='p', group='g'))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (record,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    recorded = _wandb_history(record)
    written = read_json_lines(tmp_path / "training/x/metrics.jsonl")
    assert [r["_step"] for r in recorded] == [w["step"] for w in written]
    for r, w in zip(recorded, written, strict=True):
        assert {k: r[k] for k in w if k != "step" and not k.startswith("plots/")} == {
            k: v for k, v in w.items() if k != "step" and not k.startswith("plots/")
        }


def _wandb_history(path):
    """The logged rows of an offline run, read back from its file."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for data in leveldb_records(path.read_bytes()[7:]):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            found.append(
                {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
            )
    return found


def test_the_dictionary_says_where_it_comes_from(tiny_run):
    metadata = metadata_of(sae.load(str(tiny_run / "dictionaries/weak")))
    assert metadata["hook_name"] == HOOK
    assert metadata["hf_hook_name"] == "model.layers.1"
    ours = metadata["sae_atlas"]
    assert ours["cache_digest"] == sae.open_cache(tiny_run / "cache.zarr").digest
    assert ours["sae"] == dataclasses.asdict(StandardConfig(d_sae=64, l1_coefficient=0.5))
    assert ours["architecture"] == "standard"
    assert ours["optim"]["lr"] == StandardConfig.default_lr
    assert {"torch", "transformers", "zarr"} <= set(ours["versions"])


def test_steps_are_the_asked_tokens_divided_by_the_batch():
    assert TrainConfig(training_tokens=1000, train_batch_size_tokens=300).n_steps == 3


def test_a_learning_rate_or_seed_of_its_own_is_part_of_the_name():
    plain = TrainConfig(sae=StandardConfig(d_sae=64, l1_coefficient=2.0))
    assert plain.id == "standard-64-l1-2"
    other = TrainConfig(sae=plain.sae, optim=OptimConfig(lr=1e-3), seed=7)
    assert other.id == "standard-64-l1-2-lr-0.001-seed-7"


def test_weights_that_are_not_finite_never_replace_a_checkpoint(
    tiny_run, tmp_path, monkeypatch
):
    real = Trainer.update

    def poisoned(self, *args):
        report = real(self, *args)
        if report.step == 3:
            next(self.sae.parameters()).data.fill_(float("nan"))
        return report

    monkeypatch.setattr(Trainer, "update", poisoned)
    often = CheckpointConfig(every_seconds=0.0, keep_last=5)
    # Every step, however long saving takes.
    monkeypatch.setattr("sae.training.train._MOST_SAVING", 1e9)
    run = settings(tiny_run, tmp_path, checkpoint=often, log_every_steps=1000)
    with pytest.raises(UserError, match="the weights hold NaN or infinity at step 3"):
        sae.train(**run)
    found = sorted(path.name for path in tmp_path.glob("training/*/step_*.pt"))
    assert found[-1] == "step_0000000002.pt"


def test_a_training_from_before_a_recipe_had_a_key_is_one_without_it(tiny_run, tmp_path):
    asked = settings(tiny_run, tmp_path, name="old", sae=sae.TopKConfig(d_sae=48, k=4))
    path = tmp_path / "dictionaries" / "old" / "cfg.json"
    sae.train(**asked)
    told = json.loads(path.read_text())
    del told["metadata"]["sae_atlas"]["identity"]["sae.initial_k"]
    path.write_text(json.dumps(told))
    unseal(path.parent)
    before = path.stat().st_mtime_ns
    sae.train(**asked)
    assert path.stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"sae\.initial_k is None there, 9 here"):
        sae.train(**asked | {"sae": sae.TopKConfig(d_sae=48, k=4, initial_k=9)})
