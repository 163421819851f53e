"""From `key=value` words to a stage's frozen configuration; all of Hydra is in here.

The dataclasses beside each stage hold schema and defaults, `conf/` holds choices. Whatever
does not fit is refused with one sentence, before anything heavy is loaded.
"""

import ast
import dataclasses
import importlib
import inspect
import itertools
import textwrap
import typing
from collections.abc import Iterator, Sequence
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
        return importlib.import_module(f"sae.stages.{self.name}")

    def config_class(self) -> type[Any]:
        """The stage's configuration class."""
        found: type[Any] = getattr(self.module(), self.config)
        return found


STAGES = {
    stage.name: stage
    for stage in (
        Stage("harvest", "HarvestConfig", "text through a model, activations into a cache"),
        Stage("train", "TrainConfig", "a cache to a dictionary; -m sweeps"),
        Stage("eval", "EvalConfig", "what dictionaries lose, on held-out text"),
        Stage("analyze", "AnalyzeConfig", "density, contexts and logits of every feature"),
        Stage("steer", "SteerConfig", "turn features up and down, with baselines"),
        Stage("export", "ExportConfig", "a folder that others can load"),
        Stage("demo", "DemoConfig", "all of it on a small real model, and a report"),
    )
}

# Groups whose unlisted choices are names: model=EleutherAI/pythia-70m, data=./my-texts.
_NAMED_GROUPS = ("model", "data")


def conf_folder() -> Path:
    """`conf/` beside the package in a checkout, inside it when installed from a wheel."""
    here = Path(__file__).resolve().parent
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
    for word in words:
        if word.startswith(("+", "~")):
            raise UserError(f"{word}: keys are set, not added or removed; write key=value")
    try:
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            composed = compose(stage.name, overrides=words)
        return resolve(composed)
    except UserError:
        raise
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        # Hydra itself raises plain ValueErrors, for `sae=null` as an example.
        raise UserError(_sentence(stage, words, error)) from error


def check_sweep(stage: Stage, words: Sequence[str]) -> None:
    """Build the configuration of every run of a sweep: one bad value refuses all of it.

    Flags, Hydra's own keys and what only another sweeper can count out are passed over.
    """
    parser = OverridesParser.create()
    choices = []
    for word in words:
        if "=" not in word or word.lstrip("+").startswith(("-", "hydra.", "hydra/")):
            continue
        try:
            (override,) = parser.parse_overrides([word])
        except HydraException as error:
            raise UserError(_sentence(stage, [word], error)) from error
        if override.is_discrete_sweep():
            key = override.get_key_element()
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        elif not override.is_sweep_override():
            choices.append([word])
    targets = set()
    for run in itertools.product(*choices):
        target = getattr(build(stage, run), "dictionary_path", None)
        if target is not None and target in targets:
            raise UserError(
                f"two runs of this sweep would both write {target}; tell them apart with a "
                "name made of the swept key, such as name='x-${optim.beta1}'"
            )
        targets.add(target)


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
    lines = [
        f"sae {stage.name} [group=choice ...] [key=value ...]",
        "",
        textwrap.fill(" ".join((inspect.getdoc(config) or "").split()), 92),
        "",
        "Groups",
    ]
    for group, choices in groups(stage).items():
        more = ", or any name or path" if group.split("@")[0] in _NAMED_GROUPS else ""
        lines.append(f"  {group}=...  {', '.join(choices)}{more}")
    lines += ["", "Keys, with their values now"]
    for key, meaning in keys(config):
        value = defaults
        for part in key.split("."):
            value = getattr(value, part)
        shown = "null" if value is None else str(value).replace("'", "")
        lines.append(f"  {key}={shown}")
        lines.append(textwrap.indent(textwrap.fill(meaning, 84), "        "))
    lines += ["", "Sweep: add -m and give several values, as in optim.lr=1e-3,3e-3"]
    if any(key == "hook_names" for key, _ in keys(config)):
        lines.append(
            f"Hooks: sae {stage.name} --list-hooks model=... names every place to read"
        )
    return "\n".join(lines)


def _sentence(stage: Stage, words: Sequence[str], error: Exception) -> str:
    """What was wrong with which word, and what would be right."""
    known = [key for key, _ in keys(stage.config_class())]
    known_groups = groups(stage)
    for word in words:
        try:
            (override,) = OverridesParser.create().parse_overrides([word])
        except HydraException:
            return f"{word}: not of the form key=value; quote values with special characters"
        key = override.get_key_element().lstrip("+~")
        if not key:
            return f"{word}: not of the form key=value; the key is missing"
        if key in known_groups:
            value = str(override.value())
            if value not in known_groups[key]:
                choices = ", ".join(known_groups[key])
                near = nearest(value, known_groups[key])
                return f"{key}={value} is unknown; choose one of {choices}{near}"
        elif key not in known and not any(k.startswith(f"{key}.") for k in known):
            return f"{key} is no key of sae {stage.name}{nearest(key, [*known, *known_groups])}"
    root = error.__cause__ or error
    at = getattr(root, "full_key", None)
    given = next((w for w in reversed(words) if at and w.startswith(f"{at}=")), at)
    reason = str(root).strip().split("\n")[0]
    if "not a ListConfig" in reason:
        reason = f"give a list, as in {at}=[a,b]"
    return f"{given}: {reason}" if given else reason
