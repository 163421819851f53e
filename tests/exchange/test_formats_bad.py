"""Foreign files that are not what they should be: one sentence each, and nothing is run."""

import contextlib
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.files import unseal
from support.world import random_dictionary

import sae
from sae.base.errors import UserError
from sae.dictionary.metadata import metadata_of
from sae.dictionary.tensors import open_safetensors
from sae.exchange.formats import FORMATS, write_dictionary

WEIGHTS = {
    "saelens": "sae_weights.safetensors",
    "sparsify": "sae.safetensors",
    "dictionary_learning": "ae.pt",
    "openai": "1.pt",
    "qwen_scope": "layer1.sae.pt",
    "openmoss": "sae_weights.safetensors",
    "gemma_scope": "params.npz",
    "gemma_scope_2": "params.safetensors",
}
CONFIGS = {
    "saelens": "cfg.json",
    "sparsify": "cfg.json",
    "dictionary_learning": "config.json",
    "openmoss": "config.json",
    "gemma_scope_2": "config.json",
}
HOOK = "blocks.1.hook_resid_post"


def write_qwen_scope(folder):
    """What we do not write: two matrices the other way around, and two biases."""
    weights = random_dictionary("topk").tensors
    folder.mkdir()
    state = {name: weights[name].t().contiguous() for name in ("W_enc", "W_dec")}
    state |= {name: weights[name] for name in ("b_enc", "b_dec")}
    torch.save(state, folder / WEIGHTS["qwen_scope"])


@pytest.fixture(params=FORMATS)
def there(request, tmp_path):
    """A good folder of each format, and the path of its weights."""
    name = request.param
    architecture = "topk" if name == "sparsify" else "standard"
    folder = tmp_path / "layers.1"
    if name == "qwen_scope":
        folder = tmp_path / "SAE-L0_7"
        write_qwen_scope(folder)
    else:
        write_dictionary(random_dictionary(architecture, hook_name=HOOK), folder, name)
    assert sae.load(str(folder)).d_sae == 48
    return unseal(folder), folder / WEIGHTS[name]


def load(path):
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".pt":
        return torch.load(path, weights_only=True)
    with np.load(path) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def save(tensors, path):
    # The file that it replaces may be mapped.
    path.unlink()
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    elif path.suffix == ".pt":
        torch.save(tensors, path)
    else:
        np.savez(path, **{name: w.numpy() for name, w in tensors.items()})


def matrices(tensors):
    return [n for n, w in tensors.items() if isinstance(w, torch.Tensor) and w.ndim == 2]


def refused(folder, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        sae.load(str(folder))
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_missing_tensor_is_named(there):
    folder, path = there
    tensors = load(path)
    name = matrices(tensors)[0]
    del tensors[name]
    save(tensors, path)
    refused(folder, rf"lacks {name}; give the file as it was saved")


def test_a_tensor_too_many_is_named(there):
    folder, path = there
    save({**load(path), "W_other": torch.zeros(3)}, path)
    refused(folder, "holds W_other beside")


@pytest.mark.parametrize("change", ["longer", "flat", "transposed"])
def test_a_misshapen_tensor_is_named_with_the_shape_that_is_right(there, change):
    folder, path = there
    tensors = load(path)
    name = matrices(tensors)[-1]
    w = tensors[name]
    changed = {"longer": torch.zeros(60, 61), "flat": w.flatten(), "transposed": w.t()}
    save({**tensors, name: changed[change].contiguous()}, path)
    refused(folder, r"has shape \(\d+,( \d+)?\)?.*where \(.*\).* is right")


def test_whole_numbers_in_place_of_weights_are_refused(there):
    folder, path = there
    tensors = load(path)
    name = matrices(tensors)[0]
    save({**tensors, name: tensors[name].to(torch.int32)}, path)
    refused(folder, f"{name} holds no floating-point numbers")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_refused(there, value):
    folder, path = there
    tensors = load(path)
    name = matrices(tensors)[-1]
    tensors[name][3, 4] = value
    save(tensors, path)
    refused(folder, f"{name} holds NaN or infinity")


def test_a_number_that_float32_cannot_hold_is_refused(there):
    folder, path = there
    tensors = load(path)
    name = matrices(tensors)[0]
    tensors[name] = tensors[name].double()
    tensors[name][0, 0] = 1e300
    save(tensors, path)
    refused(folder, f"{name} holds NaN or infinity")


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.999])
def test_a_truncated_file_is_refused(there, share):
    folder, path = there
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: int(share * len(content))])
    refused(folder, "is damaged or is another kind of file: ")


