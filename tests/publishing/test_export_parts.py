"""Dictionaries in several safetensors files with an index: read as one, written as one."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.world import HOOK, random_dictionary

import sae
from sae.base.errors import UserError
from sae.dictionary.files import save_dictionary
from sae.exchange.formats import write_dictionary


def in_parts(path):
    """Put a safetensors file into a part for each tensor, as the Hub has large ones."""
    tensors, names = load_file(path), {}
    for i, (name, tensor) in enumerate(tensors.items(), 1):
        names[name] = f"{path.stem}-{i:05}-of-{len(tensors):05}.safetensors"
        save_file({name: tensor}, path.with_name(names[name]))
    index = path.with_name(f"{path.name}.index.json")
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": names}))
    path.unlink()
    return index


@pytest.mark.parametrize("format", ["saelens", "sparsify", "openmoss", "gemma_scope_2"])
def test_a_dictionary_in_several_parts_loads_as_one(format, tmp_path):
    architecture = "jumprelu" if format == "gemma_scope_2" else "topk"
    about = {"hook_name": HOOK, "model_name": "a/model"}
    dictionary = random_dictionary(architecture, **about)
    write_dictionary(dictionary, tmp_path / "layers.1", format)
    whole = sae.load(str(tmp_path / "layers.1"))
    (weights,) = (tmp_path / "layers.1").glob("*.safetensors")
    in_parts(weights)
    again = sae.load(str(tmp_path / "layers.1"))
    for name, tensor in whole.tensors.items():
        # Where a bias is folded, sums depend on where in memory the file begins.
        torch.testing.assert_close(again.tensors[name], tensor, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["saelens", "sparsify"])
def test_several_parts_come_out_of_an_export_as_one_file(format, tiny_run, tmp_path):
    about = {
        "hook_name": HOOK,
        "model_name": sae.load(str(tiny_run / "dictionaries/weak")).model_name,
    }
    theirs = tmp_path / "layers.1"
    write_dictionary(random_dictionary("topk", **about), theirs, format)
    whole = sae.load(str(theirs))
    (weights,) = theirs.glob("*.safetensors")
    in_parts(weights)
    run = tmp_path / "run"
    shutil.copytree(tiny_run / "cache.zarr", run / "cache.zarr")
    sae.import_(folder=str(theirs), run=str(run))
    sae.eval(run=str(run), n_behaviour_tokens=64)
    sae.analyze(run=str(run))
    merged = sae.export(run=str(run)) / HOOK
    assert {path.name for path in merged.iterdir()} == {
        "SHA256SUMS",
        "cfg.json",
        "sae_weights.safetensors",
        "sparsity.safetensors",
    }
    again = sae.load(str(merged))
    for name, tensor in whole.tensors.items():
        torch.testing.assert_close(again.tensors[name], tensor, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_saelens_reads_no_parts_so_that_none_are_written(tmp_path):
    sae_lens = pytest.importorskip("sae_lens")
    about = {"hook_name": HOOK, "model_name": "a/model"}
    save_dictionary(random_dictionary("standard", **about), tmp_path / "large")
    in_parts(tmp_path / "large/sae_weights.safetensors")
    with pytest.raises(FileNotFoundError):
        sae_lens.SAE.load_from_disk(str(tmp_path / "large"))
    save_dictionary(sae.load(str(tmp_path / "large")), tmp_path / "merged")
    assert sae_lens.SAE.load_from_disk(str(tmp_path / "merged")).cfg.d_sae == 48


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"W_enc": "../stolen.safetensors"},
            r"\.\./stolen\.safetensors is not a file beside it",
        ),
        ({"W_enc": "/etc/passwd"}, "/etc/passwd is not a file beside it"),
        ({"W_enc": 3}, "3 is not a file beside it"),
        ({"W_enc": "other.safetensors"}, r"other\.safetensors: there is no such file"),
        (
            {"W_enc": "sae_weights.safetensors"},
            r"sae_weights\.safetensors: there is no such file",
        ),
        ({"threshold": None}, "holds threshold beside"),
        ({"W_dec": "W_enc"}, "W_dec is not in sae_weights-0000"),
    ],
    ids=str,
)
def test_a_bad_index_of_parts_is_refused(change, sentence, tmp_path):
    save_dictionary(random_dictionary("standard", hook_name=HOOK), tmp_path / "large")
    index = in_parts(tmp_path / "large/sae_weights.safetensors")
    found = json.loads(index.read_text())
    names = found["weight_map"]
    for tensor, place in change.items():
        if place is None:
            names[tensor] = "extra.safetensors"
            save_file({tensor: torch.ones(48)}, tmp_path / "large/extra.safetensors")
        else:
            names[tensor] = names.get(place, place)
    index.write_text(json.dumps(found))
    with pytest.raises(UserError, match=sentence):
        sae.load(str(tmp_path / "large"))


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": 3}'])
def test_an_index_that_is_none_is_refused(content, tmp_path):
    save_dictionary(random_dictionary("standard", hook_name=HOOK), tmp_path / "large")
    in_parts(tmp_path / "large/sae_weights.safetensors").write_text(content)
    with pytest.raises(UserError, match=r"index\.json"):
        sae.load(str(tmp_path / "large"))


PRIVATE = """
import sys, psutil, sae
def private():
    found = psutil.Process().memory_full_info()
    return found.uss
sae.load(sys.argv[1])
before = private()
found = sae.load(sys.argv[2])
print(private() - before, sum(w.numel() * 4 for w in found.tensors.values()))
"""


@pytest.mark.slow
def test_parts_are_mapped_and_not_copied(tmp_path):
    save_dictionary(random_dictionary("standard", hook_name=HOOK), tmp_path / "first")
    large = random_dictionary("standard", d_in=512, d_sae=32_768, hook_name=HOOK)
    save_dictionary(large, tmp_path / "large")
    in_parts(tmp_path / "large/sae_weights.safetensors")
    # Somebody else maps them too, so that pages of the file are nobody's own.
    held = sae.load(str(tmp_path / "large"))
    done = subprocess.run(
        [sys.executable, "-c", PRIVATE, str(tmp_path / "first"), str(tmp_path / "large")],
        capture_output=True,
        text=True,
        check=True,
    )
    own, size = map(int, done.stdout.split())
    assert held.d_sae == 32_768
    assert size > 1.3e8
    assert own < 0.1 * size
