"""A terminal that is closed while a training runs in it."""

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
import termios
import time

import pytest

from sae.base.files import read_json_lines
from sae.base.progress import say


def take_terminal():
    """Make the terminal on standard input the one that this session belongs to."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_what_is_said_to_a_terminal_that_has_gone_is_lost_and_ends_nothing(monkeypatch):
    ours, its = os.openpty()
    os.close(ours)
    with pytest.raises(OSError, match="Input/output error"):
        os.write(its, b"x")
    monkeypatch.setattr(sys, "stderr", os.fdopen(os.dup(its), "w", buffering=1))
    say("a step is saved")
    with contextlib.suppress(OSError):
        sys.stderr.close()
    os.close(its)


@pytest.mark.slow
def test_a_training_whose_terminal_is_closed_is_saved_and_exits_with_129(tiny_run, tmp_path):
    words = [sys.executable, "-m", "sae.cli", "train"]
    words += [f"run={tmp_path}", "name=x", f"cache={tiny_run}/cache.zarr", "sae.d_sae=48"]
    words += ["training_tokens=20_000_000", "train_batch_size_tokens=128"]
    ours, its = os.openpty()
    figures = tmp_path / "training/x/metrics.jsonl"
    with subprocess.Popen(
        words,
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
        preexec_fn=take_terminal,
    ) as process:
        os.close(its)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (figures.exists() and figures.stat().st_size):
            if select.select([ours], [], [], 0.05)[0]:
                os.read(ours, 1 << 16)
        os.close(ours)
        status = process.wait(timeout=30)
    assert status == 129
    (checkpoint,) = tmp_path.glob("training/x/step_*.pt")
    step = int(checkpoint.stem.removeprefix("step_"))
    assert step > 0
    lines = read_json_lines(figures)
    assert [line["step"] for line in lines] == list(range(10, step + 1, 10))
