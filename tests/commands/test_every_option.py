"""Every key of every command is read by what the command does, or refused where it is not.

Commands run on a tiny model while each look at a field of their configuration is noted, but for
looks that only check, compare or record it. What nobody has looked at cannot have an effect.
"""

import ast
import dataclasses
import inspect
import json
import shutil
import sys
from contextlib import contextmanager

import pytest
from support.world import harvest_settings, sentences

import sae
from sae.cli import main
from sae.config.commands import COMMANDS
from sae.config.compose import build
from sae.config.keys import idle_keys, is_below, keys, parts

pytestmark = pytest.mark.slow

# Who looks at all fields alike: checks, records, comparisons, copies.
LOOKERS = ("sae.base.settings", "sae.base.provenance", "sae.config")
CHECKS = {"__post_init__", "idle_keys", "__eq__", "__hash__", "__repr__", "replace", "plain"}
CHECKS |= {"require_at_least", "_check_options"}


def is_real(frame) -> bool:
    """Whether a look comes from what does the work."""
    while frame is not None and frame.f_globals.get("__name__") != __name__:
        if frame.f_code.co_name in CHECKS or frame.f_globals["__name__"].startswith(LOOKERS):
            return False
        frame = frame.f_back
    return True


@contextmanager
def noted(config):
    """The fields that are really looked at, by class."""
    seen, classes = set(), {type(part) for part in (config, *parts(config).values())}
    own = {cls: {field.name for field in dataclasses.fields(cls)} for cls in classes}

    def look(self, name):
        key = type(self), name
        if name in own.get(key[0], ()) and key not in seen and is_real(sys._getframe(1)):
            seen.add(key)
        return object.__getattribute__(self, name)

    before = {cls: cls.__dict__.get("__getattribute__") for cls in classes}
    for cls in classes:
        cls.__getattribute__ = look
    try:
        yield seen
    finally:
        for cls, method in before.items():
            if method is None:
                del cls.__getattribute__
            else:
                cls.__getattribute__ = method


def unread(command, words):
    """Run it, and return the keys that nobody has looked at, without those said to be idle."""
    config = build(command, words)
    owners = {"": config, **parts(config)}
    with noted(config) as seen:
        command.function()(config)
    found = []
    for key in keys(config):
        above, _, name = key.name.rpartition(".")
        if (type(owners[above]), name) not in seen:
            found.append(key.name)
    return [name for name in found if not is_below(name, idle_keys(config))]


def is_refused(command, words, key, capsys):
    """Whether another value of the key is refused, in a sentence that names it."""
    name = key.removeprefix("harvest.")
    capsys.readouterr()
    status = main([*command.name.split(), *words, f"{key}={OTHER[name]}", *anew(command)])
    return status == 2 and name in capsys.readouterr().err


def anew(command):
    """Words with which nothing is there yet."""
    return {"harvest": ["run=nowhere"], "train": ["name=nobody"]}.get(command.name, [])


