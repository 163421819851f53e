"""What an addition costs: made in a copy of the package, used there, and its files counted.

Tests, documentation and `sae/__init__.pyi`, which `scripts/stubs.py` makes, are not counted.
"""

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.powered import Powered

import sae

PACKAGE = Path(sae.__file__).resolve().parent
WORKED_EXAMPLE = Path(__file__).parents[2] / "CONTRIBUTING.md"


class House:
    """A copy of the package that can be built on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # With what was compiled of it, which is of the same files and times.
        shutil.copytree(PACKAGE, folder / "sae")
        shutil.copytree(PACKAGE.parent / "conf", folder / "conf")

    def add(self, name: str, text: str) -> None:
        path = self.folder / "sae" / name
        assert not path.exists()
        path.write_text(text, encoding="utf-8")

    def change(self, name: str, *pairs: tuple[str, str]) -> None:
        path = self.folder / "sae" / name
        text = path.read_text(encoding="utf-8")
        for old, new in pairs:
            assert text.count(old) == 1, f"{name} has {text.count(old)} times {old!r}"
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")

    @property
    def changed(self) -> list[str]:
        """The files of code that are not as in the package."""
        copy = self.folder / "sae"
        names = (path.relative_to(copy) for path in copy.rglob("*.py"))
        return sorted(
            str(name)
            for name in names
            if not (PACKAGE / name).exists()
            or (PACKAGE / name).read_bytes() != (copy / name).read_bytes()
        )

    def runs(self, *words: str) -> str:
        """All that Python says of these words, where the copy is the package."""
        environment = os.environ | {"PYTHONPATH": str(self.folder), "HF_HUB_OFFLINE": "1"}
        ended = subprocess.run(
            [sys.executable, *words],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout + ended.stderr

    def sae(self, *commands: list[object]) -> str:
        """What commands say that run one after the other, in one process that starts once."""
        code = (
            "import json, sys; from sae.cli import main; [*map(main, json.loads(sys.argv[1]))]"
        )
        return self.runs("-c", code, json.dumps(commands, default=str))


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path / "house")


@pytest.fixture(scope="module")
def finished_run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the tiny run's cache, one of its dictionaries, its figures and its atlas."""
    run = tmp_path_factory.mktemp("finished")
    for name in ("cache.zarr", "dictionaries/weak"):
        shutil.copytree(tiny_run / name, run / name)
    sae.eval(run=str(run), n_behaviour_tokens=64)
    sae.analyze(run=str(run), n_contexts=3)
    return run


@pytest.fixture
def own_run(finished_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished_run, tmp_path / "run")


def test_the_copy_is_what_runs(house):
    said = house.runs("-c", "import sae; print(sae.__file__)")
    assert Path(said.strip()) == house.folder / "sae/__init__.py"
    assert house.changed == []


@pytest.mark.slow
def test_a_recipe_is_one_file_and_its_line(house, own_run):
    (code, *_) = re.findall(r"```python\n(.*?)```", WORKED_EXAMPLE.read_text(), re.DOTALL)
    house.add("architectures/fixed_threshold.py", code)
    house.change(
        "architectures/__init__.py",
        (
            ", TrainingStep\n",
            ", TrainingStep\n"
            "from sae.architectures.fixed_threshold import FixedThresholdConfig\n",
        ),
        ("        GatedConfig,\n", "        GatedConfig,\n        FixedThresholdConfig,\n"),
    )
    recipe = ["sae=fixed_threshold", "sae.d_sae=48", "training_tokens=1000"]
    said = house.sae(
        ["train", "--help", "sae=fixed_threshold"],
        ["train", f"run={own_run}", *recipe, "train_batch_size_tokens=100"],
    )
    assert "sae.threshold" in said
    assert (own_run / "dictionaries/fixed_threshold-48-1/cfg.json").exists()
    assert house.changed == ["architectures/__init__.py", "architectures/fixed_threshold.py"]