def test_a_file_of_garbage_is_refused(there):
    folder, path = there
    path.unlink()
    path.write_bytes(os.urandom(5000))
    refused(folder, "is damaged or is another kind of file: ")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_that_is_none_is_refused(name, tmp_path):
    folder = tmp_path / "layers.1"
    write_dictionary(
        random_dictionary("topk" if name == "sparsify" else "standard"), folder, name
    )
    config = unseal(folder) / CONFIGS[name]
    config.write_text("[1, 2]")
    refused(folder, "does not hold a JSON object; give the file")
    config.write_text('{"trainer": ')
    refused(folder, "cannot be read as JSON")


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("saelens", {"d_sae": 47}, "d_sae=47, but according to the weights beside it d_sae=48"),
        ("saelens", {"metadata": 3}, "metadata=3; give an object"),
        ("sparsify", {"d_in": 31}, "d_in=31, but according to the weights beside it d_in=32"),
        ("sparsify", {"num_latents": 0}, "num_latents=1024, but according to the weights"),
        (
            "sparsify",
            {"num_latents": 0, "expansion_factor": None},
            "expansion_factor=None; give a number",
        ),
        ("sparsify", {"activation": "groupmax"}, "activation=groupmax; only topk can be read"),
        ("sparsify", {"signed": True}, "signed=true, but activations below zero"),
        ("sparsify", {"k": "many"}, "k=many; give a whole number"),
        ("sparsify", {"k": 0}, "k=0; give 1 to d_sae=48"),
        ("sparsify", {"skip_connection": True}, "lacks W_skip"),
        (
            "dictionary_learning",
            {"dict_size": 47},
            "dict_size=47, but according to the weights",
        ),
        ("dictionary_learning", {"k": 8}, "k=8, but according to the weights beside it k=7"),
        ("dictionary_learning", {"dict_class": "CrossCoder"}, "CrossCoder reads several hooks"),
        (
            "dictionary_learning",
            {"dict_class": "Other"},
            "dict_class=Other is not known; known",
        ),
        ("dictionary_learning", {"dict_class": "AutoEncoder"}, "lacks bias"),
    ],
)
def test_a_configuration_that_contradicts_the_weights_is_refused(
    name, changes, sentence, tmp_path
):
    folder = tmp_path / "layers.1"
    write_dictionary(random_dictionary("topk", hook_name=HOOK), folder, name)
    path = unseal(folder) / CONFIGS[name]
    config = json.loads(path.read_text())
    if name == "dictionary_learning":
        config["trainer"] |= changes
    else:
        config |= changes
    path.write_text(json.dumps(config))
    refused(folder, sentence)


ODD = [None, "odd", "", [], [1], {}, {"a": 1}, -1, 0, 1.5, 1e99, True]


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_an_odd_value_in_a_configuration_does_no_harm_or_is_refused(name, tmp_path):
    folder = tmp_path / "layers.1"
    dictionary = random_dictionary("topk" if name == "sparsify" else "jumprelu", hook_name=HOOK)
    write_dictionary(dictionary, folder, name)
    (folder / "sae_atlas.json").unlink(missing_ok=True)
    path = unseal(folder) / CONFIGS[name]
    config = json.loads(path.read_text())
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    more = ("activation_fn", "activation_fn_kwargs", "activation", "expansion_factor", "type")
    for part in parts:
        for key in [*part, *more]:
            kept = dict(part)
            for value in ODD:
                part[key] = value
                path.write_text(json.dumps(config))
                with contextlib.suppress(UserError):
                    sae.load(str(folder))
            part.clear()
            part.update(kept)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_flipped_bytes_in_a_files_beginning_or_end_do_no_harm_or_are_refused(there, seed):
    folder, path = there
    content = path.read_bytes()
    draw = np.random.default_rng(seed)
    for _ in range(40):
        changed = bytearray(content)
        for place in draw.integers(-400, 400, size=3):
            changed[place] ^= int(draw.integers(1, 256))
        # A new file: the old one may be mapped.
        path.unlink()
        path.write_bytes(changed)
        with contextlib.suppress(UserError):
            sae.load(str(folder))


