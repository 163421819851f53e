"""`Edits`: a list of edits, in Python and in a YAML or JSON file, with one digest."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sae.base import UserError, digest, nearest, require, write_text
from sae.base.names import check_names
from sae.edits.parse import record_of
from sae.edits.record import EditRecord

FORMAT = 1
_KEYS = ("format", "model", "model_digest", "edits")
_LARGEST = 1 << 20
"""Bytes of an edit file: it holds no tensors, so a larger one is something else."""


@dataclass(frozen=True, slots=True)
class Edits:
    """A list of edits that belong together and are made in this order.

    `Edits.read("edits.yaml")` reads a file and `save` writes one. `digest` identifies the
    meaning of the edits, however the file is written.
    """

    records: tuple[EditRecord, ...]
    model: str | None = None
    """Name of the model that they are for."""
    model_digest: str | None = None
    """Digest of its weights; any other model is refused."""

    def __post_init__(self) -> None:
        found: object = self.records
        right = isinstance(found, tuple) and all(isinstance(r, EditRecord) for r in found)
        require(
            right, f"{found!r:.60} is not a tuple of edits; give sae.Edits((sae.edit(...),))"
        )

    @classmethod
    def read(cls, path: str | Path) -> "Edits":
        """Read an edit file.

        Raises:
            UserError: with a sentence for each thing that is wrong in it.
        """
        check_names(path)
        place = Path(path)
        require(
            place.is_file(),
            f"{path} is not an edit file; docs/edits.md describes what one looks like",
        )
        require(
            place.stat().st_size <= _LARGEST,
            f"{path} has {place.stat().st_size:,} bytes, and an edit file has no more than "
            f"{_LARGEST:,}; give one, as docs/edits.md has it",
        )
        try:
            text = place.read_text(encoding="utf-8")
        except ValueError as error:
            raise UserError(f"{path} cannot be read as text: {error}") from error
        return parsed_edits(text, str(path), is_json=place.suffix == ".json")

    @classmethod
    def from_plain(cls, found: object, where: str = "edits") -> "Edits":
        """Return the edits that plain data describes: what a file holds, or a list of edits.

        Raises:
            UserError: with a sentence for each thing that is wrong in it.
        """
        if isinstance(found, list):
            found = {"edits": found}
        if not isinstance(found, Mapping) or not isinstance(found.get("edits"), list):
            raise UserError(
                f"{where} contains no list of edits; write edits: and a list below it"
            )
        version = found.get("format", FORMAT)
        require(
            version == FORMAT,
            f"{where} is of format {version!r:.20}, and this version of sae-atlas reads format "
            f"{FORMAT}; update it, or write the file again",
        )
        wrong = [
            f"{key!r:.60} is no key of an edit file{nearest(str(key), _KEYS)}"
            for key in found
            if key not in _KEYS
        ]
        wrong += (
            f"{key}={found[key]!r:.60}; give text"
            for key in ("model", "model_digest")
            if not isinstance(found.get(key), str | None)
        )
        made = [record_of(one, f"edits[{i}]", wrong) for i, one in enumerate(found["edits"])]
        if wrong:
            raise UserError(*(f"{where}: {sentence}" for sentence in wrong))
        records = tuple(record for record in made if record is not None)
        return cls(records, found.get("model"), found.get("model_digest"))

    def to_plain(self) -> dict[str, object]:
        """Return what a file holds.

        Raises:
            UserError: if an edit holds a tensor, which no file does.
        """
        about = {"model": self.model, "model_digest": self.model_digest}
        said = {key: value for key, value in about.items() if value is not None}
        return {"format": FORMAT, **said, "edits": [r.to_plain() for r in self.records]}

    @property
    def digest(self) -> str:
        """Identifies what the edits say."""
        return digest(self.to_plain())

    def save(self, path: str | Path) -> None:
        """Write an edit file: JSON if its name ends in `.json`, else YAML."""
        check_names(path)
        if Path(path).suffix == ".json":
            text = json.dumps(self.to_plain(), indent=2, ensure_ascii=False) + "\n"
        else:
            text = self.to_yaml()
        write_text(Path(path), text)

    def to_yaml(self) -> str:
        """Return the text of an edit file in YAML."""
        text: str = yaml.dump(
            self.to_plain(),
            Dumper=_Dumper,
            sort_keys=False,
            allow_unicode=True,
            default_flow_style=None,
        )
        return text


def parsed_edits(text: str, where: str, *, is_json: bool = False) -> Edits:
    """Return the edits in the text of a file; all JSON is YAML too.

    Raises:
        UserError: with a sentence for each thing that is wrong in it.
    """
    try:
        found = _loaded(text, is_json=is_json)
    except (ValueError, TypeError, yaml.YAMLError, RecursionError) as error:
        # A key of YAML may be a list, which no mapping of Python takes.
        said = " ".join(str(error).replace('in "<unicode string>", ', "at ").split())
        raise UserError(f"{where} cannot be read as YAML or JSON: {said}") from error
    return Edits.from_plain(found, where)


def edits_of(given: Any) -> Edits:
    """Return edits, from a file's name, one edit, or a list of edits as records or data.

    Raises:
        UserError: if something is wrong, with one sentence for each mistake.
    """
    if isinstance(given, Edits):
        return given
    if isinstance(given, str | Path):
        return Edits.read(given)
    if isinstance(given, EditRecord):
        return Edits((given,))
    if isinstance(given, Mapping):
        return Edits.from_plain(given if "edits" in given else [given])
    if not isinstance(given, Iterable):
        raise UserError(
            f"{given!r:.60} is not an edit; give sae.edit(...), a list of them, or a file"
        )
    wrong: list[str] = []
    made = [
        one if isinstance(one, EditRecord) else record_of(one, f"edits[{i}]", wrong)
        for i, one in enumerate(given)
    ]
    if wrong:
        raise UserError(*wrong)
    return Edits(tuple(one for one in made if one is not None))


def _loaded(text: str, *, is_json: bool) -> Any:
    return json.loads(text, object_pairs_hook=_once) if is_json else yaml.load(text, _Loader)


def _once(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """Return an object of these keys, none of which may be given twice."""
    seen: dict[Any, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise ValueError(f"{key} is given twice")
        seen[key] = value
    return seen


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Reads YAML without what surprises: keys given twice, and 1e3 taken for text."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        _once([(key.value, None) for key, _ in node.value])
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Writes YAML for `_Loader`: a digest such as 17e0452 in quotes, so that it stays text."""


for _one in (_Loader, _Dumper):
    _one.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+"),
        list("-+0123456789."),
    )
