"""`sae import` of what it must not take, and where it must not write."""

import json
import os
import shutil
import signal
import time

import pytest
from safetensors.torch import load_file, save_file
from support.files import unseal
from support.world import HOOK, random_dictionary, training_json

import sae
from sae.base.errors import UserError
from sae.base.files import only_process
from sae.cli import main
from sae.dictionary import files
from sae.dictionary.files import save_dictionary
from sae.dictionary.metadata import metadata_of
from sae.exchange.formats import write_dictionary

MLP_IN, MLP_OUT = "blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out"


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    """A copy of the tiny run's cache."""
    folder = tmp_path_factory.mktemp("imports") / "run"
    shutil.copytree(tiny_run / "cache.zarr", folder / "cache.zarr")
    return folder


def edited(folder, change, file="cfg.json"):
    config = json.loads((folder / file).read_text())
    change(config)
    (unseal(folder) / file).write_text(json.dumps(config))
    return str(folder)


def named(folder, **metadata):
    save_dictionary(random_dictionary("standard", hook_name=HOOK, **metadata), folder)
    return folder


def test_a_folder_that_holds_something_else_is_not_replaced(run, tmp_path):
    precious = run / "dictionaries/mine/notes.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("precious")
    with pytest.raises(UserError, match="mine holds something that is not a dictionary; give"):
        sae.import_(folder=str(named(tmp_path / "one")), run=str(run), name="mine")
    assert precious.read_text() == "precious"
    (run / "dictionaries/file").write_text("precious")
    with pytest.raises(UserError, match="file holds something that is not a dictionary; give"):
        sae.import_(folder=str(tmp_path / "one"), run=str(run), name="file")
    (run / "dictionaries/empty").mkdir()
    sae.import_(folder=str(tmp_path / "one"), run=str(run), name="empty")
    assert (run / "dictionaries/empty/cfg.json").exists()


@pytest.mark.parametrize("name", ["gemma_scope", "sparsify", "saelens", "openai"])
def test_a_folder_that_lies_where_its_import_would_go_stays_as_it_is(name, run):
    folder = run / "dictionaries" / f"there-{name}"
    architecture = "topk" if name == "sparsify" else "standard"
    write_dictionary(random_dictionary(architecture, hook_name=HOOK), folder, name)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(
        UserError, match=r"is the place where the import of .* would be written; move it elsewh"
    ):
        sae.import_(folder=str(folder), run=str(run))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    shutil.rmtree(folder)


def transcoder_of(name, tmp_path):
    """A folder that says that it is a transcoder, and not to which hook."""
    folder = tmp_path / "gemma-scope-2b-pt-transcoders/layer_1/width_16k/average_l0_82"
    architecture = {"sparsify": "topk", "saelens": "standard"}.get(name, "jumprelu")
    theirs = random_dictionary(architecture, d_out=32, hook_name=MLP_IN, hook_name_out=MLP_OUT)
    write_dictionary(theirs, folder, name)
    (folder / "sae_atlas.json").unlink(missing_ok=True)
    if name == "saelens":
        edited(folder, lambda config: config["metadata"].pop("hook_name_out"))
    if name == "gemma_scope_2":
        edited(folder, lambda config: config.pop("hf_hook_point_out"), "config.json")
    return folder


@pytest.mark.parametrize("name", ["sparsify", "gemma_scope", "gemma_scope_2", "saelens"])
def test_what_says_that_it_is_a_transcoder_is_asked_for_its_second_hook(
    name, run, tiny_model, tmp_path
):
    folder = transcoder_of(name, tmp_path)
    assert sae.load(str(folder)).is_transcoder
    again = tmp_path / "again"
    save_dictionary(sae.load(str(folder)), again)
    assert sae.load(str(again)).is_transcoder
    asked = {"folder": str(folder), "run": str(run), "model_name": str(tiny_model)}
    asked |= {"name": f"transcoder-{name}"}
    with pytest.raises(UserError, match="does not say which hook it reconstructs; give hook_n"):
        sae.import_(**asked, hook_name=MLP_IN)
    found = sae.import_(**asked, hook_name=MLP_IN, hook_name_out=MLP_OUT)
    assert found.hook_names == (MLP_IN, MLP_OUT)
    assert found.is_transcoder


