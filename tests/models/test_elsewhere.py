"""A run whose model was named by a relative path, from another working directory."""

import shutil
from pathlib import Path

import pytest
from support.world import harvest_settings

import sae
from sae.base.errors import UserError
from sae.models.load import ModelConfig, load_model, recorded_name


@pytest.fixture
def places(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `here` with the tiny model in it, where one is, and another `there`."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    shutil.copytree(tiny_model, tmp_path / "here" / "my-model")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "here"))
    return tmp_path


def test_a_folder_has_one_name_however_it_is_written(places, monkeypatch):
    expected = str(places / "here" / "my-model")
    (places / "link").symlink_to("here/my-model")
    (places / "deep" / "er").mkdir(parents=True)
    (places / "there" / "shortcut").symlink_to(places / "deep" / "er")
    names = ("my-model", "./my-model", "../here/my-model", "~/my-model", expected)
    assert {recorded_name(name) for name in names} == {expected}
    assert recorded_name("../link") == str(places / "link")
    monkeypatch.chdir(places / "there")
    # What `..` leads to behind a link is what the system says, not what the words do.
    (places / "deep" / "my-model").symlink_to(expected)
    assert recorded_name("shortcut/../my-model") == expected
    assert recorded_name("smollm2") == "smollm2"
    assert recorded_name("gpt2") == "gpt2"
    assert load_model(ModelConfig(name="~/my-model")).record.name == expected


def test_a_text_is_the_same_from_everywhere_and_another_of_its_name_is_not(
    places, tiny_text, monkeypatch
):
    here, there = places / "here", places / "there"
    shutil.copytree(tiny_text, here / "texts")

    def digest(name: str) -> str:
        return sae.HarvestConfig(data=sae.DataConfig(name=name)).digest

    found = {digest(name) for name in ("texts", "./texts", "~/texts", str(here / "texts"))}
    assert len(found) == 1
    assert digest("texts/*.jsonl") == digest(str(here / "texts/*.jsonl")) not in found
    monkeypatch.chdir(there)
    assert digest("../here/texts") in found
    shutil.copytree(tiny_text, there / "texts")
    assert digest("texts") not in found
    as_written = sae.HarvestConfig(data=sae.DataConfig(name="texts"))
    assert as_written.digest_before != as_written.digest


@pytest.mark.slow
def test_every_command_finds_the_model_from_another_working_directory(
    places, tiny_text, monkeypatch, capsys
):
    run = places / "run"
    given = harvest_settings(run, Path("my-model"), tiny_text) | {"n_tokens": 2048}
    given["model"] = ModelConfig(name="./my-model")
    cache = sae.harvest(**given)
    monkeypatch.chdir(places / "there")
    here = {"run": str(run)}
    for name in ("../here/my-model", str(places / "here" / "my-model")):
        assert sae.harvest(**given | {"model": ModelConfig(name=name)}).digest == cache.digest
    assert "reused" in capsys.readouterr().err
    sae.train(
        **here,
        name="small",
        sae=sae.TopKConfig(d_sae=48, k=4),
        training_tokens=2048,
        train_batch_size_tokens=256,
    )
    (figures,) = sae.eval(**here, n_behaviour_tokens=256)
    assert figures.n_behaviour_tokens > 0
    atlas = sae.analyze(**here)
    live = next(row["feature"] for row in atlas.features() if row["max_activation"] > 0)
    sae.steer(
        **here,
        features=[live],
        strengths=[1.0],
        max_new_tokens=2,
        prompts=["the cat ran", "the river", "a mill", "it was"],
    )
    sae.export(**here, out=str(places / "out"))
    sae.cache_sample(cache=str(run / "cache.zarr"))
    # What is given to others does not say where anything is on this disk.
    for file in (places / "out").rglob("*"):
        if file.is_file():
            assert str(places).encode() not in file.read_bytes(), file
            assert str(tiny_text).encode() not in file.read_bytes(), file
    (folder,) = (file.parent for file in (places / "out").rglob("cfg.json"))
    found = sae.load(str(folder)).record
    assert (found.model_name, found.model.name, found.model.hub_id) == ("my-model",) * 3
    assert found.model.weight_digest == cache.model.weight_digest
    # Beside the cache that knows the model it is the same one again.
    given = {"folder": str(folder), "name": "back"}
    assert sae.import_(**here, **given).record.model.name == cache.model.name
    with pytest.raises(UserError, match="says that it belongs to my-model, but"):
        sae.import_(run=str(places / "other"), **given)
