"""From plain data to `EditRecord`s, and a sentence for each thing that is wrong in it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from torch import Tensor

from sae.base import UserError, nearest
from sae.edits.modes import MODES, Target
from sae.edits.positions import EVERYWHERE, Span
from sae.edits.record import (
    BOS,
    EVERY_WRITER,
    TARGETS,
    UNITS,
    EditRecord,
    WhenRecord,
    WhereRecord,
    quantile_of,
)

_MOST = 1e30
"""What no number of an edit reaches; beyond it float32 would soon overflow."""


def edit(**keys: Any) -> EditRecord:
    """Return the edit that these keys of an edit file describe, as in `docs/edits.md`.

    `sae.edit(dictionary="runs/demo/dictionaries/standard-2304-l1-1.5", feature=412, do="set",
    by=1.0, unit="max_act")` holds a feature at its highest activation.

    Raises:
        UserError: if something is wrong, with one sentence for each mistake.
    """
    wrong: list[str] = []
    made = record_of(keys, "edit", wrong)
    if made is None:
        raise UserError(*wrong)
    return made


def record_of(found: object, name: str, wrong: list[str]) -> EditRecord | None:
    """Return the edit that plain data describes, or None and say in `wrong` what is wrong.

    Args:
        name: begins the sentences, such as `edits[0]`.
    """
    if not isinstance(found, Mapping):
        wrong.append(
            f"{name} is {found!r:.60}; give an object with keys such as feature and do"
        )
        return None
    before = len(wrong)
    keys = [f.name for f in fields(EditRecord)]
    wrong += _unknown(found, keys, f"{name}: ", "an edit")
    given = {key: value for key, value in found.items() if value is not None}
    wrong += (f"{name}{sentence}" for sentence in _wrong_values(given))
    values = dict(given)
    values["where"] = _where(given.get("where", {}), f"{name}.where", wrong)
    if "when" in given:
        values["when"] = _when(given["when"], f"{name}.when", wrong)
    if len(wrong) == before:
        wrong += (f"{name}{sentence}" for sentence in _wrong_together(given))
    if len(wrong) > before:
        return None
    if "features" in values:
        values["features"] = tuple(values["features"])
    if isinstance(by := values.get("by"), list | tuple):
        values["by"] = tuple(map(float, by))
    elif isinstance(by, int):
        values["by"] = float(by)
    return EditRecord(**values)


def _unknown(found: Iterable[Any], keys: Sequence[str], at: str, what: str) -> Iterator[str]:
    """Yield a sentence for each key that there is not."""
    for key in found:
        if key not in keys:
            yield f"{at}{key!r:.60} is no key of {what}{nearest(str(key), keys)}"


def _wrong_values(given: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with each value by itself."""
    for key in ("at", "dictionary", "token", "cache", "digest", "unit"):
        if not isinstance(given.get(key, " "), str) or given.get(key, " ") == "":
            yield f".{key}={given[key]!r:.60}; give text"
    for key in ("feature", "head"):
        if not _is_index(given.get(key, 0)):
            yield f".{key}={given[key]!r:.60}; give a whole number from 0 on"
    yield from _wrong_features(given.get("features", [0]))
    direction = given.get("direction", "file")
    if not isinstance(direction, str | Tensor):
        yield f".direction={direction!r:.60}; give a file of one vector, .npy or .safetensors"
    elif isinstance(direction, Tensor) and direction.dim() != 1:
        yield f".direction is a tensor of shape {tuple(direction.shape)}; give one vector"
    yield from _wrong_amounts(given)
    do = given.get("do")
    if do is None:
        yield f" does not say what to do; give do: one of {', '.join(MODES)}"
    elif not isinstance(do, str) or do not in MODES:
        near = nearest(str(do), [*MODES])
        yield f".do={do!r:.60} is unknown{near}; there are {', '.join(MODES)}"


def _wrong_features(several: Any) -> Iterator[str]:
    if not isinstance(several, list | tuple) or not several:
        yield f".features={several!r:.60}; give a list such as [412, 17]"
    else:
        yield from (
            f".features holds {one!r:.60}; give whole numbers from 0 on"
            for one in several
            if not _is_index(one)
        )
        if len({*map(repr, several)}) < len(several):
            yield f".features={several!r:.60} names a feature twice; name each once"


