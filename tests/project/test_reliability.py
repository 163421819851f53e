"""The harness that kills, damages and fills disks, on two commands and some of its trials."""

from dataclasses import replace

import pytest

from benchmarks.reliability.trials import DAMAGES, Trial, all_trials, run
from benchmarks.reliability.world import STAGES, World

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory, processes):
    world = World(tmp_path_factory.mktemp("reliability") / "world", processes, STAGES[:2])
    try:
        world.build()
        yield world
    finally:
        world.close()


@pytest.mark.parametrize(
    ("number", "kind"),
    [(0, "kill"), (1, "kill"), (0, "file limit"), (1, "full disk")],
)
def test_a_command_that_is_disturbed_ends_in_the_same_bytes(world, number, kind):
    if kind == "full disk" and not world.mounted:
        pytest.skip("a disk of its own may not be mounted here")
    found = run(world, Trial(STAGES[number].name, kind, number, seed=3))
    assert found.outcome == "same bytes", found


WEIGHTS = "run/dictionaries/one/sae_weights.safetensors"
CHUNK = "run/cache.zarr/activations/blocks.1.hook_resid_post/c.1.0.0"


@pytest.mark.parametrize(
    ("file", "command", "kind"),
    [
        (WEIGHTS, "train", "flipped bit"),
        (WEIGHTS, "train", "empty"),
        (CHUNK, "harvest", "cut"),
        (CHUNK, "harvest", "deleted"),
    ],
)
def test_a_damaged_artefact_is_never_taken_for_right(world, file, command, kind):
    number = [stage.name for stage in STAGES].index(command)
    found = run(world, Trial(command, kind, number, file, seed=1))
    assert found.held, found


def test_the_trials_are_of_every_command_and_file_and_take_turns(world):
    trials = all_trials(world, kills=2, seed=0)
    assert trials == all_trials(world, kills=2, seed=0)
    for number, command in enumerate(("harvest", "train")):
        kinds = {trial.kind for trial in trials if trial.command == command}
        assert {"kill", "file limit", *DAMAGES} <= kinds
        files = {trial.file for trial in trials if trial.command == command} - {""}
        assert files == set(world.made_by(number))
    cells = [(trial.command, trial.kind) for trial in trials]
    assert len(set(cells[: len(set(cells))])) == len(set(cells))


def test_what_is_wrong_is_not_held(world):
    """The harness can find faults: here the right bytes are said to be others."""
    wrong = replace(world, steady=[{WEIGHTS: "0"}, {WEIGHTS: "0"}])
    assert run(wrong, Trial("train", "kill", 1, seed=3)).outcome == "wrong result"
