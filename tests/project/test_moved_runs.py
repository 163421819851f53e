"""A run is not tied to its place, nor to the folder that commands are started in."""

import shutil
from pathlib import Path

import pytest

import sae
from sae import DataConfig, ModelConfig
from sae.base.files import read_json

HOOK = "blocks.1.hook_resid_post"


def train(run: str, tokens: int = 4_000, **others: object) -> sae.Dictionary:
    return sae.train(
        run=run,
        name="one",
        sae=sae.StandardConfig(d_sae=48, l1_coefficient=0.5),
        training_tokens=tokens,
        train_batch_size_tokens=100,
        **others,
    )


def look(run: str) -> None:
    sae.eval(run=run, n_behaviour_tokens=64)
    sae.analyze(run=run, n_contexts=3)
    sae.steer(run=run, n_features=1, strengths=[-1.0, 1.0], max_new_tokens=2)


@pytest.fixture(scope="module")
def made_here(tiny_model, tiny_text, tmp_path_factory) -> Path:
    """A folder with a model, a text and a run, of which all were named by relative paths."""
    here = tmp_path_factory.mktemp("here")
    shutil.copytree(tiny_model, here / "model")
    shutil.copytree(tiny_text, here / "text")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        sae.harvest(
            run="runs/first",
            model=ModelConfig(name="model"),
            data=DataConfig(name="text"),
            hook_names=[HOOK],
            n_tokens=8192,
            context_size=32,
        )
        train("runs/first")
        look("runs/first")
    return here


def moved(here: Path, there: Path) -> str:
    shutil.copytree(here / "runs/first", there / "moved")
    return str(there / "moved")


def linked(here: Path, there: Path) -> str:
    shutil.copytree(here / "runs/first", there / "moved")
    (there / "link").symlink_to(there / "moved")
    return str(there / "link")


def relative(here: Path, there: Path) -> str:
    shutil.copytree(here / "runs/first", there / "moved")
    (there / "below").mkdir()
    return "../there/moved"


WAYS = pytest.mark.parametrize("way", [moved, linked, relative])


@pytest.fixture
def run(way, made_here, tmp_path, monkeypatch) -> str:
    there = tmp_path / "there"
    there.mkdir()
    monkeypatch.chdir(there)
    return way(made_here, there)


@pytest.mark.slow
@WAYS
def test_what_was_made_is_found_and_reused_wherever_the_run_is(run, capfd):
    made = [p for p in Path(run).rglob("*") if p.suffix in (".parquet", ".safetensors")]
    made += [Path(run, place) for place in ("evals/one.json", "steering/one.json")]
    before = {p: p.stat().st_mtime_ns for p in made}
    train(run)
    look(run)
    said = capfd.readouterr().err
    for what in ("dictionaries/one", "evals/one.json", "atlas/one", "steering/one.json"):
        assert f"{run}/{what} is finished already and is reused" in said
    assert {p: p.stat().st_mtime_ns for p in made} == before


@pytest.mark.slow
@WAYS
def test_what_is_missing_is_made_wherever_the_run_is(run):
    record = sae.open_cache(f"{run}/cache.zarr").model
    assert Path(record.name).is_absolute()
    # What others are told is as it was given.
    assert record.hub_id == "model"
    shutil.rmtree(f"{run}/atlas")
    before = read_json(Path(run) / "evals/one.json")
    Path(run, "evals/one.json").unlink()
    Path(run, "steering/one.json").unlink()
    look(run)
    after = read_json(Path(run) / "evals/one.json")
    assert {**after, "seconds": 0} == {**before, "seconds": 0}
    assert Path(run, "steering/one.json").exists()
    sae.export(run=run)
    assert Path(run, "export/one/README.md").exists()


@WAYS
def test_a_training_goes_on_wherever_the_run_is(run, capfd):
    longer = train(run, 6_000, extend=True)
    assert "one continues from step 40 of 60" in capfd.readouterr().err
    assert longer.d_sae == 48
