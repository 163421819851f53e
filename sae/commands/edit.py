"""`sae edit check`: what is wrong with an edit file, and what its edits amount to."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sae.base import atomic_path, require, say, show, write_text
from sae.base.names import check_new
from sae.edits import Aim, Edits, Library, Planner, Subject
from sae.edits.bake import baked, save_baked
from sae.edits.constants import constants, linear
from sae.edits.control_vector import write_control_vector
from sae.edits.easysteer import steering_spec
from sae.edits.told import told
from sae.models import (
    LanguageModel,
    ModelConfig,
    ModelRecord,
    load_model,
    load_skeleton,
    load_tokenizer,
    recorded_config,
    recorded_model,
)
from sae.run import check_free


@dataclass(frozen=True, kw_only=True, slots=True)
class EditCheckConfig:
    """Say what is wrong with an edit file, and what each edit amounts to in all units.

    The weights of the model are not loaded for this.
    """

    file: str
    """The edit file, YAML or JSON."""
    model_name: str | None = None
    """The model. It is needed if neither the file nor a dictionary in it names the model."""
    out: str | None = None
    """File to which the same edits are written, together with the digests of the model, the
    dictionaries and the vectors. Such a file is refused if any of them is another one."""
    raw: bool = False
    """Write the amounts to `out` in raw units, so that the edits need the dictionary but
    neither its atlas nor its cache."""

    def __post_init__(self) -> None:
        require(not self.raw or self.out is not None, "raw=true needs a file; give out=FILE")


@dataclass(frozen=True, kw_only=True, slots=True)
class EditExportConfig:
    """Write the edits of a file for llama.cpp, for repeng, or for EasySteer on vLLM.

    A control vector (`.gguf`) adds the same vector at every token. A steering specification of
    EasySteer (`.json`) can also name ranges of the prompt and of the generated text, and can
    take directions out (`do: orthogonal`). Edits that depend on the activations are refused.
    """

    file: str
    """The edit file, YAML or JSON."""
    out: str
    """The file to write. It becomes a control vector if its name ends in `.gguf`, and a
    specification if its name ends in `.json`."""
    model_name: str | None = None
    """The model. It is needed if neither the file nor a dictionary in it names the model."""
    first_token: bool = False
    """Also accept edits that leave out the token before a text, as edits do by default, and
    write them as edits of all tokens. A control vector can leave out no token."""

    def __post_init__(self) -> None:
        kind = Path(self.out).suffix
        require(
            kind in _EXPORTS,
            f"out={self.out} has an unknown ending; give a name that ends in .gguf for a "
            "control vector, or in .json for EasySteer",
        )
        require(
            not self.first_token or kind == ".gguf",
            "first_token=true is for control vectors; a specification can leave the token out",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class EditBakeConfig:
    """Write a checkpoint that has the edits of a file in its weights, for any engine to run.

    Two kinds of edits can become weights: those that add the same vector at every token, and
    those that scale a direction in everything that is written into the stream (`do:
    orthogonal`, `at: every_writer`).
    """

    file: str
    """The edit file, YAML or JSON."""
    out: str
    """Folder of the checkpoint to write."""
    model_name: str | None = None
    """The model. It is needed if neither the file nor a dictionary in it names the model."""
    first_token: bool = False
    """Also accept edits that leave out the token before a text, as edits do by default, and
    write them as edits of all tokens. Weights cannot leave out a token."""


def export(config: EditExportConfig) -> Path:
    """Write the control vector, and return its file."""
    return _written(config, _export)


def bake(config: EditBakeConfig) -> Path:
    """Write the checkpoint, and return its folder."""
    return _written(config, _bake)


def _written(
    config: EditExportConfig | EditBakeConfig,
    write: Callable[[LanguageModel, list[Aim], bool, Path], None],
) -> Path:
    check_free(Path(config.out))
    check_new(config.out)
    edits, library = Edits.read(config.file), Library()
    record = library.model(edits, config.model_name, config.file)
    if record.weights_known:
        model = recorded_model(record, "cpu")
    else:
        model = load_model(ModelConfig(name=record.name, device="cpu"))
    subject = Subject(model.module, model.record, len(model.marks.begin), model.text_ids)
    aims = Planner(subject, library).aims(edits)
    out = Path(config.out)
    write(model, aims, config.first_token, out)
    say(f"edit: {out} is written, with {_number(aims)} of {model.record.hub_id}")
    return out


def _export(model: LanguageModel, aims: list[Aim], first_token: bool, out: Path) -> None:
    _EXPORTS[out.suffix](model, aims, first_token, out)


def _control_vector(
    model: LanguageModel, aims: list[Aim], first_token: bool, out: Path
) -> None:
    found = constants(aims, "a control vector", first_token=first_token)
    settings = model.module.config.get_text_config()
    write_control_vector(out, found, settings.model_type, settings.num_hidden_layers)


def _specification(_: LanguageModel, aims: list[Aim], __: bool, out: Path) -> None:
    write_text(out, json.dumps(steering_spec(aims), indent=1) + "\n")


def _bake(model: LanguageModel, aims: list[Aim], first_token: bool, out: Path) -> None:
    changed = baked(model.module, linear(aims, first_token=first_token))
    with atomic_path(out) as temporary:
        save_baked(changed, model.tokenizer, temporary)


_EXPORTS = {".gguf": _control_vector, ".json": _specification}


def check(config: EditCheckConfig) -> Edits:
    """Check, print what the edits are, and return them, with digests if a file is written."""
    if config.out is not None:
        check_new(config.out)
        require(not Path(config.out).exists(), f"{config.out} exists already; name another")
    edits, library = Edits.read(config.file), Library()
    record = library.model(edits, config.model_name, config.file)
    settings = recorded_config(record, "cpu")
    tokenizer = load_tokenizer(settings)

    def token_ids(text: str) -> Any:
        return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    n_begin = len(record.begin or ())
    subject = Subject(load_skeleton(settings), record, n_begin, token_ids)
    aims = Planner(subject, library).aims(edits)
    records = [one for aim in aims for one in aim.in_raw] if config.raw else edits.records
    pinned = _pinned(replace(edits, records=tuple(records)), library, record)
    shown = f"{config.file}: {_number(aims)} of {record.hub_id}, digest {edits.digest}"
    show("\n".join([shown, *(line for i, aim in enumerate(aims) for line in told(i, aim))]))
    if config.out is None:
        return edits
    pinned.save(config.out)
    say(f"edit check: {config.out} is written, with digests; its own is {pinned.digest}")
    return pinned


def _number(aims: list[Aim]) -> str:
    return "1 edit" if len(aims) == 1 else f"{len(aims)} edits"


def _pinned(edits: Edits, library: Library, model: ModelRecord) -> Edits:
    """Return the edits with the digests of all that they refer to."""
    records = tuple(replace(r, digest=library.digest(r)) for r in edits.records)
    weights = model.weight_digest if model.weights_known else None
    # The name that it is loaded by: an embedded model has another one on the Hub.
    return replace(edits, records=records, model=model.name, model_digest=weights)