@pytest.mark.slow
def test_an_activation_is_one_class_in_one_file(house, own_run):
    path = "dictionary/activations.py"
    classes, registry = "\n\n\nACTIVATIONS: ", " in (ReLU, "
    house.change(
        path,
        (classes, f"\n\n\n{inspect.getsource(Powered)}{classes}"),
        (registry, " in (Powered, ReLU, "),
    )
    # It has no estimator to train it by, so one is made of another dictionary's weights.
    house.runs(
        "-c",
        f"""
from dataclasses import replace
import torch, sae
from sae.dictionary import load_dictionary, save_dictionary
from sae.dictionary.activations import Powered
weak = load_dictionary({str(own_run / "dictionaries/weak")!r})
ones = torch.ones(weak.d_sae)
save_dictionary(
    replace(weak, activation=Powered(0 * ones, ones, 2)), {str(own_run / "dictionaries/p")!r}
)
sae.eval(run={str(own_run)!r}, n_behaviour_tokens=64)
""",
    )
    assert json.loads((own_run / "evals/p.json").read_text())["architecture"] == "powered"
    assert house.changed == [path]


@pytest.mark.slow
def test_a_metric_is_its_computation_and_its_entry(house, own_run):
    house.change(
        "core/fidelity.py",
        (
            '            "dead_fraction": ',
            '            "busiest_density": float(self.density.max()),\n'
            '            "dead_fraction": ',
        ),
    )
    house.change(
        "metrics/held_out.py",
        (
            '        Metric(\n            key="mse",',
            "        Metric(\n"
            '            key="busiest_density",\n'
            '            title="Busiest feature",\n'
            '            meaning="share of the rows that the busiest feature is active on",\n'
            '            formula="max over j of mean [fⱼ > 0]",\n'
            '            scale="1: it is always on",\n'
            "            higher_is_better=False,\n"
            '            where=("table", "picture", "tile"),\n'
            "        ),\n"
            '        Metric(\n            key="mse",',
        ),
    )
    (own_run / "evals/weak.json").unlink()
    said = house.sae(
        ["eval", f"run={own_run}", "n_behaviour_tokens=64"],
        ["export", f"run={own_run}", f"out={own_run}/out"],
    )
    assert "Busiest feature" in said
    assert "busiest_density" in (own_run / "pareto.csv").read_text().splitlines()[0]
    assert "Busiest feature" in (own_run / "out/README.md").read_text()
    assert house.changed == ["core/fidelity.py", "metrics/held_out.py"]


@pytest.mark.slow
def test_a_command_is_one_file_and_its_line(house, own_run):
    house.add(
        "commands/weigh.py",
        '"""`sae weigh`: how many bytes the dictionaries of a run take."""\n\n'
        "from dataclasses import dataclass\n\n"
        "from sae.run import Run\n\n\n"
        "@dataclass(frozen=True, kw_only=True, slots=True)\n"
        "class WeighConfig:\n"
        '    """Say how many bytes the dictionaries of a run take."""\n\n'
        '    run: str = "runs/default"\n'
        '    """Folder of the run."""\n\n\n'
        "def run(config: WeighConfig) -> int:\n"
        '    """Return the bytes of all files of all dictionaries."""\n'
        "    files = Run.at(config.run).dictionaries.rglob('*')\n"
        "    return sum(path.stat().st_size for path in files)\n",
    )
    house.change(
        "config/commands.py",
        (
            '    Command(\n        "demo",',
            '    Command(\n        "weigh",\n'
            '        "say how many bytes dictionaries take",\n'
            '        places=("run",),\n    ),\n'
            '    Command(\n        "demo",',
        ),
    )
    said = house.sae(["--help"], ["weigh", "--help"], ["weigh", own_run])
    assert "say how many bytes dictionaries take" in said
    assert "Folder of the run." in said
    code = (
        "import sae; print(sae.weigh(run={0!r}) == sae.weigh(sae.WeighConfig(run={0!r})) > 0)"
    )
    assert "True" in house.runs("-c", code.format(str(own_run)))
    assert house.changed == ["commands/weigh.py", "config/commands.py"]