def _wrong_amounts(given: Mapping[str, Any]) -> Iterator[str]:
    by = given.get("by", 0.0)
    if isinstance(by, Tensor):
        if by.dim() > 1:
            yield f".by is a tensor of shape {tuple(by.shape)}; give one number a sequence"
    elif isinstance(by, list | tuple) and not by:
        yield ".by is an empty list; give a number, or one for each sequence of a batch"
    else:
        for one in by if isinstance(by, list | tuple) else [by]:
            if type(one) not in (int, float):
                hint = _as_yaml(one)
                yield f".by={one!r:.60}; give a number{hint}"
            elif not _is_finite(one):
                yield f".by={one!r:.60}; give a finite number"
    unit = given.get("unit", "raw")
    if isinstance(unit, str) and unit not in UNITS and quantile_of(unit) is None:
        near = nearest(unit, UNITS)
        yield f".unit={unit!r:.60} is unknown{near}; there are {', '.join(UNITS)} (0 < Q <= 1)"


def _as_yaml(value: object) -> str:
    """Return a hint where YAML takes a number such as 1e3 for text."""
    try:
        return f", in YAML {float(value)!r}" if isinstance(value, str) else ""
    except ValueError:
        return ""


def _wrong_together(given: Mapping[str, Any]) -> Iterator[str]:
    """Yield which keys do not go with each other."""
    named, mode = [key for key in TARGETS if key in given], MODES[given["do"]]
    listed = ", ".join(TARGETS)
    if len(named) != 1:
        what = " and ".join(named) or "nothing"
        yield f" is of {what}; give exactly one of {listed}"
        return
    (key,) = named
    target = TARGETS[key]
    if target not in mode.targets:
        fitting = ", ".join(name for name, m in MODES.items() if target in m.targets)
        yield f".do={given['do']} cannot be done to a {key}; of {fitting} choose one"
    yield from _wrong_place(given, key, target)
    by = given.get("by", mode.default)
    if mode.by == "nothing" and by is not None:
        yield f".by has no meaning with do={given['do']}; leave it out"
    elif mode.by != "nothing" and by is None:
        yield " does not say how much; give by: a number"
    unit = given.get("unit", "raw")
    if mode.by != "size" and unit != "raw":
        yield f".unit={unit} has no meaning with do={given['do']}, where by has none"
    if target != "feature" and unit.partition(":")[0] in ("max_act", "quantile"):
        yield f".unit={unit} is one of features; of a {key} give raw, std or residual_norm"
    elif mode.reads == "projection" and unit.partition(":")[0] in ("max_act", "quantile"):
        yield (
            f".unit={unit} is one of codes, and {given['do']} changes the projection on the "
            "feature's direction; give raw, std or residual_norm"
        )
    if mode.exactly is not None and len(given.get("features", ())) != mode.exactly:
        yield f".do={given['do']} needs {mode.exactly} features; give features: [412, 17]"


def _wrong_place(given: Mapping[str, Any], key: str, target: Target) -> Iterator[str]:
    if target == "feature" and "dictionary" not in given:
        yield f".{key} is of a dictionary; give dictionary: its folder"
    elif target != "feature" and "dictionary" in given:
        yield f".dictionary has no meaning with {key}; leave it out"
    if target != "feature" and "at" not in given:
        yield " does not say where; give at: a hook such as blocks.9.hook_resid_post"
    on_disk = "dictionary" in given or isinstance(given.get("direction"), str)
    if "digest" in given and not on_disk:
        yield ".digest is of a dictionary or a direction's file, and here is none"
    if given.get("at") == EVERY_WRITER and given["do"] != "orthogonal":
        yield f".at={EVERY_WRITER} is for do=orthogonal; give a hook"
    gate = given.get("when")
    if isinstance(gate, WhenRecord):
        gate = gate.to_plain()
    if gate is not None and "dictionary" not in given and "dictionary" not in gate:
        yield ".when.feature is of a dictionary; give when.dictionary: its folder"