def test_what_overflows_once_it_is_folded_is_refused_before_anything_is_written(run, tmp_path):
    folder = named(tmp_path / "over")
    path = folder / "sae_weights.safetensors"
    weights = {name: w.clone() for name, w in load_file(path).items()}
    save_file(
        weights | {"b_dec": weights["b_dec"] * 3e37, "W_enc": 99 * weights["W_enc"]}, path
    )
    edited(folder, lambda config: config.update(apply_b_dec_to_input=True))
    for read in (sae.load, lambda f: sae.import_(folder=f, run=str(run))):
        with pytest.raises(
            UserError, match="over: b_enc would contain NaN or infinity once bias"
        ):
            read(str(folder))
    assert not (run / "dictionaries/over").exists()


def import_killed(folder, run):
    files.save = lambda tensors: os.kill(os.getpid(), signal.SIGKILL)
    sae.import_(folder=folder, run=run, name="killed")


def test_what_a_killed_import_left_is_removed_by_the_next(run, tmp_path, processes):
    folder = named(tmp_path / "one")
    child = processes.Process(target=import_killed, args=(str(folder), str(run)))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert list((run / "dictionaries").glob(".killed.*.partial"))
    sae.import_(folder=str(folder), run=str(run), name="killed")
    assert not list((run / "dictionaries").glob(".killed.*"))


def hold(lock, held):
    with only_process(lock, UserError):
        held.set()
        time.sleep(60)


def test_an_import_of_a_name_that_another_process_writes_is_refused(run, tmp_path, processes):
    held = processes.Event()
    other = processes.Process(target=hold, args=(run / "training/held/.lock", held))
    other.start()
    assert held.wait(20)
    with pytest.raises(
        UserError, match=f"is being made by another process .process {other.pid}"
    ):
        sae.import_(folder=str(named(tmp_path / "one")), run=str(run), name="held")
    other.kill()
    other.join()


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        (5, "sae_atlas=5, where sae-atlas writes an object; take sae_atlas out of the file"),
        ("x", "sae_atlas='x', where"),
        ([], r"sae_atlas=\[\], where"),
        (None, "sae_atlas=None, where"),
        ({"model": 3}, "sae_atlas.model=3, where sae-atlas writes an object"),
        ({"model": None}, "sae_atlas.model=None, where"),
        ({"model": {}}, "sae_atlas.model.name=None, where sae-atlas writes text"),
        (
            training_json(training_tokens="many"),
            "training_tokens='many', where sae-atlas writes a whole n",
        ),
        (training_json(training_tokens=True), "training_tokens=True, where"),
        ({"training_tokens": 5}, "sae_atlas.digest=None, where"),
        (training_json(architecture=None), "sae_atlas.architecture=None, where"),
        ({"data": {"name": 5}}, "sae_atlas.data.name=5, where"),
        ({"data": {"held_out_fraction": "x"}}, "held_out_fraction='x', where .* a number"),
        ({"max_norm_multiple": "x"}, "max_norm_multiple='x', where .* a number or null"),
        ({"imported": {"from": 3}}, "sae_atlas.imported.from=3, where"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["saelens", "sparsify"])
def test_a_record_that_we_would_not_write_is_refused(name, record, sentence, run, tmp_path):
    architecture = "topk" if name == "sparsify" else "standard"
    theirs = random_dictionary(architecture, hook_name=HOOK)
    write_dictionary(theirs, tmp_path / "odd", name)
    # Sparsify has no room for metadata of its own: ours are in a file beside.
    if name == "saelens":
        edited(tmp_path / "odd", lambda config: config["metadata"].update(sae_atlas=record))
    else:
        edited(tmp_path / "odd", lambda said: said.update(sae_atlas=record), "sae_atlas.json")
    for read in (sae.load, lambda f: sae.import_(folder=f, run=str(run))):
        with pytest.raises(UserError, match=sentence):
            read(str(tmp_path / "odd"))
    assert not (run / "dictionaries/odd").exists()


def test_an_imported_dictionary_does_not_claim_that_it_was_trained_here(run, tmp_path):
    training = {"training_tokens": 7, "architecture": "standard", "sae": {}, "optim": {}}
    training |= {"train_batch_size_tokens": 1, "max_norm_multiple": 3.5, "seed": 0}
    training |= {"versions": {"sae-atlas": "9"}, "digest": "0" * 16, "identity": {"a": 1}}
    folder = named(tmp_path / "claims", sae_atlas=training)
    found = metadata_of(sae.import_(folder=str(folder), run=str(run)))["sae_atlas"]
    assert {*found} == {"model", "max_norm_multiple", "imported", "sites"}
    assert found["max_norm_multiple"] == 3.5
    assert found["imported"]["record"] == training


