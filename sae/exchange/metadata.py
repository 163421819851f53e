"""What a dictionary's file says of it: text of strangers, in the types that stages ask for.

Whatever of it is asked for without a second look is in `sae_atlas`, our own record. One that is
not as we write it is refused; all else stays as it is, as long as it can be written again.
"""

import json
import reprlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sae.base.errors import UserError
from sae.dictionary import Dictionary

_NUMBER = (int, float)
_NUMBER_OR_NULL = (int, float, type(None))
_TEXT_OR_NULL = (str, type(None))
_MODEL = {"name": str, "revision": _TEXT_OR_NULL, "dtype": str, "weight_digest": str}
# All of these are there where training_tokens is.
_TRAINING: dict[str, Any] = {
    "training_tokens": int,
    "architecture": str,
    "sae": dict,
    "optim": dict,
    "train_batch_size_tokens": int,
    "max_norm_multiple": _NUMBER_OR_NULL,
    "seed": int,
    "versions": dict,
}
_RECORD: dict[str, Any] = {**_TRAINING, "digest": str, "identity": dict}
_IMPORTED = {"from": str}
_DATA = {"name": str, "held_out_fraction": _NUMBER}
_WORDS: dict[Any, str] = {
    str: "text",
    int: "a whole number",
    dict: "an object",
    _NUMBER: "a number",
    _NUMBER_OR_NULL: "a number or null",
    _TEXT_OR_NULL: "text or null",
}


def checked_metadata(path: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata that the file `path` has, as they can be written and asked for.

    Half a character becomes `?`, and what is no number null: neither is JSON that all read.

    Raises:
        UserError: if `sae_atlas` in it is not as we write it.
    """
    text = json.dumps(dict(found), ensure_ascii=False).encode("utf-8", "replace").decode()
    metadata: dict[str, Any] = json.loads(text, parse_constant=lambda _: None)
    if "sae_atlas" in metadata:
        _check_record(path, metadata["sae_atlas"])
    return metadata


def _check_record(path: Path, record: Any) -> None:
    _check(path, "sae_atlas", record, _RECORD)
    if "training_tokens" in record:
        _check(path, "sae_atlas", record, _TRAINING, complete=True)
        _check(
            path, "sae_atlas.versions", record["versions"], {"sae-atlas": str}, complete=True
        )
    _check(path, "sae_atlas.data", record.get("data", {}), _DATA)
    for key, types in (("model", _MODEL), ("imported", _IMPORTED)):
        if key in record:
            _check(path, f"sae_atlas.{key}", record[key], types, complete=True)


def _check(
    path: Path, name: str, found: Any, types: Mapping[str, Any], *, complete: bool = False
) -> None:
    if type(found) is not dict:
        raise _odd(path, name, found, dict)
    for key, kinds in types.items():
        if not complete and key not in found:
            continue
        # Not isinstance(): true is no number here.
        right = type(found.get(key)) in (kinds if isinstance(kinds, tuple) else (kinds,))
        if not right or key not in found:
            raise _odd(path, f"{name}.{key}", found.get(key), kinds)


def _odd(path: Path, name: str, value: Any, kinds: Any) -> UserError:
    return UserError(
        f"{path}: {name}={reprlib.repr(value)}, where sae-atlas writes {_WORDS[kinds]}; take "
        "sae_atlas out of the file"
    )


def said_to_be_transcoder(dictionary: Dictionary) -> Dictionary:
    """One whose file says that it is a transcoder, which its hooks may leave open."""
    if dictionary.is_transcoder:
        return dictionary
    return replace(dictionary, metadata={**dictionary.metadata, "transcoder": True})
