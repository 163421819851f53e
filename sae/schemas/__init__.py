"""From `key=value` words to a stage's frozen configuration; all of Hydra is in here.

The dataclasses beside each stage hold schema and defaults, `conf/` holds choices. Whatever
does not fit is refused with one sentence, before anything heavy is loaded. Words with several
values are the business of `grids`.
"""

import ast
import dataclasses
import importlib
import inspect
import keyword
import textwrap
import typing
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sae.base.errors import UserError, nearest


@dataclass(frozen=True, slots=True)
class Stage:
    """A verb of the command line, its module and its configuration class."""

    name: str
    config: str
    summary: str

    def module(self) -> Any:
        """The stage's module, imported now."""
        return importlib.import_module(f"sae.commands.{self.call}")

    @property
    def call(self) -> str:
        """Its name in Python: `import_` for the verb that Python has taken."""
        return f"{self.name}_" if keyword.iskeyword(self.name) else self.name

    def config_class(self) -> type[Any]:
        """The stage's configuration class."""
        found: type[Any] = getattr(self.module(), self.config)
        return found


STAGES = {
    stage.name: stage
    for stage in (
        Stage("harvest", "HarvestConfig", "text through a model, activations into a cache"),
        Stage("train", "TrainConfig", "a cache to a dictionary, or to a grid of them"),
        Stage("eval", "EvalConfig", "what dictionaries lose, on held-out text"),
        Stage("analyze", "AnalyzeConfig", "density, contexts and logits of every feature"),
        Stage(
            "serve", "ServeConfig", "look at the atlas in a browser, try features on your text"
        ),
        Stage("steer", "SteerConfig", "turn features up and down, with baselines"),
        Stage("export", "ExportConfig", "a folder that others can load"),
        Stage("import", "ImportConfig", "a dictionary of another tool into a run"),
        Stage("demo", "DemoConfig", "all of it on a small real model, and a report"),
    )
}

# Groups whose unlisted choices are names: model=EleutherAI/pythia-70m, data=./my-texts.
_NAMED_GROUPS = ("model", "data")

# Keys of a stage that stands in for another one; the help has them last.
_BESIDE = {"train": "harvest.", "demo": "train.harvest."}

_SWEEP_HELP = "A run for each of several values: add -m, as in run=runs/a,runs/b"
_GRID_HELP = """\
Several dictionaries: give several values, as in sae.l1_coefficient=1,2,5 optim.lr=1e-3,3e-3.
They train side by side in this process, from one pass over the rows; with sae=standard,topk a
key applies to the architectures that have it.
With -m each is a run of its own instead, one after the other or, on several machines, through
Hydra's launchers."""


def conf_folder() -> Path:
    """`conf/` beside the package in a checkout, inside it when installed from a wheel."""
    here = Path(__file__).resolve().parent.parent
    return next(d for d in (here / "conf", here.parent / "conf") if d.is_dir())


def register(stage: Stage) -> None:
    """Make the stage's schema, and every architecture's, known to Hydra."""
    from sae.architectures import ARCHITECTURES

    store = ConfigStore.instance()
    store.store(name=f"{stage.name}_schema", node=_thawed(stage.config_class()))
    for name, config in ARCHITECTURES.items():
        store.store(group="sae", name=f"{name}_schema", node=_thawed(config))


def _thawed(config: type[Any]) -> DictConfig:
    """The structured node of a frozen dataclass, open for merging.

    OmegaConf marks nodes of frozen dataclasses read-only, and then cannot merge choices into
    them; they are frozen again when the finished object is built. Nor can it put one subclass
    in the place of another, so where a choice of class is to be made the default is left out.
    """
    root: DictConfig = OmegaConf.structured(config)
    pending = [root]
    while pending:
        node = pending.pop()
        OmegaConf.set_readonly(node, None)
        for key in node:
            child = node._get_node(key)
            if not isinstance(child, DictConfig) or child._is_none():
                continue
            if inspect.isabstract(child._metadata.ref_type):
                OmegaConf.set_readonly(child, None)
                node[key] = MISSING
            else:
                pending.append(child)
    return root


def build(stage: Stage, overrides: Sequence[str]) -> Any:
    """The stage's configuration for these command-line words.

    Raises:
        UserError: for an unknown key or choice, a wrong type or an impossible value.
    """
    register(stage)
    words = named_choices(stage, overrides)
    refuse_added(words)
    with in_a_sentence(stage, words):
        return resolve(composed_of(stage, words))


def refuse_added(words: Iterable[str]) -> None:
    """Refuse words that would add a key or remove one."""
    for word in words:
        if word.startswith(("+", "~")):
            raise UserError(f"{word}: keys are set, not added or removed; write key=value")


@contextmanager
def in_a_sentence(stage: Stage, words: Sequence[str]) -> Iterator[None]:
    """What Hydra and OmegaConf say about these words becomes one sentence."""
    try:
        yield
    except UserError:
        raise
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        # Hydra itself raises plain ValueErrors, for `sae=null` as an example.
        raise UserError(_sentence(stage, words, error)) from error


def composed_of(stage: Stage, words: Sequence[str]) -> DictConfig:
    """The node that Hydra composes for these words; the stage has been registered."""
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        composed: DictConfig = compose(stage.name, overrides=list(words))
    return composed


def resolve(composed: DictConfig) -> Any:
    """The frozen configuration object of a composed node."""
    try:
        return OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        # OmegaConf wraps what a dataclass raises about its own values.
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from error
        raise


