"""What characters are to whoever looks for words: letters with their marks, and scripts."""

import unicodedata
from collections.abc import Iterator
from functools import cache

UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aad\u2e80-\u2fd5\u3005-\u3007"
    "\u3021-\u3029\u3031-\u3035\u3040-\u30ff\u3105-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\ua9e0-\ua9fe\uaa60-\uaadf\uf900-\ufaff\uff66-\uff9f"
    "\U00016fe0-\U00018dff\U0001aff0-\U0001b2ff\U00020000-\U0003ffff"
)
"""Of scripts that put no space between words, as a class of a regular expression has it.

Thai, Lao, Tibetan, Burmese, Khmer, Tai, Chinese and Japanese."""

JOINERS = "\u200c\u200d"
"""Keep the letters on either side apart, or join them, inside one word or one picture."""


@cache
def marks() -> str:
    """Return all characters that belong to the one before them, as `UNSPACED` has its."""
    return "".join(
        f"{chr(first)}-{chr(last)}" if last > first else chr(first) for first, last in _ranges()
    )


def _ranges() -> Iterator[tuple[int, int]]:
    first = None
    for code in range(0x300, 0x20000):
        if unicodedata.category(chr(code))[0] == "M":
            first = code if first is None else first
        elif first is not None:
            yield first, code - 1
            first = None


def is_letter(character: str) -> bool:
    """Return whether a character is a letter, or a mark or joiner inside a word."""
    return (
        character.isalpha() or character in JOINERS or unicodedata.category(character)[0] == "M"
    )


def is_word(text: str) -> bool:
    """Return whether a text is letters alone, with their marks."""
    return text[:1].isalpha() and all(map(is_letter, text))
