"""The worked example of CONTRIBUTING.md, run as it stands there."""

import json
import re
import sys
import types
from pathlib import Path

import pytest
from support.world import HOOK

import sae
from sae.architectures import ARCHITECTURES
from sae.config.commands import COMMANDS
from sae.config.compose import build

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_the_new_architecture_of_the_example_trains_from_the_command_line(
    tiny_run, tmp_path, monkeypatch
):
    module = types.ModuleType("fixed_threshold")
    # Help texts are read from the source, so it has to be in a file.
    path = tmp_path / "fixed_threshold.py"
    path.write_text(PYTHON[0], encoding="utf-8")
    module.__file__ = str(path)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(PYTHON[0], str(path), "exec"), module.__dict__)
    config = module.FixedThresholdConfig
    monkeypatch.setitem(ARCHITECTURES, config.architecture, config)
    words = ["sae=fixed_threshold", "sae.d_sae=48", "sae.threshold=0.5"]
    words += [f"run={tmp_path}", f"cache={tiny_run}/cache.zarr", "training_tokens=12800"]
    trained = sae.train(build(COMMANDS["train"], [*words, "train_batch_size_tokens=128"]))
    assert trained.architecture == "jumprelu"
    assert (trained.activation.threshold == trained.activation.threshold[0]).all()
    assert (tmp_path / "dictionaries/fixed_threshold-48-0.5").is_dir()
    # The dictionary is what was trained: as many latents pass its threshold on raw rows.
    lines = (
        (tmp_path / "training/fixed_threshold-48-0.5/metrics.jsonl").read_text().splitlines()
    )
    seen = [
        figures["metrics/l0"] for line in lines if "metrics/l0" in (figures := json.loads(line))
    ]
    rows = sae.open_cache(f"{tiny_run}/cache.zarr").read(HOOK, slice(0, 60))[:, 1:]
    l0 = float((trained.encode(rows) > 0).sum(-1).float().mean())
    assert l0 == pytest.approx(seen[-1], rel=0.15)


def test_the_test_of_the_example_passes():
    names: dict = {}
    for code in PYTHON:
        exec(code, names)
    names["test_a_step_equals_the_dense_definition"]()
