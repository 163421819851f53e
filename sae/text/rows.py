"""A row of a table, or a part of a text file, as a document: text, a conversation, tokens."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Chat = list[dict[str, Any]]
"""A conversation: messages with `role` and `content`."""

Tokens = NDArray[np.int32]
"""A document that is tokenised already, (position,)."""

TOKEN_COLUMNS = ("input_ids", "tokens")
"""Columns whose lists of whole numbers are tokens; anywhere else they could be anything."""

# ShareGPT's words for who speaks.
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
# What is read of bytes that are no UTF-8, and halves of characters that JSON may name.
_HALF = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Unreadable:
    """In the place of a row or a document that could not be read."""

    reason: str
    """Goes on after the place, or begins with it."""


Read = str | Chat | Tokens | Unreadable
"""A document as it was read."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source."""

    where: str
    """For people: `notes.jsonl, line 7`."""
    values: Mapping[str, Any] | Unreadable
    """The columns."""


def is_whole(text: str) -> bool:
    """Return whether a text holds characters alone, and no half of one."""
    return text.isascii() or not _HALF.search(text)


def document_of(row: Row, column: str) -> Read:
    """Return the document in a row's column; an empty text if it holds nothing."""
    if isinstance(row.values, Unreadable):
        return Unreadable(f"{row.where} {row.values.reason}")
    found, value = _at(row.values, column)
    if not found:
        there = ", ".join(map(str, row.values))
        return Unreadable(f"data.column={column} is not in {row.where}; it has {there}")
    mask = row.values.get("attention_mask")
    document = _document(_messages(value), mask if column in TOKEN_COLUMNS else None, column)
    if isinstance(document, Unreadable):
        return Unreadable(f"data.column={column} of {row.where} {document.reason}")
    return document


def _document(value: object, mask: object, column: str) -> Read:
    if value is None or value == []:
        return ""
    if isinstance(value, str):
        return value if is_whole(value) else Unreadable("is not readable as text in UTF-8")
    if isinstance(value, list):
        if all(_has(message, "role", "content") for message in value):
            return value
        if all(_has(message, "from", "value") for message in value):
            return _chat(value)
        if column in TOKEN_COLUMNS and all(type(one) is int for one in value):
            return _tokens(value, mask)
    return Unreadable(
        f"holds {type(value).__name__}; give a column of text, of conversations (lists of "
        "messages with role and content, or from and value), or of tokens "
        f"({' or '.join(TOKEN_COLUMNS)})"
    )


def _at(values: Mapping[str, Any], column: str) -> tuple[bool, Any]:
    """Return whether a column is there, and its value; `translation.en` is inside another."""
    if column in values:
        return True, values[column]
    first, _, rest = column.partition(".")
    inside = values.get(first)
    return _at(inside, rest) if rest and isinstance(inside, Mapping) else (False, None)


def _messages(value: object) -> object:
    """Return a list of messages for lists of their parts, as which `datasets` may keep it."""
    if not isinstance(value, Mapping) or not all(isinstance(v, list) for v in value.values()):
        return value
    columns = list(value.values())
    if len({len(column) for column in columns}) != 1:
        return value
    return [dict(zip(value, parts, strict=True)) for parts in zip(*columns, strict=True)]


def _has(message: object, *keys: str) -> bool:
    return isinstance(message, Mapping) and all(key in message for key in keys)


def _chat(messages: list[dict[str, Any]]) -> Chat | Unreadable:
    for message in messages:
        if message["from"] not in _ROLES:
            return Unreadable(
                f"has a message from {message['from']}; known are {', '.join(_ROLES)}"
            )
    return [{"role": _ROLES[one["from"]], "content": one["value"]} for one in messages]


def _tokens(ids: list[int], mask: object) -> Tokens | str:
    if isinstance(mask, list) and len(mask) == len(ids):
        # What is masked is padding.
        ids = [one for one, there in zip(ids, mask, strict=True) if there]
    return np.array(ids, dtype=np.int64).clip(-1, 2**31 - 1).astype(np.int32) if ids else ""