def test_odd_settings_of_a_top_k_from_before_version_6_are_refused(tmp_path):
    folder = tmp_path / "old"
    write_dictionary(random_dictionary("topk"), folder, "saelens")
    unseal(folder)
    for odd in ("k=5", [1], 7):
        config = {"activation_fn": "topk", "activation_fn_kwargs": odd}
        (folder / "cfg.json").write_text(json.dumps(config))
        refused(folder, "activation_fn_kwargs=.*; give an object with k")


@pytest.mark.parametrize("value", [7.0, float("nan"), 7j], ids=str)
def test_a_k_that_is_no_whole_number_is_refused(value, tmp_path):
    folder = tmp_path / "one"
    write_dictionary(random_dictionary("topk"), folder, "dictionary_learning")
    state = torch.load(folder / "ae.pt", weights_only=True)
    torch.save({**state, "k": torch.tensor(value)}, folder / "ae.pt")
    refused(folder, "k=.*; give a whole number")


@pytest.mark.parametrize(
    "value", [torch.ones(3), torch.tensor(3), torch.ones(0)], ids=["three", "whole", "none"]
)
def test_an_average_norm_that_is_no_number_is_refused(value, tmp_path):
    folder = tmp_path / "one"
    write_dictionary(random_dictionary("standard", hook_name=HOOK), folder, "openmoss")
    config = json.loads((folder / "config.json").read_text())
    config["norm_activation"] = "dataset-wise"
    (folder / "config.json").write_text(json.dumps(config))
    path = folder / "sae_weights.safetensors"
    save({**load(path), f"dataset_average_activation_norm.{HOOK}": value}, path)
    refused(folder, r"dataset_average_activation_norm\..* has shape .*; give one number")


def test_json_that_is_nested_without_end_or_holds_endless_numbers_is_refused(there):
    folder, _ = there
    names = [n for n in ("cfg.json", "config.json") if (folder / n).exists()]
    for content in ("[" * 100_000, '{"k": ' + "1" * 5000 + "}"):
        for name in names:
            (folder / name).write_text(content)
            refused(folder, "cannot be read as JSON")


def test_half_precision_is_read_as_the_same_numbers(tmp_path):
    folder = tmp_path / "layers.1"
    write_dictionary(random_dictionary("topk", hook_name=HOOK), folder, "sparsify")
    tensors = load_file(folder / "sae.safetensors")
    path = folder / "sae.safetensors"
    for dtype in (torch.bfloat16, torch.float16):
        save({name: w.to(dtype) for name, w in tensors.items()}, path)
        found = sae.load(str(folder))
        assert found.W_dec.dtype == torch.float32
        assert torch.equal(found.W_dec, tensors["W_dec"].to(dtype).float())


def test_a_trainer_that_is_no_object_is_refused(tmp_path):
    folder = tmp_path / "layers.1"
    write_dictionary(random_dictionary("topk"), folder, "dictionary_learning")
    (folder / "config.json").write_text('{"trainer": "TopK"}')
    refused(folder, "trainer=TopK; give an object")


class Canary:
    """Unpickled carelessly it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.makedirs, (str(self.path), 0o777, True)


@pytest.mark.parametrize("name", ["dictionary_learning", "openai", "openmoss", "qwen_scope"])
@pytest.mark.parametrize("how", ["torch", "old torch", "plain pickle"])
def test_a_pickle_with_code_in_it_is_refused_and_nothing_is_run(name, how, tmp_path):
    canary, folder = tmp_path / "canary", tmp_path / "SAE-L0_7"
    if name == "qwen_scope":
        write_qwen_scope(folder)
    else:
        write_dictionary(random_dictionary("standard"), folder, name)
    others = {"openai": "0.pt", "openmoss": "sae_weights.pt", "qwen_scope": "layer1.sae.pt"}
    path = folder / others.get(name, "ae.pt")
    (folder / "sae_weights.safetensors").unlink(missing_ok=True)
    state = {"sae": {"W_E": Canary(canary)}, "encoder.weight": Canary(canary)}
    if how == "plain pickle":
        path.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=how == "torch")
    said = (
        "contains more than tensors and plain values"
        if how == "torch"
        else "is damaged or is another"
    )
    refused(folder, said)
    assert not canary.exists()
    # The canary does sing where pickles are trusted.
    if how == "plain pickle":
        pickle.loads(path.read_bytes())
        assert canary.exists()


def test_an_array_of_python_objects_is_refused_and_nothing_is_run(tmp_path):
    canary, folder = tmp_path / "canary", tmp_path / "one"
    folder.mkdir()
    np.savez(folder / "params.npz", W_enc=np.array([Canary(canary)], dtype=object))
    refused(
        folder, "contains Python objects, which could run any code and are therefore not read"
    )
    assert not canary.exists()


def npy(shape, content):
    """An array's file whose header claims `shape`."""
    header = io.BytesIO()
    about = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, about)
    return header.getvalue() + content


