"""What is there is not taken for right: damage is seen, named and made good."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from support.atlas_samples import (
    context_rows,
    feature_columns,
    sample_record,
    sample_tables,
    write_sample,
)
from support.figures import made_figures
from support.files import tree, unseal
from support.world import HOOK, random_dictionary

import sae
from sae.atlas import CONTEXTS, FEATURES, Atlas, read_labels, write_record
from sae.base import UserError, sealed_path, write_json
from sae.base.states import steps_saved
from sae.dictionary import save_dictionary
from sae.figures import Figures
from sae.training.checkpoint import CheckpointConfig, Checkpoints


def flip(path: Path, bit: int) -> None:
    """Damage a file in one bit, as a file of its own: the old one may be mapped."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.unlink()
    path.write_bytes(content)


def some_bits(path: Path, n: int) -> list[int]:
    return random.Random(7).sample(range(8 * path.stat().st_size), n)


# Checkpoints


@pytest.fixture
def checkpoints(tmp_path):
    """Two checkpoints of a training, of steps 10 and 20."""
    found = Checkpoints(tmp_path, CheckpointConfig(keep_last=2))
    for step in (10, 20):
        state = {"trainer": {"w": torch.full((50, 50), float(step)), "step": step}}
        found.save(step, {"seed": 0}, state)
    return found


def test_a_checkpoint_with_any_bit_flipped_gives_way_to_the_one_before(checkpoints, capsys):
    newest = checkpoints.folder / "step_0000000020.pt"
    whole = newest.read_bytes()
    for bit in some_bits(newest, 60):
        newest.write_bytes(whole)
        flip(newest, bit)
        found = checkpoints.newest()
        assert found.state["trainer"]["step"] == 10
        assert torch.equal(found.state["trainer"]["w"], torch.full((50, 50), 10.0))
        assert f"{newest} is damaged" in capsys.readouterr().err
        assert steps_saved(checkpoints.folder) == [10]
    newest.write_bytes(whole)
    assert checkpoints.newest().state["trainer"]["step"] == 20


def test_where_every_checkpoint_is_damaged_they_are_named_and_stay(checkpoints):
    for path in checkpoints.folder.glob("step_*.pt"):
        flip(path, some_bits(path, 1)[0])
    with pytest.raises(UserError, match=r"step_0000000020\.pt is damaged, .* to begin again"):
        checkpoints.newest()
    assert steps_saved(checkpoints.folder) == [10, 20]


def test_a_checkpoint_from_before_there_were_digests_is_read(checkpoints):
    unseal(checkpoints.folder)
    assert checkpoints.newest().state["trainer"]["step"] == 20


# Dictionaries


