"""Several dials of one dictionary, turned together: from a page to edits, and back."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from sae.base import UserError, require
from sae.edits import Edits, WhereRecord, edit
from sae.edits.file import parsed_edits

MOST_DIALS = 12
_MODES = ("add", "set")
_STRONGEST = 100.0


@dataclass(frozen=True, slots=True)
class Dial:
    """One feature that is turned."""

    feature: int
    strength: float
    """In multiples of its highest activation."""
    do: str = "add"
    """Whether that is added to what it is anyway, or it is held there: add or set."""


def dials_of(found: object) -> tuple[Dial, ...]:
    """Return the dials that the JSON of a request lists.

    Raises:
        UserError: if one is of another form, or there are too many.
    """
    if not isinstance(found, list) or len(found) > MOST_DIALS:
        raise UserError(f"dials is {_shown(found)}; give a list of {MOST_DIALS} at most")
    return tuple(_dial(one) for one in found)


def _dial(found: Any) -> Dial:
    if not isinstance(found, dict) or {*found} - {"feature", "strength", "do"}:
        raise UserError(f"dials holds {_shown(found)}; give feature, strength and do")
    feature: Any = found.get("feature")
    strength: Any = found.get("strength")
    do = found.get("do", "add")
    require(
        type(feature) is int and 0 <= feature < 2**31,
        f"the feature of a dial is {_shown(feature)}; give a whole number from 0 on",
    )
    # Not isinstance(): true would be a number. NaN is in no range.
    right = type(strength) in (int, float) and -_STRONGEST <= strength <= _STRONGEST
    require(
        right, f"the strength of a dial is {_shown(strength)}; give a number from -100 to 100"
    )
    require(do in _MODES, f"do of a dial is {_shown(do)}; give add or set")
    return Dial(int(feature), float(strength), str(do))


def _shown(value: object) -> str:
    return "missing" if value is None else json.dumps(value)[:60]


def edits_of_dials(folder: str, dials: Sequence[Dial]) -> Edits:
    """Return the edits that turn dials of the dictionary in a folder."""
    return Edits(
        tuple(
            edit(dictionary=folder, feature=d.feature, do=d.do, by=d.strength, unit="max_act")
            for d in dials
        )
    )


def others(dials: Sequence[Dial], highest: Sequence[float], seed: int) -> tuple[Dial, ...]:
    """Return the same dials on other live features, drawn by a seed, as a baseline."""
    taken = {dial.feature for dial in dials}
    live = [i for i, top in enumerate(highest) if top > 0 and i not in taken]
    drawn = random.Random(seed).sample(live, min(len(dials), len(live)))
    return tuple(
        Dial(feature, dial.strength, dial.do)
        for feature, dial in zip(drawn, dials, strict=False)
    )


def file_of_dials(folder: str, digest: str, dials: Sequence[Dial]) -> str:
    """Return the text of an edit file, YAML, that turns these dials."""
    found = edits_of_dials(folder, dials).to_plain()
    for one in found["edits"]:  # type: ignore[attr-defined]
        one["digest"] = digest
    text: str = yaml.safe_dump(found, sort_keys=False, allow_unicode=True)
    return text


def dials_of_file(text: str, digest: str, highest: Sequence[float]) -> tuple[Dial, ...]:
    """Return the dials that the text of an edit file sets.

    Raises:
        UserError: if it is no edit file, or holds what no dial of this dictionary can do.
    """
    records = parsed_edits(text, "the file").records
    require(len(records) <= MOST_DIALS, f"the file has {len(records)} edits; give {MOST_DIALS}")
    dials: list[Dial] = []
    for i, record in enumerate(records):
        require(
            record.target == "feature" and record.do in _MODES and record.when is None,
            f"edits[{i}] of the file is no dial: do is {record.do}; here are add and set of "
            "features, without a gate",
        )
        require(
            record.where == WhereRecord(),
            f"edits[{i}] of the file is made at some tokens only; dials are turned everywhere "
            "but at the token before a text",
        )
        require(
            record.digest in (None, digest),
            f"edits[{i}] of the file is of the dictionary {record.digest}, and this "
            f"one is {digest}",
        )
        require(
            isinstance(record.by, float) and record.unit in ("raw", "max_act"),
            f"edits[{i}] of the file is in {record.unit}; a dial takes one number, in raw or "
            "max_act",
        )
        for feature in record.chosen:
            require(
                feature < len(highest) and highest[feature] > 0,
                f"edits[{i}] of the file: feature {feature} is dead or not there",
            )
            unit = highest[feature] if record.unit == "raw" else 1.0
            assert isinstance(record.by, float)
            dials.append(Dial(feature, record.by / unit, record.do))
    return tuple(dials)


def plain(dials: Sequence[Dial]) -> list[Mapping[str, Any]]:
    """Return dials as JSON has them."""
    return [{"feature": d.feature, "strength": d.strength, "do": d.do} for d in dials]