def test_half_a_character_and_no_number_in_metadata_do_no_harm(run, tmp_path):
    folder = named(tmp_path / "half")
    odd = {"note": "a\ud800b", "other": float("nan")}
    edited(folder, lambda config: config["metadata"].update(odd))
    found = sae.import_(folder=str(folder), run=str(run))
    assert (metadata_of(found)["note"], metadata_of(found)["other"]) == ("a?b", None)
    assert sae.import_(folder=str(folder), run=str(run)).digest == found.digest


def test_a_name_that_no_system_has_room_for_is_refused(run, tmp_path):
    folder = str(named(tmp_path / "one"))
    for asked in ({"name": "x" * 250}, {"model_name": "x" * 300, "cache": "none"}):
        with pytest.raises(UserError, match=r"xxxxx\.\.\. (has|is) \d+ bytes"):
            sae.import_(folder=folder, run=str(run), **asked)


def test_a_hook_that_contradicts_the_dictionarys_own_is_refused(run, tmp_path):
    folder = str(named(tmp_path / "one"))
    with pytest.raises(
        UserError, match=r"one reads blocks\.1\.hook_resid_post, but hook_name=blocks\.0\.hook_"
    ):
        sae.import_(folder=folder, run=str(run), hook_name="blocks.0.hook_resid_post")
    # The same place by other names.
    for i, same in enumerate((HOOK, "model.layers.1", "layers.1")):
        found = sae.import_(folder=folder, run=str(run), hook_name=same, name=f"same{i}")
        assert found.hook_name == HOOK
    theirs = named(tmp_path / "read")
    edited(theirs, lambda c: c["metadata"].update(hook_name="blocks.1.hook_resid_pre"))
    before = "blocks.0.hook_resid_post"
    found = sae.import_(folder=str(theirs), run=str(run), hook_name=before)
    assert found.hook_name == before


def test_model_and_hook_are_asked_for_at_once_and_the_caches_hooks_are_named(run, tmp_path):
    save_dictionary(random_dictionary("standard"), tmp_path / "one")
    with pytest.raises(
        UserError,
        match="one does not say which model it is of and which hook it reads; give "
        r"model_name=\.\.\. hook_name=\.\.\.$",
    ):
        sae.import_(folder=str(tmp_path / "one"), run=str(tmp_path))
    with pytest.raises(UserError, match=rf"give hook_name=\.\.\.; .*cache\.zarr has .*{HOOK}"):
        sae.import_(folder=str(tmp_path / "one"), run=str(run))


def test_a_model_that_is_not_to_be_had_is_said_to_be_the_files_or_the_commands(tmp_path):
    folder = str(named(tmp_path / "one", model_name="nobody-2m"))
    with pytest.raises(
        UserError, match="one says that it belongs to nobody-2m, but nobody-2m is not"
    ):
        sae.import_(folder=folder, run=str(tmp_path))
    with pytest.raises(UserError, match=r"^model_name=none-3m is not embedded"):
        sae.import_(folder=folder, run=str(tmp_path), model_name="none-3m")


def test_a_numbered_folder_goes_by_the_name_of_the_one_above(run, tiny_model, tmp_path):
    folder = tmp_path / "dl-topk/trainer_0"
    write_dictionary(random_dictionary("topk", hook_name=HOOK), folder, "dictionary_learning")
    sae.import_(folder=str(folder), run=str(run))
    assert (run / "dictionaries/dl-topk-trainer_0/cfg.json").exists()


def test_where_an_import_is_from_names_no_folder_of_this_disk(run, tmp_path):
    found = sae.import_(folder=str(named(tmp_path / "one")), run=str(run), name="from")
    assert metadata_of(found)["sae_atlas"]["imported"]["from"] == "one"
    assert str(tmp_path) not in (run / "dictionaries/from/cfg.json").read_text()


def test_an_export_is_imported_from_the_folder_above_its_hooks(run, tmp_path, capsys):
    named(tmp_path / "export" / HOOK)
    (tmp_path / "export/.one.0123abcd.partial").mkdir()
    shutil.copytree(tmp_path / "export" / HOOK, tmp_path / "export/.hidden/one")
    assert main(["import", str(tmp_path / "export"), f"run={run}"]) == 0
    assert (run / "dictionaries/export/cfg.json").exists()
