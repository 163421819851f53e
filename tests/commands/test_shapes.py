"""Files of JSON that hold something of another shape: a sentence names the file."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.atlas_samples import sample_record
from support.figures import compared, made_figures
from support.files import unseal
from support.world import HOOK, cache_of, random_dictionary, save_tiny_model

import sae
from sae.atlas import read_record, write_record
from sae.base import UserError, read_json_lines, write_json
from sae.cache.layout import open_cache
from sae.cache.writer import CacheWriter
from sae.commands.demo import DemoConfig
from sae.dictionary import save_dictionary
from sae.exchange.formats import write_dictionary
from sae.exchange.stamp import read_stamp, write_stamp
from sae.figures import Figures
from sae.harvesting.harvest import _Pace
from sae.models import ModelConfig, load_model
from sae.pages.compare import _figures, _told
from sae.pages.pareto import Pareto
from sae.run import Clock, Run
from sae.training.checkpoint import CheckpointConfig, Checkpoints
from sae.training.loggers import JsonlLogger

ODD: tuple[Any, ...] = ([], None, {}, -1.5, "x", {"a": None})


def dictionary(folder: Path) -> Path:
    save_dictionary(random_dictionary("topk", hook_name=HOOK), folder / "one")
    return unseal(folder / "one") / "cfg.json"


def in_parts(folder: Path) -> Path:
    whole = dictionary(folder).with_name("sae_weights.safetensors")
    part = whole.rename(whole.with_name("part.safetensors"))
    names = random_dictionary("topk").tensors
    index = whole.with_name(f"{whole.name}.index.json")
    write_json(index, {"metadata": {}, "weight_map": dict.fromkeys(names, part.name)})
    return index


def of_sparsify(folder: Path) -> Path:
    write_dictionary(random_dictionary("topk", hook_name=HOOK), folder / "layers.1", "sparsify")
    return folder / "layers.1" / "sae_atlas.json"


def atlas(folder: Path) -> Path:
    write_record(folder, sample_record(3, 0))
    return unseal(folder) / "atlas.json"


def figures(folder: Path) -> Path:
    write_json(folder / "weak.json", made_figures("weak").to_json())
    return folder / "weak.json"


def comparison(folder: Path) -> Path:
    write_json(folder / "pareto.json", compared(made_figures("a"), made_figures("b")).to_json())
    return folder / "pareto.json"


def report(folder: Path) -> Path:
    write_json(folder / "report.json", {"steering": []})
    return folder / "report.json"


def training_time(folder: Path) -> Path:
    run = Run.at(folder)
    save_dictionary(random_dictionary("topk", hook_name=HOOK), run.dictionary("weak"))
    write_json(run.evaluation("weak"), made_figures("weak").to_json())
    write_json(run.training("weak") / "timing.json", {"seconds": 1.5})
    return run.training("weak") / "timing.json"


def harvest_time(folder: Path) -> Path:
    spent = {"seconds": 1.5, "tokens": 7, "tokens_per_second": 3.0}
    write_json(folder / "harvest.json", spent)
    return folder / "harvest.json"


def demo_time(folder: Path) -> Path:
    clock = Clock(folder / "timings.json", DemoConfig())
    clock.time("harvest", lambda: None)
    return folder / "timings.json"


def stamp(folder: Path) -> Path:
    write_stamp(folder, "d", {"dictionary": "one"}, {}, None)
    return folder / "export.json"


def cache(folder: Path) -> Path:
    x = {HOOK: torch.ones(4, 8, 2)}
    cache_of(folder / "c.zarr", np.ones((4, 8), np.int32), np.arange(4) > 2, x)
    return folder / "c.zarr" / "zarr.json"


def cache_array(folder: Path) -> Path:
    return cache(folder).parent / "tokens" / "zarr.json"


def read_cache(path: Path) -> None:
    folder = next(p for p in path.parents if p.name == "c.zarr")
    found = open_cache(folder)
    found.text_rows()
    for asked in (found.digest, found.model, found.text, found.sites, found.held_out):
        assert asked is not None
    CacheWriter(folder).intact(verify=True)


FILES = {
    "cfg.json": (dictionary, lambda path: sae.load(str(path.parent))),
    "index.json": (in_parts, lambda path: sae.load(str(path.parent))),
    "sae_atlas.json": (of_sparsify, lambda path: sae.load(str(path.parent))),
    "atlas.json": (atlas, lambda path: read_record(path.parent)),
    "figures": (figures, Figures.read),
    "pareto.json": (comparison, lambda path: Pareto.read(path).for_page()),
    "report.json": (report, lambda path: _told(Run.at(path.parent))),
    "timing.json": (training_time, lambda path: _figures(Run.at(path.parents[2]), "weak")),
    "harvest.json": (harvest_time, lambda path: _Pace(path, 1)),
    "timings.json": (demo_time, lambda path: Clock(path, DemoConfig())),
    "export.json": (stamp, read_stamp),
    "zarr.json": (cache, read_cache),
    "zarr.json of an array": (cache_array, read_cache),
}


MAY_BE_EMPTY = {
    *("harvest.json", "timings.json", "timing.json", "report.json"),
    # Of what came before versions were written.
    *("cfg.json", "sae_atlas.json"),
}


def refusal(read: Callable[[Path], object], path: Path) -> str | None:
    """Returns what is said of a file, or None if it was read."""
    try:
        read(path)
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", FILES)
def test_json_of_another_shape_is_a_sentence_that_names_the_file(name, tmp_path):
    make, read = FILES[name]
    path = make(tmp_path)
    assert refusal(read, path) is None
    whole = json.loads(path.read_text())
    folder = next((p for p in path.parents if p.name == "c.zarr"), path.parent)
    for odd in (b"", b"{", b"\xff", *(json.dumps(odd).encode() for odd in ODD)):
        path.write_bytes(odd)
        said = refusal(read, path)
        if said is not None:
            assert str(folder) in said
            assert "\n" not in said
        elif name != "export.json":
            assert (odd[:1], name in MAY_BE_EMPTY) == (b"{", True)
    # One value of another shape, at the top or below.
    parts = [whole, whole.get("attributes"), whole.get("metadata"), whole.get("sae_atlas")]
    for part in (part for part in parts if isinstance(part, dict)):
        for key in [*part]:
            kept = part[key]
            for odd in ODD if path.name != "zarr.json" else ODD[:3]:
                part[key] = odd
                path.write_text(json.dumps(whole))
                refusal(read, path)
            part[key] = kept


@pytest.mark.parametrize("state", [[], None, {}, 7, {"identity": 3}, {"identity": {}}], ids=str)
def test_a_checkpoint_of_another_shape_is_a_sentence(tmp_path, state):
    torch.save(state, tmp_path / "step_0000000020.pt")
    with pytest.raises(UserError, match=r"step_0000000020\.pt is damaged"):
        Checkpoints(tmp_path, CheckpointConfig()).newest()


def test_a_damaged_line_of_figures_is_left_out_and_the_others_stay(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    lines = [b'{"step": 10, "loss": 0.5}', b"[]", b'{"loss": 1}', b'{"step": "x"}', b"7"]
    lines += [b'{"step": 1\xff, "loss": 0.5}', b'{"step": 30, "loss": 0.25}']
    path.write_bytes(b"\n".join(lines) + b'\n{"step": 40, "lo')
    steps = [line.get("step") for line in read_json_lines(path)]
    assert steps == [10, None, "x", 30]
    assert f"{path}: 3 damaged lines are left out" in capsys.readouterr().err
    JsonlLogger(path, 30).close()
    assert path.read_bytes() == b"\n".join([lines[0], lines[-1], b""])


class Trap:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return Path.touch, (self.folder / "sprung",)


@pytest.mark.slow
def test_a_pickle_of_a_model_runs_nothing_and_is_a_sentence(tmp_path, tokenizer_folder):
    folder = save_tiny_model("gpt2", tmp_path / "model", tokenizer_folder)
    (folder / "model.safetensors").unlink()
    for trap in (Trap(tmp_path), {"transformer.wte.weight": Trap(tmp_path)}):
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(trap))
        with pytest.raises(UserError, match=r"model") as refused:
            load_model(ModelConfig(name=str(folder)))
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "sprung").exists()
