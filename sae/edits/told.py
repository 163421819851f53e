"""An edit in words: what it does, what its amounts are in all units, and what it costs."""

from collections.abc import Iterator

from sae.edits.aim import Aim
from sae.edits.record import BOS, EVERY_WRITER, EditRecord

_UNITS = {
    "raw": "{:.4g} raw",
    "max_act": "{:.3g} of its highest activation",
    "quantile": "at or above {:.1%} of its positive activations",
    "std": "{:.3g} standard deviations of activations along it",
    "residual_norm": "{:.3g} of the hook's median norm",
}
_SHOWN = 12
"""Amounts of one edit that are shown."""


def told(number: int, aim: Aim) -> Iterator[str]:
    """Yield the lines that describe an edit, which is the one of that number in its list."""
    record = aim.record
    at = record.at if record.at == EVERY_WRITER else aim.site.hook_name
    yield f"{number:>3}  {_what(record)} at {at}: {_formula(record)}"
    for sizes in aim.sizes[:_SHOWN]:
        known = [(k, v) for k, v in sizes.items() if not isinstance(v, str)]
        yield f"     by {'; '.join(_UNITS[key].format(value) for key, value in known)}"
    if aim.sizes:
        unknown: dict[str, list[str]] = {}
        for key, value in aim.sizes[0].items():
            if isinstance(value, str):
                unknown.setdefault(value, []).append(key)
        for why, keys in unknown.items():
            yield f"     not known in {', '.join(keys)}: {why}"
    elif record.mode.by == "factor":
        by = record.mode.default if record.by is None else record.by
        yield f"     by a factor of {by}"
    where = record.where.to_plain()
    shown = (f"{key} {str(value).replace(repr(BOS), BOS)}" for key, value in where.items())
    yield f"     where: {', '.join(shown)}"
    if record.when is not None:
        yield f"     when: {', '.join(f'{k} {v}' for k, v in record.when.to_plain().items())}"
    if aim.reads_codes and aim.dictionary is not None:
        read = aim.dictionary
        own = {*record.chosen} | ({aim.own_gate} - {None})
        n = len(own) if read.activation.each_alone else read.d_sae
        cost = f"{n * read.d_in:,} multiplications a token"
        yield f"     reads {n:,} of {read.d_sae:,} features: {cost}"


def _formula(record: EditRecord) -> str:
    """Return the formula of a mode for what is edited, where it has another for a head, say."""
    usual, *others = record.mode.formula.split("; of a ")
    own = (one for one in others if one.startswith(record.target))
    return next(own, usual).removeprefix(f"{record.target} ")


def _what(record: EditRecord) -> str:
    if record.dictionary is not None:
        features = ", ".join(map(str, record.chosen))
        several = "features" if len(record.chosen) > 1 else "feature"
        return f"{record.do} {several} {features} of {record.dictionary}"
    if record.head is not None:
        return f"{record.do} head {record.head}"
    named = f"token {record.token!r}" if record.token is not None else str(record.direction)
    return f"{record.do} {named}"
