"""Whether a zarr group is an activation cache, and one that this version can read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae.base import JsonObject, UserError, require
from sae.cache.descriptions import seal_of

FORMAT = "sae-atlas activation cache"
FORMAT_VERSION = 2


def check_format(location: str | Path, attributes: dict[str, Any]) -> None:
    """Refuse what is no cache, or one that another version of this package wrote."""
    if attributes.get("format") != FORMAT:
        raise UserError(f"{location} is a zarr group, but not an activation cache of sae-atlas")
    if attributes.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{location} has cache format version {attributes.get('format_version')}, this is "
            f"version {FORMAT_VERSION}; harvest again"
        )
    require(
        attributes.get("seal") in (None, seal_of(attributes)),
        f"{location}/zarr.json is damaged, because it differs from what was written; make "
        "the cache again, or remove `seal` from it if somebody changed it on purpose",
    )
    about = JsonObject(str(location), "", attributes, "harvest again")
    for name, kind in _ATTRIBUTES.items():
        # One that is being laid out in an object store has none of them yet.
        if name in about or attributes.get("complete"):
            about.get(name, kind)
    require(attributes.get("hooks") != {}, f"{location} has no hooks; harvest again")
    for name in ("rows", "planned_rows"):
        if name in about:
            about.part(name).read(_Rows)
    if "model" in about:
        about.part("model").get("weight_digest", str)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Sequences of the two sides."""

    n_training: int
    n_held_out: int


_ATTRIBUTES: dict[str, Any] = {
    **dict.fromkeys(("complete", "text_complete"), bool),
    **dict.fromkeys(("dtype", "digest", "data_digest", "tokenizer_digest"), str),
    **dict.fromkeys(("rows", "hooks", "model", "data"), dict),
    "special_token_ids": tuple[int, ...],
}
"""What a cache says of itself, and the type of each value."""