# Another value of keys that have an effect on some texts or sweeps alone, and are else refused.
OTHER = {
    "data.separator": "x",
    "data.one_document_a_line": "true",
    "sweep.memory_gb": "1",
    "sweep.evaluate": "false",
    "sweep.n_behaviour_tokens": "7",
    "sweep.max_l0": "5",
    "sweep.yes": "true",
    "private": "true",
    "cache": "other.zarr",
}
# Looked at only where it matters, which is not so in every run.
SOMETIMES = {
    "extend": "where a training of that name is there",
    "sae.k_aux": "where latents are dead",
    "data.on_error": "where something cannot be read",
}
HOOKS = "hook_names=[blocks.1.hook_resid_post]"
SMALL = ["training_tokens=1024", "train_batch_size_tokens=256", "sae.d_sae=32"]
ARCHITECTURES = (
    *("standard", "p_anneal", "gated", "topk", "batchtopk", "matryoshka_batchtopk"),
    *("hierarchical_topk", "ordered_topk"),
)
RUNS = [
    ("harvest --list-hooks", ["model={model}"]),
    ("harvest", ["model={model}", "data={text}", HOOKS, "n_tokens=2048", "context_size=32"]),
    ("harvest", ["model={model}", "data={broken}", HOOKS, "n_tokens=2048", "context_size=32",
                 "data.on_error=skip", "run={out}/broken"]),
    *(("train", [f"sae={name}", *SMALL, f"name={name}"]) for name in ARCHITECTURES),
    ("train", ["sae=jumprelu", "sae.target_l0=4", *SMALL, "name=jumprelu"]),
    ("train", ["cache=null", "model={model}", "data={text}", "harvest.context_size=32",
               "hook_name=blocks.1.hook_resid_post", "mix_rows=4096", *SMALL, "name=live"]),
    ("compare", ["weak", "strong", "run={run}"]),
    ("find", ["{text}", "{text}", "run={run}", "dictionary=weak", "window=8",
              "max_tokens=256"]),
    ("truth", ["sae=topk", "world.n_features=40", "world.d_in=16",
               "sae.d_sae=40", "sae.k=3",
               "training_tokens=1024", "train_batch_size_tokens=256", "n_scored_rows=1024",
               "run={out}/truth"]),
    ("eval", ["dictionary=strong", "n_behaviour_tokens=256"]),
    ("analyze", ["dictionary=strong"]),
    ("steer", ["dictionary=strong", "max_new_tokens=2", "n_features=1", "strengths=[0,1]",
               "prompts=[the river,the mill,she kept,it was]", "reworded=[]"]),
    ("lens", ["the old mill", "model={model}"]),
    ("lens", ["the old mill", "tuned=true", "cache={out}/streams.zarr", "name=tuned"]),
    ("probe", ["noun-or-verb", "model={model}", "dictionary=strong", "n_train=24", "n_test=20",
               "learning_curve=[12]"]),
    ("probe edit", ["{run}/probing/default", "{out}/verb.yaml", "by=2"]),
    ("patch", ["the {{a}}", "the {{b}}", " year", " kept", "slots={{a:[dog],b:[mill]}}",
               "model={model}", "receivers=[logits]", "dictionary=strong"]),
    ("patch", ["pairs=[{{clean: the dog, corrupt: the mill, answer: ' year', wrong: ' kept'}}]",
               "model={model}", "name=listed"]),
    ("patch edit", ["{run}/patching/pair", "{out}/head.yaml", "site=head", "layer=1",
                    "head=1"]),
    ("patchscope", ["model={model}", "text=the river", "max_new_tokens=2",
                    "at=[blocks.0.hook_resid_post]"]),
    ("patchscope", ["dictionary={run}/dictionaries/strong", "feature=3", "max_new_tokens=2"]),
    ("export", ["dictionary=strong", "dry_run=true"]),
    ("export", ["dictionary=strong", "drop_dead=true"]),
    ("import", ["{run}/dictionaries/strong", "run={out}/theirs", "name=theirs"]),
    ("cache info", ["{run}/cache.zarr"]),
    ("cache verify", ["{run}/cache.zarr"]),
    ("cache sample", ["{run}/cache.zarr", "n=4"]),
    ("cache sample", ["{run}/cache.zarr", "n=16", "out={out}/sample.zarr"]),
    ("cache merge", ["{out}/two.zarr", "{run}/cache.zarr", "{out}/new/cache.zarr"]),
    ("cache export", ["{run}/cache.zarr", "{out}/rows"]),
    ("cache import", ["{out}/rows", "{out}/again.zarr", "model_name={model}"]),
    ("edit check", ["{edits}", "model_name={model}", "out={out}/pinned.yaml", "raw=true"]),
    ("edit export", ["{edits}", "{out}/edits.gguf", "model_name={model}"]),
    ("edit bake", ["{edits}", "{out}/baked", "model_name={model}"]),
    ("atlas export", ["{run}/atlas/strong", "{out}/bulk", "model_id=m", "source=1-res-x"]),
    ("atlas import", ["{out}/bulk", "{run}/atlas/two"]),
]  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory, tiny_run, tiny_model, tiny_text):
    folder = tmp_path_factory.mktemp("options")
    shutil.copytree(tiny_run, folder / "run")
    broken = folder / "broken.jsonl"
    lines = [json.dumps({"text": text}) for text in sentences(200)]
    broken.write_text("\n".join(["{", *lines]))
    edits = folder / "edits.yaml"
    edits.write_text(
        "edits: [{at: blocks.1.hook_resid_post, token: a, do: add, by: 2, where: {except: []}}]"
    )
    names = [f"blocks.{i}.hook_resid_post" for i in range(3)]
    settings = harvest_settings(folder / "run", tiny_model, tiny_text)
    streams = {"cache": str(folder / "streams.zarr"), "hook_names": names, "n_tokens": 2048}
    sae.harvest(**settings | streams)
    found = {"run": folder / "run", "out": folder, "broken": broken, "edits": edits}
    return found | {"model": tiny_model, "text": tiny_text, "done": set()}


