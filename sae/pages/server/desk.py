"""Several dials of one dictionary, turned together: from a page to edits, and back."""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sae.base import UserError, require
from sae.edits import EditRecord, Edits, WhereRecord, edit

MOST_DIALS = 12
MOST_PRESETS = 100
"""Edit files of a run that a page offers."""
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
    found = edits_of_dials(folder, dials)
    return replace(
        found, records=tuple(replace(r, digest=digest) for r in found.records)
    ).to_yaml()


@dataclass(frozen=True, slots=True)
class Desk:
    """One dictionary whose dials are turned."""

    folder: Path
    """The dictionary."""
    digest: str
    highest: Sequence[float]
    """The highest activation of each feature; 0 of a dead one."""

    def opened(self, edits: Edits) -> tuple[Dial, ...]:
        """Return the dials that edits set.

        Raises:
            UserError: if they hold what no dial of this dictionary can do.
        """
        records = edits.records
        require(
            0 < len(records) <= MOST_DIALS,
            f"the file has {len(records)} edits; give 1 to {MOST_DIALS}",
        )
        dials = [dial for i, one in enumerate(records) for dial in self._dials(i, one)]
        require(len(dials) <= MOST_DIALS, f"the file sets {len(dials)} dials; {MOST_DIALS} fit")
        return tuple(dials)

    def _dials(self, i: int, record: EditRecord) -> Iterator[Dial]:
        said = f"edits[{i}] of the file"
        require(
            record.target == "feature" and record.do in _MODES and record.when is None,
            f"{said} is no dial: do is {record.do}; here are add and set of features, without "
            "a gate",
        )
        require(
            record.where == WhereRecord(),
            f"{said} is made at some tokens only; dials are turned everywhere but at the token "
            "before a text",
        )
        # Without a digest the name has to do: folders are elsewhere on another machine.
        name = Path(str(record.dictionary)).name
        require(
            name == self.folder.name if record.digest is None else record.digest == self.digest,
            f"{said} is of the dictionary {record.digest or name}, and this one is "
            f"{self.folder.name if record.digest is None else self.digest}",
        )
        require(
            isinstance(record.by, float) and record.unit in ("raw", "max_act"),
            f"{said} is in {record.unit}; a dial takes one number, in raw or max_act",
        )
        for feature in record.chosen:
            require(
                feature < len(self.highest) and self.highest[feature] > 0,
                f"{said}: feature {feature} is dead or not there",
            )
            unit = self.highest[feature] if record.unit == "raw" else 1.0
            assert isinstance(record.by, float)
            yield Dial(feature, record.by / unit, record.do)

    def presets(self, place: Path) -> list[dict[str, Any]]:
        """Return the edit files in a folder, each with its dials, or with why it has none."""
        found: list[dict[str, Any]] = []
        if not place.is_dir():
            return found
        kinds = (".yaml", ".yml", ".json")
        names = sorted(path.name for path in place.iterdir() if path.suffix in kinds)
        for name in names[:MOST_PRESETS]:
            try:
                dials = self.opened(Edits.read(place / name))
            except UserError as error:
                found.append({"name": name, "why": " ".join(str(error).split())})
            else:
                found.append({"name": name, "dials": plain(dials)})
        return found


def plain(dials: Sequence[Dial]) -> list[Mapping[str, Any]]:
    """Return dials as JSON has them."""
    return [{"feature": d.feature, "strength": d.strength, "do": d.do} for d in dials]