@pytest.mark.slow
def test_a_format_is_one_file_and_its_line(house, own_run):
    house.add(
        "exchange/formats/lists.py",
        '''"""Weights as lists in one JSON file, and an activation that is ReLU."""

from pathlib import Path

import torch

from sae.dictionary import Dictionary, ReLU, dictionary_of
from sae.exchange.formats.parts import (
    Written, as_json, read_config, read_metadata, write_folder
)


class Lists(Written):
    name = "lists"
    files = ("weights.json",)
    title = "Lists"
    load = "import json; json.load(open('{folder}/weights.json'))"
    lost = "nothing"
    activations = (ReLU,)
    limits = (("activation", "it holds ReLU alone"),)

    def recognises(self, path: Path) -> bool:
        return (path / "weights.json").is_file()

    def read(self, path: Path) -> Dictionary:
        lists = read_config(path / "weights.json")
        weights = {name: torch.tensor(rows) for name, rows in lists.items()}
        return dictionary_of(weights, ReLU(), path, read_metadata(path, {}))

    def write(self, dictionary: Dictionary, folder: Path) -> None:
        lists = {name: weight.tolist() for name, weight in dictionary.tensors.items()}
        write_folder(folder, dictionary, {"weights.json": as_json(lists)})
''',
    )
    house.change(
        "exchange/formats/__init__.py",
        (
            "import GemmaScope, GemmaScope2\n",
            "import GemmaScope, GemmaScope2\nfrom sae.exchange.formats.lists import Lists\n",
        ),
        ("    GemmaScope2(),\n", "    GemmaScope2(),\n    Lists(),\n"),
    )
    house.sae(
        ["export", f"run={own_run}", f"out={own_run}/out", "format=lists"],
        ["import", f"{own_run}/out", f"run={own_run}", "name=again"],
    )
    again = sae.load(str(own_run / "dictionaries/again"))
    assert again.digest == sae.load(str(own_run / "dictionaries/weak")).digest
    assert house.changed == ["exchange/formats/__init__.py", "exchange/formats/lists.py"]


@pytest.mark.slow
def test_a_change_of_activations_is_one_class_in_one_file(house, tiny_model):
    house.change(
        "edits/changes.py",
        (
            "@dataclass(frozen=True, slots=True)\nclass Put:",
            "@dataclass(frozen=True, slots=True)\nclass Scale:\n"
            '    """Activations are multiplied."""\n\n'
            "    factor: float\n\n"
            "    def apply(self, x, y, rows):\n"
            "        return self.factor * y\n\n\n"
            "@dataclass(frozen=True, slots=True)\nclass Put:",
        ),
    )
    said = house.runs(
        "-c",
        f"""
import torch
from sae.edits import ALL_BUT_FIRST, Edit, edited
from sae.edits.changes import Scale
from sae.models import ModelConfig, find_site, load_model
model = load_model(ModelConfig(name={str(tiny_model)!r}))
site = find_site(model.module, "blocks.1.hook_resid_post")
seen = []
model.module.model.layers[2].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
tokens = torch.tensor([[0, 5, 6, 7]])
model.module(tokens)
with edited(model.module, [Edit(site, Scale(0.5), ALL_BUT_FIRST)]):
    model.module(tokens)
first, others = slice(0, 1), slice(1, None)
print(torch.equal(seen[1][:, first], seen[0][:, first]))
print(torch.equal(seen[1][:, others], 0.5 * seen[0][:, others]))
""",
    )
    assert said.splitlines()[:2] == ["True", "True"]
    assert house.changed == ["edits/changes.py"]


def test_an_edit_mode_is_one_entry_in_one_file(house, tiny_run, tiny_model):
    house.change(
        "edits/modes.py",
        (
            '    "ablate": Mode(',
            '    "mirror": Mode("-2·f·w", lambda a, t: -a, "nothing", ("feature",)),\n'
            '    "ablate": Mode(',
        ),
    )
    dictionary = str(tiny_run / "dictionaries/weak")
    said = house.runs(
        "-c",
        f"""
import sae, torch
m = sae.model({str(tiny_model)!r})
text, hook, folder = "the river ran past", "blocks.1.hook_resid_post", {dictionary!r}
d, x = sae.load(folder), m.activations(text, hook)
j = int(d.encode(x)[1:].mean(0).argmax())
sae.Edits((sae.edit(dictionary=folder, feature=j, do="mirror"),)).save("edits.yaml")
with m.edited("edits.yaml"):
    found = m.activations(text, hook)
codes = d.encode(x)[1:, j : j + 1]
print(torch.allclose(found[1:], x[1:] - 2 * codes * d.W_dec[j], atol=1e-4), bool(codes.any()))
""",
    )
    assert said.splitlines()[-1] == "True True"
    assert house.changed == ["edits/modes.py"]