AFTER = {
    "steer": ["analyze"],
    "export": ["eval", "analyze"],
    "patch edit": ["patch"],
    "probe edit": ["probe"],
    "cache merge": ["harvest"],
    "cache import": ["cache export"],
    "atlas export": ["analyze"],
    "atlas import": ["analyze", "atlas export"],
}
"""What a command reads was made by these, perhaps in another process of the tests."""


def words_of(name, words, places):
    """The words of a command, with the run that it is for."""
    given = [word.format(**places) for word in words]
    names = {key.name for key in keys(COMMANDS[name].config_class())}
    if "run" in names and not any(word.startswith("run=") for word in given):
        given.append(
            f"run={places['out']}/new" if name == "harvest" else f"run={places['run']}"
        )
    return given


def make_what_is_read(name, places):
    for before in AFTER.get(name, []):
        if before not in places["done"]:
            words = next(words for other, words in RUNS if other == before)
            command = COMMANDS[before]
            command.function()(build(command, words_of(before, words, places)))
            places["done"].add(before)


@pytest.mark.parametrize(("name", "words"), RUNS)
def test_every_key_is_read_or_refused(name, words, places, capsys):
    command, given = COMMANDS[name], words_of(name, words, places)
    make_what_is_read(name, places)
    left = unread(command, given)
    places["done"].add(name)
    for key in left:
        sometimes = key.removeprefix("harvest.") in SOMETIMES
        refused = sometimes or is_refused(command, given, key, capsys)
        assert refused, f"{key} does nothing"


def test_what_is_read_sometimes_is_read_where_it_matters(places):
    (broken,) = (words for name, words in RUNS if "data.on_error=skip" in words)
    given = [word.format(**places) for word in broken]
    assert "data.on_error" not in unread(
        COMMANDS["harvest"], [*given, "run={out}/skipped".format(**places)]
    )
    given = [f"run={places['run']}", "name=longer", "sae=topk", *SMALL]
    COMMANDS["train"].function()(build(COMMANDS["train"], given))
    longer = [*given, "training_tokens=2048", "extend=true"]
    assert "extend" not in unread(COMMANDS["train"], longer)


def test_the_commands_that_are_not_run_here_read_each_of_their_keys():
    """The server runs until it is stopped, the demo takes minutes."""
    missing = {command.name for command in COMMANDS.values()} - {name for name, _ in RUNS}
    assert missing == {"serve", "serve --api", "demo"}
    for name in missing:
        command = COMMANDS[name]
        tree = ast.parse(inspect.getsource(sys.modules[command.config_class().__module__]))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name == "__post_init__":
                node.body = []
        read = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert {field.name for field in dataclasses.fields(command.config_class())} <= read