@pytest.fixture
def run(tmp_path, tiny_run):
    """A copy of the tiny run."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def weak(run: Path) -> dict[str, object]:
    """How its dictionary `weak` was trained."""
    return {
        "run": str(run),
        "name": "weak",
        "sae": sae.StandardConfig(d_sae=64, l1_coefficient=0.5),
        "training_tokens": 40_000,
        "train_batch_size_tokens": 256,
    }


def test_a_dictionary_with_any_bit_flipped_is_refused_and_named(tmp_path):
    save_dictionary(random_dictionary("topk", hook_name=HOOK), tmp_path / "one")
    for name in ("cfg.json", "sae_weights.safetensors"):
        path = tmp_path / "one" / name
        whole = path.read_bytes()
        for bit in some_bits(path, 40):
            flip(path, bit)
            with pytest.raises(UserError, match=f"one/{name} is damaged, .*again, which makes"):
                sae.load(str(tmp_path / "one"))
            path.write_bytes(whole)
    assert sae.load(str(tmp_path / "one")).d_sae == 48


@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors"])
def test_training_makes_a_damaged_dictionary_anew_from_its_checkpoint(run, name, capsys):
    folder = run / "dictionaries" / "weak"
    whole = tree(folder)
    flip(folder / name, some_bits(folder / name, 1)[0])
    with pytest.raises(UserError, match=f"weak/{name} is damaged"):
        sae.eval(run=str(run), dictionary="weak")
    assert not (run / "evals").exists()
    sae.train(**weak(run))
    assert tree(folder) == whole
    assert (
        f"{folder / name} is damaged; the dictionary is trained again"
        in capsys.readouterr().err
    )


def test_a_damaged_dictionary_without_its_checkpoint_is_not_trained_over(run):
    folder = run / "dictionaries" / "weak"
    flip(folder / "cfg.json", 5000)
    shutil.rmtree(run / "training" / "weak")
    damaged = tree(folder)
    with pytest.raises(UserError, match=r"contains no checkpoint .* remove that dictionary"):
        sae.train(**weak(run))
    assert tree(folder) == damaged


def test_an_import_makes_its_damaged_dictionary_anew_and_no_other(run, tmp_path):
    save_dictionary(random_dictionary("standard", hook_name=HOOK), tmp_path / "theirs")
    asked = {"folder": str(tmp_path / "theirs"), "run": str(run)}
    sae.import_(**asked)
    folder = run / "dictionaries" / "theirs"
    whole = tree(folder)
    flip(folder / "sae_weights.safetensors", 9000)
    sae.import_(**asked)
    assert tree(folder) == whole
    flip(folder / "cfg.json", 900)
    with pytest.raises(UserError, match=r"cfg\.json is damaged, .* remove that folder"):
        sae.import_(**asked)


# Figures


def test_figures_with_any_bit_flipped_are_refused(tmp_path):
    path = tmp_path / "weak.json"
    with sealed_path(path) as temporary:
        write_json(temporary, made_figures("weak").to_json())
    whole = path.read_bytes()
    for bit in some_bits(path, 40):
        flip(path, bit)
        with pytest.raises(UserError, match=r"weak\.json is damaged.*sae eval again"):
            Figures.read(path)
        path.write_bytes(whole)
    assert Figures.read(path).id == "weak"


@pytest.mark.slow
def test_eval_measures_damaged_figures_again(run):
    (found,) = sae.eval(run=str(run), dictionary="weak")
    path = run / "evals" / "weak.json"
    text = path.read_text()
    digit = text.rindex('"l0": ') + len('"l0": ')
    path.write_text(text[:digit] + str((int(text[digit]) + 1) % 10) + text[digit + 1 :])
    (again,) = sae.eval(run=str(run), dictionary="weak")
    assert again.values == found.values
    assert json.loads(path.read_text())["l0"] == found.values["l0"]


# Atlases


@pytest.fixture
def atlas(tmp_path):
    """A whole atlas with pages."""
    folder = tmp_path / "atlas"
    chance = random.Random(0)
    columns = feature_columns(chance, [0] * 33, [False] * 33, hostile=False, logits=True)
    rows = [row for f in range(33) for row in context_rows(f, ["a", "b"], [], 1.0)]
    write_sample(folder, 33)
    features, contexts = sample_tables(columns, rows)
    FEATURES.write(folder, {n: features[n] for n in features.column_names})
    CONTEXTS.write(folder, {n: contexts[n] for n in contexts.column_names})
    write_record(folder, sample_record(33, 0))
    return Atlas(folder)


def test_an_atlas_of_which_any_file_is_damaged_is_to_be_made_anew(atlas, capsys):
    assert atlas.digest == atlas.record.digest
    whole = tree(atlas.folder)
    assert len(whole) > 8
    for i, name in enumerate(whole.keys() - {"SHA256SUMS", "data/labels.js", "data/pareto.js"}):
        path = atlas.folder / name
        damages = (
            lambda path: flip(path, some_bits(path, 1)[0]),
            lambda path: path.write_text(""),
            lambda path: path.unlink(),
        )
        damages[i % 3](path)
        assert atlas.digest is None, name
        assert str(path) in capsys.readouterr().err
        path.write_bytes(whole[name])
    assert atlas.digest == atlas.record.digest


@pytest.mark.parametrize("name", ["features.parquet", "contexts.parquet"])
def test_a_table_with_a_flipped_bit_is_not_read(atlas, name):
    path = atlas.folder / name
    whole = path.read_bytes()
    for bit in some_bits(path, 30):
        flip(path, bit)
        with pytest.raises(UserError, match=f"{name} is damaged, .*run sae analyze again"):
            atlas.features() if name == FEATURES.file else list(atlas.context_batches())
        path.write_bytes(whole)


def test_what_people_write_into_an_atlas_is_no_damage(atlas):
    (atlas.folder / "labels.csv").write_text("feature,label\n3,mine\n")
    (atlas.folder / "data" / "labels.js").write_text("")
    assert atlas.digest == atlas.record.digest
    assert read_labels(atlas.folder).by_hand == [3]


@pytest.mark.slow
def test_analyze_makes_a_damaged_atlas_anew_with_what_people_wrote(run):
    shutil.rmtree(run / "dictionaries" / "weak")
    folder = sae.analyze(run=str(run)).folder
    whole = tree(folder)
    written = "feature,label,explanation\n3,mine,\n"
    for name in ("features.parquet", "data/index.js", "atlas.json"):
        (folder / "labels.csv").write_text(written)
        flip(folder / name, some_bits(folder / name, 1)[0])
        sae.analyze(run=str(run))
        found = tree(folder)
        changed = {n for n in whole if found[n] != whole[n]}
        assert changed <= {"labels.csv", "data/labels.js"}, name
        # Where its record cannot be read, nothing tells of which dictionary the labels are.
        beside = folder.glob("labels-*.csv") if name == "atlas.json" else []
        kept = [folder / "labels.csv", *beside]
        assert any("3,mine," in path.read_text() for path in kept)