def groups(stage: Stage) -> dict[str, list[str]]:
    """Groups of the stage with their choices: those its defaults list in `conf/` names."""
    chosen = OmegaConf.load(conf_folder() / f"{stage.name}.yaml").defaults
    named = [str(next(iter(entry))) for entry in chosen if isinstance(entry, DictConfig)]
    return {group: _choices(group.split("@")[0]) for group in named}


def _choices(group: str) -> list[str]:
    return sorted(p.stem for p in (conf_folder() / group).glob("*.yaml"))


def named_choices(stage: Stage, words: Sequence[str]) -> list[str]:
    """The words, with choices that `conf/` does not list turned into names."""
    return [_named_choice(stage, word) for word in words]


def _named_choice(stage: Stage, word: str) -> str:
    key, _, value = word.partition("=")
    for group in groups(stage):
        name, _, package = group.partition("@")
        if key in (group, name) and name in _NAMED_GROUPS:
            listed = set(value.split(",")) <= set(_choices(name))
            return f"{group}={value}" if listed else f"{package or name}.name={value}"
    return word


def keys(config: type[Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every key of a configuration class, dotted, with its meaning (attribute docstring)."""
    hints = typing.get_type_hints(config)
    meanings = dict(_meanings(config))
    for field in dataclasses.fields(config):
        inner = hints[field.name]
        if field.default_factory is not dataclasses.MISSING:
            inner = type(field.default_factory())
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            yield from keys(inner, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", meanings.get(field.name, "")


def _meanings(config: type[Any]) -> Iterator[tuple[str, str]]:
    for base in reversed(config.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(body, ast.ClassDef)
        for field, doc in zip(body.body, body.body[1:], strict=False):
            match field, doc:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(
                    value=ast.Constant(value=text)
                ):
                    yield name, " ".join(str(text).split())


def stage_help(stage: Stage) -> str:
    """What `sae STAGE --help` prints: groups with choices, keys with values and meanings."""
    config = stage.config_class()
    defaults = build(stage, [])
    listed = groups(stage)
    lines = [
        f"sae {stage.name} {'[group=choice ...] ' if listed else ''}[key=value ...]",
        "",
        textwrap.fill(" ".join((inspect.getdoc(config) or "").split()), 92),
        *(["", "Groups"] if listed else []),
    ]
    for group, choices in listed.items():
        more = ", or any name or path" if group.split("@")[0] in _NAMED_GROUPS else ""
        lines.append(f"  {group}=...  {', '.join(choices)}{more}")
    found = dict(keys(config))
    beside = {key for key in found if key.startswith(_BESIDE.get(stage.name, "-"))}
    lines += ["", "Keys, with their values now"]
    lines += _key_lines(defaults, {key: found[key] for key in found if key not in beside})
    if beside:
        where = dict(_meanings(STAGES["train"].config_class()))["harvest"]
        lines += [
            "",
            f"Keys {_BESIDE[stage.name]}*, only with cache=null",
            textwrap.fill(where, 92),
        ]
        lines += _key_lines(defaults, {k: found[k] for k in found if k in beside})
    lines += ["", _GRID_HELP if stage.name == "train" else _SWEEP_HELP]
    if "hook_names" in found:
        lines.append(
            f"Hooks: sae {stage.name} --list-hooks model=... names every place to read"
        )
    return "\n".join(lines)


def _key_lines(defaults: Any, meanings: dict[str, str]) -> Iterator[str]:
    for key, meaning in meanings.items():
        value = defaults
        for part in key.split("."):
            value = getattr(value, part)
        shown = "null" if value is None else str(value).replace("'", "")
        yield f"  {key}={shown}"
        yield textwrap.indent(textwrap.fill(meaning, 84), "        ")


def _known_keys(stage: Stage, words: Sequence[str]) -> list[str]:
    """Keys of the stage, and of the architecture that the words choose."""
    from sae.architectures import ARCHITECTURES

    known = [key for key, _ in keys(stage.config_class())]
    for word in words:
        group, _, choice = word.partition("=")
        name, _, package = group.partition("@")
        if name == "sae" and choice in ARCHITECTURES:
            known += [k for k, _ in keys(ARCHITECTURES[choice], f"{package or name}.")]
    return list(dict.fromkeys(known))


def _sentence(stage: Stage, words: Sequence[str], error: Exception) -> str:
    """What was wrong with which word, and what would be right."""
    known_groups = groups(stage)
    known = _known_keys(stage, words)
    for word in words:
        try:
            (override,) = OverridesParser.create().parse_overrides([word])
        except HydraException:
            cure = (
                "quote values with special characters" if "=" in word else f"write run={word}"
            )
            return f"{word}: not of the form key=value; {cure}"
        key = override.get_key_element().lstrip("+~")
        if not key:
            return f"{word}: not of the form key=value; the key is missing"
        if key not in [*known, *known_groups] and not any(
            k.startswith(f"{key}.") for k in known
        ):
            return f"{key} is no key of sae {stage.name}{nearest(key, [*known, *known_groups])}"
        if override.is_sweep_override():
            listed = f", or a list as {key}=[{word.partition('=')[2]}]"
            listed = "" if key in known_groups else listed
            return f"{word}: give one value{listed}, or add -m for a run of each"
        value = str(override.value())
        if key in known_groups and value not in known_groups[key]:
            choices, near = ", ".join(known_groups[key]), nearest(value, known_groups[key])
            return f"{key}={value} is unknown; choose one of {choices}{near}"
    root = error.__cause__ or error
    at = getattr(root, "full_key", None)
    given = next((w for w in reversed(words) if at and w.startswith(f"{at}=")), at)
    reason = str(root).strip().split("\n")[0]
    if "not a ListConfig" in reason:
        reason = f"give a list, as in {at}=[a,b]"
    return f"{given}: {reason}" if given else reason