def test_a_header_that_claims_terabytes_takes_no_memory(tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    with zipfile.ZipFile(folder / "params.npz", "w") as archive:
        archive.writestr("W_enc.npy", npy((1 << 20, 1 << 20), b"1234"))
    refused(folder, r"W_enc\.npy claims shape \(1048576, 1048576\) of float32, but holds 4 byt")


@pytest.mark.parametrize("name", ["", ".", "..", "../w", "/w", 3, None, ["w"]], ids=str)
def test_a_part_that_is_no_file_beside_its_index_is_refused(name, tmp_path):
    folder = tmp_path / "one"
    write_dictionary(random_dictionary("standard"), folder, "saelens")
    (folder / "sae_weights.safetensors").unlink()
    index = folder / "sae_weights.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"W_enc": name}}))
    refused(folder, "is not a file beside it; give the file as it was saved")


def test_an_array_whose_header_alone_is_of_gigabytes_is_refused(tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    # Packed, four gigabytes of spaces are small.
    header = np.lib.format.magic(2, 0) + struct.pack("<I", (1 << 32) - 1) + b" " * (1 << 20)
    with zipfile.ZipFile(folder / "params.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("W_enc.npy", header)
    refused(folder, r"its arrays are of version \(2, 0\), not \(1, 0\)")


def test_a_safetensors_header_that_claims_terabytes_takes_no_memory(tmp_path):
    folder = tmp_path / "one"
    write_dictionary(random_dictionary("standard"), folder, "saelens")
    about = {"dtype": "F32", "shape": [1 << 20, 1 << 20], "data_offsets": [0, 1 << 42]}
    header = json.dumps({"W_enc": about}).encode()
    path = unseal(folder) / "sae_weights.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"1234")
    refused(folder, "is damaged or is another kind of file: ")


def test_a_pickled_tensor_that_repeats_one_number_into_terabytes_is_refused(tmp_path):
    folder = tmp_path / "one"
    write_dictionary(random_dictionary("standard"), folder, "dictionary_learning")
    state = torch.load(folder / "ae.pt", weights_only=True)
    state["encoder.weight"] = torch.zeros(1).expand(1 << 20, 1 << 20)
    torch.save(state, folder / "ae.pt")
    refused(folder, "encoder.weight claims 4398046511104 bytes, but the file has")


class BeyondItsStorage:
    """Pickled as a tensor that is larger than the numbers that it has."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __reduce__(self):
        place = torch.storage.TypedStorage(
            wrap_storage=self.tensor.untyped_storage(), dtype=torch.float32, _internal=True
        )
        size = (1 << 20, 1 << 20)
        return torch._utils._rebuild_tensor_v2, (place, 0, size, (1 << 20, 1), False, {})


def test_a_pickled_tensor_beyond_its_own_numbers_takes_no_memory(tmp_path):
    folder = tmp_path / "one"
    write_dictionary(random_dictionary("standard"), folder, "dictionary_learning")
    state = torch.load(folder / "ae.pt", weights_only=True)
    state["encoder.weight"] = BeyondItsStorage(torch.zeros(4))
    torch.save(state, folder / "ae.pt")
    refused(folder, "is damaged or is another kind of file: |claims 4398046511104 bytes")


@pytest.mark.parametrize(
    "value",
    [
        torch.eye(3).to_sparse(),
        torch.empty(3, device="meta"),
        "text",
        [1.0],
    ],
    ids=["sparse", "meta", "text", "list"],
)
def test_what_is_no_plain_tensor_in_a_pickle_is_named(value, tmp_path):
    folder = tmp_path / "one"
    write_dictionary(random_dictionary("standard"), folder, "dictionary_learning")
    state = torch.load(folder / "ae.pt", weights_only=True)
    torch.save({**state, "encoder.weight": value}, folder / "ae.pt")
    refused(folder, r"encoder\.weight is not a plain tensor; give the file as it was saved")
    torch.save([1, 2], folder / "ae.pt")
    refused(folder, "holds no state dict")


def test_a_pickle_that_was_compressed_is_refused(tmp_path):
    folder = tmp_path / "one"
    write_dictionary(random_dictionary("standard"), folder, "dictionary_learning")
    with (
        zipfile.ZipFile(folder / "ae.pt") as plain,
        zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for member in plain.namelist():
            small.writestr(member, plain.read(member))
    shutil.copyfile(tmp_path / "small.pt", folder / "ae.pt")
    refused(folder, "is compressed, which torch never does")


@pytest.mark.parametrize("name", ["../../evil.npy", "/tmp/evil.npy", "a\\b.npy", "evil.txt"])
def test_a_member_that_climbs_out_of_its_archive_is_refused(name, tmp_path):
    folder = tmp_path / "a/b/one"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "params.npz", "w") as archive:
        archive.writestr(name, npy((1,), b"1234"))
    refused(folder, "is not an array of its own")
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["params.npz"]


def test_weights_that_do_not_fit_into_memory_are_refused_before_they_are_read(
    there, monkeypatch
):
    import psutil

    free = psutil.virtual_memory()._replace(available=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    refused(there[0], r"its weights take 0\.0 GB of memory as float32, and 0\.0 GB are free")


def test_arrays_of_the_other_byte_order_are_read(tmp_path):
    folder = tmp_path / "one"
    write_dictionary(random_dictionary("jumprelu"), folder, "gemma_scope")
    expected = sae.load(str(folder))
    with np.load(folder / "params.npz") as file:
        swapped = {name: file[name].astype(">f4") for name in file.files}
    np.savez(folder / "params.npz", **swapped)
    assert sae.load(str(folder)).digest == expected.digest


def test_float32_weights_are_mapped_and_not_copied(tmp_path):
    dictionary = random_dictionary("standard", d_in=256, d_sae=4096)
    write_dictionary(dictionary, tmp_path / "one", "saelens")
    path = tmp_path / "one/sae_weights.safetensors"
    before = open_safetensors(path).get("W_enc")
    assert str(path) in Path("/proc/self/maps").read_text(encoding="utf-8")
    found = sae.load(str(tmp_path / "one"))
    # What is written to one of them stays there.
    before.zero_()
    assert torch.equal(found.W_enc, dictionary.W_enc)
    found.W_dec.zero_()
    assert torch.equal(load_file(path)["W_dec"], dictionary.W_dec)


FLAGS = {
    "saelens": ("apply_b_dec_to_input", "rescale_acts_by_decoder_norm"),
    "sparsify": ("signed", "skip_connection", "transcode"),
    "gemma_scope_2": ("affine_connection",),
    "openmoss": (
        "apply_decoder_bias_to_pre_encoder",
        "sparsity_include_decoder_norm",
        "use_decoder_bias",
        "use_glu_encoder",
    ),
}


@pytest.mark.parametrize(
    ("name", "key"), [(n, key) for n, keys in FLAGS.items() for key in keys]
)
def test_text_in_the_place_of_true_or_false_is_refused(name, key, tmp_path):
    folder = tmp_path / "layers.1"
    dictionary = random_dictionary("jumprelu" if name == "gemma_scope_2" else "topk")
    write_dictionary(dictionary, folder, name)
    path = unseal(folder) / CONFIGS[name]
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: "false"}))
    refused(folder, f"{key}='false'; give true or false")


def test_a_logarithm_beyond_float32_is_a_threshold_that_nothing_passes(tmp_path):
    folder, most = tmp_path / "one", torch.finfo(torch.float32).max
    dictionary = random_dictionary("jumprelu", hook_name=HOOK)
    write_dictionary(dictionary, folder, "saelens")
    tensors = load(unseal(folder) / "sae_weights.safetensors")
    tensors["log_threshold"] = torch.full_like(tensors.pop("threshold"), 100.0)
    save(tensors, folder / "sae_weights.safetensors")
    assert set(sae.load(str(folder)).activation.threshold.tolist()) == {most}
    dictionary.activation.threshold[3] = most
    write_dictionary(dictionary, tmp_path / "two", "openmoss")
    found = sae.load(str(tmp_path / "two"))
    assert found.activation.threshold[3] > 0.99 * most
    assert bool(found.activation.threshold.isfinite().all())


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_is_no_dictionary_of_its_own_is_refused(name, tmp_path):
    path = tmp_path / "some.bin"
    path.write_bytes(b"1234")
    with pytest.raises(UserError, match=r"some\.bin "):
        sae.load(str(path), name)
    refused(path, "is not the file of a dictionary; give a folder, or a file of openai")


def test_a_file_out_of_a_folder_is_refused_with_whose_folder_to_give(tmp_path):
    folder = tmp_path / "one"
    write_dictionary(random_dictionary("standard"), folder, "dictionary_learning")
    refused(
        folder / "ae.pt", f"is only a part of what dictionary_learning saves; give .* {folder}"
    )
    with pytest.raises(
        UserError, match=r"one holds no dictionary of sparsify; it would hold sae"
    ):
        sae.load(str(folder), "sparsify")
    with pytest.raises(UserError, match="is only a part of what dictionary_learning saves"):
        sae.load(str(folder / "ae.pt"), "openai")


def test_a_folder_in_the_place_of_a_configuration_is_refused(tmp_path):
    for name, config in CONFIGS.items():
        folder = tmp_path / name
        write_dictionary(
            random_dictionary("topk" if name == "sparsify" else "standard"), folder, name
        )
        (folder / config).unlink()
        (folder / config).mkdir()
        refused(folder, "could not be read: Is a directory|holds no dictionary that is known")


def test_a_name_that_is_too_long_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"^xxxxxxxxxxxxxxxxxxxx\.\.\. has 300 bytes, and the name"
    ):
        sae.load("x" * 300)
    folder = tmp_path / "one"
    write_dictionary(random_dictionary("standard"), folder, "saelens")
    (folder / "sae_weights.safetensors").unlink()
    index = folder / "sae_weights.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"W_enc": "x" * 300}}))
    refused(folder, "could not be read: File name too long")


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
def test_a_checkpoint_of_a_training_says_how_to_save_the_dictionary(architecture, tmp_path):
    folder = tmp_path / "one"
    write_dictionary(random_dictionary("standard"), folder, "saelens")
    config = json.loads((unseal(folder) / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | {"architecture": architecture}))
    refused(
        folder, f"is a training checkpoint of {architecture}; save .* with save_inference_m"
    )


def test_gemma_scopes_layer_is_the_one_below_its_release(tmp_path):
    for above in ("layer_7_runs", "embedding"):
        folder = tmp_path / above / "gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82"
        write_dictionary(random_dictionary("jumprelu"), folder, "gemma_scope")
        (folder / "sae_atlas.json").unlink()
        found = metadata_of(sae.load(str(folder)))
        assert found == {
            "model_name": "google/gemma-2-2b",
            "hook_name": "blocks.12.hook_resid_post",
        }


def test_a_folder_with_one_dictionary_below_is_that_one(tmp_path):
    dictionary = random_dictionary("standard", hook_name=HOOK)
    write_dictionary(dictionary, tmp_path / HOOK, "saelens")
    assert sae.load(str(tmp_path)).digest == dictionary.digest
    assert sae.load(str(tmp_path), "saelens").digest == dictionary.digest
    write_dictionary(dictionary, tmp_path / "two", "saelens")
    refused(tmp_path, "holds 2 dictionaries; give one of ")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_tensor_of_several_lengths_in_a_pickle_is_named(tmp_path):
    folder = tmp_path / "one"
    write_dictionary(random_dictionary("standard"), folder, "dictionary_learning")
    state = torch.load(folder / "ae.pt", weights_only=True)
    nested = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])
    torch.save({**state, "bias2": nested}, folder / "ae.pt")
    refused(folder, "bias2 is not a plain tensor; give the file as it was saved")
