"""`conf/` and the schemas: every file composes, every key is explained, defaults agree."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sae.base.errors import UserError
from sae.cli import main
from sae.schemas import STAGES, Stage, build, conf_folder, groups, keys
from sae.schemas.grids import check_sweep
from sae.training.config import OF_A_CACHE

CONF = conf_folder()


def group_files() -> Iterator[tuple[str, str, str]]:
    """Stage, group as the stage calls it, choice: for every file of every group."""
    for stage in STAGES.values():
        for group in groups(stage):
            for path in sorted((CONF / group.split("@")[0]).glob("*.yaml")):
                yield stage.name, group, path.stem


def at(config: object, path: str) -> object:
    for part in path.split("."):
        config = getattr(config, part)
    return config


@pytest.mark.parametrize(("stage", "group", "choice"), list(group_files()))
def test_a_choice_composes_in_a_stage_that_has_its_group(stage, group, choice):
    # A training has a model and a text of its own only without a cache.
    others = ["cache=null"] if stage == "train" else []
    config = build(STAGES[stage], [f"{group}={choice}", *others])
    name, _, package = group.partition("@")
    if name == "preset":
        assert isinstance(config, STAGES[stage].config_class())
        return
    content = OmegaConf.load(CONF / name / f"{choice}.yaml")
    chosen = at(config, package or name)
    for key, value in content.items():
        if key != "defaults":
            assert getattr(chosen, key) == value


def test_every_file_of_conf_belongs_to_a_stage():
    of_stages = {group.split("@")[0] for stage in STAGES.values() for group in groups(stage)}
    folders = {path.parent.name for path in CONF.glob("*/*.yaml")}
    assert folders <= of_stages
    assert {path.stem for path in CONF.glob("*.yaml")} == set(STAGES)


def leaves(content: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def presets() -> list[str]:
    return sorted(path.stem for path in (CONF / "preset").glob("*.yaml"))


@pytest.mark.parametrize("name", presets())
def test_the_demo_takes_every_value_of_a_preset(name):
    config = build(STAGES["demo"], [f"preset={name}"])
    wanted = dict(
        leaves(OmegaConf.to_container(OmegaConf.load(CONF / "preset" / f"{name}.yaml")))
    )
    assert wanted
    assert {key: at(config, key) for key in wanted} == wanted


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_every_key_of_a_stage_has_a_meaning(stage: Stage):
    found = dict(keys(stage.config_class()))
    assert "run" in found
    assert [key for key, meaning in found.items() if not meaning.strip()] == []


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_a_stage_without_words_has_the_defaults_of_its_dataclass(stage: Stage):
    assert build(stage, []) == stage.config_class()()


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_a_configuration_is_frozen(stage: Stage):
    with pytest.raises(dataclasses.FrozenInstanceError):
        build(stage, []).run = "elsewhere"


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("model=EleutherAI/pythia-70m", "model.name", "EleutherAI/pythia-70m"),
        ("model=gpt2", "model.name", "gpt2"),
        ("model=./models/mine", "model.name", "./models/mine"),
        ("data=./folder", "data.name", "./folder"),
        ("data=factbook", "data.name", "factbook"),
        ("data=wikitext", "data.name", "wikitext"),
    ],
)
def test_a_choice_that_is_not_listed_is_a_name(word, key, value):
    assert at(build(STAGES["harvest"], [word]), key) == value
    assert at(build(STAGES["demo"], [word]), f"harvest.{key}") == value


def test_a_listed_choice_brings_all_that_its_file_says():
    data = build(STAGES["harvest"], ["data=pile"]).data
    assert data.name == "monology/pile-uncopyrighted"


def test_a_sweep_is_refused_for_one_bad_value_among_good_ones():
    with pytest.raises(UserError, match=r"optim\.lr=0\.0 is impossible"):
        check_sweep(STAGES["train"], ["-m", "sae.d_sae=8,16", "optim.lr=1e-3,0"])
    with pytest.raises(UserError, match=r"sae=nothing is unknown; choose one of .*standard"):
        check_sweep(STAGES["train"], ["-m", "sae=standard,nothing"])
    check_sweep(STAGES["train"], ["-m", "sae.d_sae=8,16", "hydra.verbose=true"])


@pytest.mark.parametrize(
    ("word", "instead"),
    [
        ("harvest.run=a", "run"),
        ("train.sae.l1_coefficient=2.0", "l1_coefficients"),
        ("train.sweep.max_l0=30.0", r"eval\.max_l0"),
        ("steer.dictionary=a", r"eval\.max_l0"),
    ],
)
def test_a_demo_refuses_the_keys_that_it_sets_itself(word, instead):
    with pytest.raises(UserError, match=f"{word} has no effect in a demo; give {instead}="):
        build(STAGES["demo"], [word])


def test_a_sweep_over_models_may_list_names():
    from sae.schemas import named_choices

    harvest = STAGES["harvest"]
    assert named_choices(harvest, ["model=smollm2,gpt2"]) == ["model=smollm2,gpt2"]
    assert named_choices(harvest, ["model=a/b,./c"]) == ["model.name=a/b,./c"]


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_the_help_of_a_stage_lists_every_group_and_key(stage: Stage, capsys):
    assert main([stage.name, "--help"]) == 0
    text = capsys.readouterr().out
    for group, choices in groups(stage).items():
        assert f"  {group}=...  {', '.join(choices)}" in text
    plain = " ".join(text.split())
    idle = {f"{prefix}harvest.{name}" for prefix in ("", "train.") for name in OF_A_CACHE}
    for key, meaning in keys(stage.config_class()):
        # Of a stage that harvests, or that trains without a cache and so refuses them.
        listed = (stage.name == "demo" and key.startswith("harvest.")) or key not in idle
        assert (f"\n  {key}=" in text) == listed
        assert not listed or meaning in plain


@pytest.mark.parametrize(
    ("stage", "prefix"), [("train", "harvest."), ("demo", "train.harvest.")]
)
def test_the_help_lists_the_keys_of_rows_without_a_cache_last(stage, prefix, capsys):
    assert main([stage, "--help"]) == 0
    first, last = capsys.readouterr().out.split(f"\nKeys {prefix}*, only with cache=null\n")
    assert last.startswith("Where rows come from")
    assert f"\n  {prefix}context_size=128" in last
    assert f"\n  {prefix}n_tokens=" not in last
    assert f"\n  {prefix}" not in first
    assert "\n  run=" in first


def test_training_beside_the_model_takes_choices_of_model_and_text():
    words = ["cache=null", "model=gpt2", "data=./texts", "harvest.context_size=64"]
    config = build(STAGES["train"], [*words, "hook_name=blocks.3.hook_resid_post"])
    assert config.cache is None
    assert config.harvest.model.name == "gpt2"
    assert config.harvest.data.name == "./texts"
    assert config.harvest.context_size == 64


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["sae=topk", "sae.k=x"], "sae.k=x: Value 'x' of type 'str' could not be converted"),
        (["sae=topk", "sae.kk=1"], r"sae\.kk is no key of sae train; nearest: sae\.k,"),
        (["sae.k=1"], r"sae\.k is no key of sae train"),
    ],
)
def test_a_refusal_knows_the_keys_of_the_chosen_architecture(words, sentence):
    with pytest.raises(UserError, match=sentence):
        build(STAGES["train"], words)


@pytest.mark.parametrize(
    ("word", "right"),
    [
        (
            "hook_names=a,b",
            "give one value, or a list as hook_names=[a,b], or add -m for a run",
        ),
        ("model=gpt2,smollm2", "give one value, or add -m for a run of each"),
    ],
)
def test_a_stage_without_grids_says_what_several_values_could_be(word, right, capsys):
    assert main(["harvest", word]) == 2
    assert right in capsys.readouterr().err


def test_the_folder_of_choices_is_the_checkout_s_own():
    assert Path(__file__).resolve().parents[2] / "conf" == CONF


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["model=gpt2"], r"harvest\.model counts only with cache=null; .* reads runs/default"),
        (["mix_rows=999999"], r"mix_rows=999999 counts only with cache=null"),
        (["cache=null", "harvest.n_tokens=999"], r"harvest\.n_tokens=999 is of a cache"),
    ],
)
def test_keys_of_a_harvest_that_would_do_nothing_in_training_are_refused(words, sentence):
    with pytest.raises(UserError, match=sentence):
        build(STAGES["train"], words)