def _where(found: object, name: str, wrong: list[str]) -> WhereRecord | None:
    if isinstance(found, WhereRecord):
        return found
    if not isinstance(found, Mapping):
        wrong.append(f"{name}={found!r:.60}; give an object with prompt, generated and except")
        return None
    before, keys = len(wrong), ("prompt", "generated", "except", "sequences")
    wrong += _unknown(found, keys, f"{name}: ", "it")
    prompt = _spans(found.get("prompt", "all"), f"{name}.prompt", wrong)
    generated = _spans(found.get("generated", "all"), f"{name}.generated", wrong, least=0)
    but = found.get("except", [BOS])
    if not isinstance(but, list | tuple):
        wrong.append(f"{name}.except={but!r:.60}; give a list such as [bos, [0, 4]]")
        but = []
    left_out: list[Span | str] = []
    for one in but:
        if one == BOS:
            left_out.append(BOS)
        else:
            left_out += _spans([one], f"{name}.except", wrong)
    each = _each(found.get("sequences"), f"{name}.sequences", wrong)
    nothing = not (prompt or generated) or (0, None) in left_out or not any(each or ((0,),))
    if len(wrong) == before and nothing:
        wrong.append(f"{name} chooses no token at all; choose some")
    if len(wrong) > before:
        return None
    return WhereRecord(prompt=prompt, generated=generated, but=tuple(left_out), sequences=each)


def _each(found: object, name: str, wrong: list[str]) -> tuple[tuple[Span, ...], ...] | None:
    """Return the ranges of each sequence."""
    if found is None:
        return None
    if not isinstance(found, list | tuple) or not found:
        wrong.append(
            f"{name}={found!r:.60}; give a list with all, none or ranges for each sequence"
        )
        return None
    return tuple(_spans(one, f"{name}[{i}]", wrong) for i, one in enumerate(found))


def _spans(
    found: object, name: str, wrong: list[str], least: int | None = None
) -> tuple[Span, ...]:
    """Return the ranges that a value names: all, none, one range, or a list of them."""
    if found in ("all", "none"):
        return EVERYWHERE if found == "all" else ()
    several: Sequence[Any] = found if isinstance(found, list | tuple) else [found]
    if several and not any(isinstance(one, list | tuple) for one in several):
        several = [several]
    spans: list[Span] = []
    for one in several:
        if not _is_span(one):
            wrong.append(
                f"{name}: {one!r:.60} is no range; give [first, end], with null for an open end"
            )
        elif least is not None and any(end is not None and end < least for end in one):
            wrong.append(f"{name}: {list(one)} begins before the first token that is written")
        elif _is_empty(one):
            wrong.append(f"{name}: {list(one)} holds no token; the end is not in a range")
        else:
            spans.append((one[0], one[1]))
    if not several:
        wrong.append(f"{name} is an empty list; say none, or give ranges")
    return tuple(spans)


def _is_span(found: Any) -> bool:
    if not isinstance(found, list | tuple) or len(found) != 2:
        return False
    return type(found[0]) is int and (found[1] is None or type(found[1]) is int)


def _is_empty(span: Any) -> bool:
    first, end = span
    return end is not None and (first < 0) == (end < 0) and end <= first


def _when(found: object, name: str, wrong: list[str]) -> WhenRecord | None:
    if isinstance(found, WhenRecord):
        return found
    if not isinstance(found, Mapping):
        wrong.append(
            f"{name}={found!r:.60}; give an object such as {{feature: 17, above: 0.2}}"
        )
        return None
    before, keys = len(wrong), [f.name for f in fields(WhenRecord)]
    wrong += _unknown(found, keys, f"{name}: ", "it")
    if not _is_index(found.get("feature")):
        wrong.append(
            f"{name}.feature={found.get('feature')!r:.60}; give a whole number from 0 on"
        )
    limits = [found[key] for key in ("above", "below") if found.get(key) is not None]
    if not limits:
        wrong.append(f"{name} says neither above nor below; give a code, such as above: 0.2")
    wrong += (
        f"{name}: {limit!r:.60} is no limit; give a finite number"
        for limit in limits
        if type(limit) not in (int, float) or not _is_finite(limit)
    )
    if not isinstance(found.get("dictionary", ""), str):
        wrong.append(f"{name}.dictionary={found['dictionary']!r:.60}; give a folder")
    if len(wrong) > before:
        return None
    numbers = {
        k: float(v) for k, v in found.items() if k in ("above", "below") and v is not None
    }
    return WhenRecord(**{**found, **numbers})


def _is_finite(number: float | int) -> bool:
    # Whole numbers of Python have no end, and those that a float can hold do.
    return abs(number) < _MOST


def _is_index(found: object) -> bool:
    return type(found) is int and 0 <= found < 2**31
