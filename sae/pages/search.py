"""The search index of an atlas: from words, signs and characters to the features they are of.

A page finds a word by its beginning. Scripts without spaces have no words to find, and signs
are none, so of these every character and every pair of neighbours is listed, and a page looks
for the features of all pairs of what is typed.
"""

import re
import unicodedata
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from itertools import pairwise

import numpy as np

from sae.text.scripts import UNSPACED, marks

LONGEST_WORD = 40
"""Characters after which a word is cut."""
LISTED = 300
"""Features that are listed of a word at most; their number is always given."""
_LISTED_A_FILE = 30_000
"""Features that a file lists at most, some 180 kB."""
_CHARACTERISTIC = 1000
"""Weight of a token that a feature fires on or promotes; a context's word counts one."""
_VARIANTS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")
"""They choose among ways to draw a character, and nobody types them."""
_BY_SCRIPT = re.compile(f"[{UNSPACED}]+|[^{UNSPACED}]+")
_UNSPACED = re.compile(f"[{UNSPACED}]")


@cache
def _runs() -> re.Pattern[str]:
    # Letters and digits with their marks, or signs.
    return re.compile(rf"[^\W_]+(?:[{marks()}]+[^\W_]*)*|(?:[^\w\s]|_)+")


def words_of(text: str) -> list[str]:
    """Return what a text is found by, in lower case and composed.

    These are words, cut to 40 characters; and of signs, and scripts without spaces, characters
    and pairs of them.
    """
    if not text.isascii():
        text = _VARIANTS.sub("", unicodedata.normalize("NFC", text))
    found = []
    for run in _runs().findall(text.lower()):
        for part in [run] if run.isascii() else _BY_SCRIPT.findall(run):
            if is_word(part):
                found.append(part[:LONGEST_WORD])
            else:
                found += [character for character in part if character.isprintable()]
                found += map("".join, pairwise(part))
    return found


def is_word(term: str) -> bool:
    """Return whether it is found by its beginning, and not by its characters."""
    return term[0].isalnum() and not _UNSPACED.match(term)


def key_of(term: str) -> str:
    """Return the name of a term's file: of a word, its first two UTF-16 units in hexadecimal.

    Pairs are many: those whose first character is one of the same sixteen are in one file.
    """
    if not is_word(term):
        return f"g-{ord(term[0]) >> 4:x}"
    units = term[:2].encode("utf-16-be")[:4]
    return "-".join(
        f"{units[i]:02x}{units[i + 1]:02x}".lstrip("0") for i in (0, 2) if units[i:]
    )


class SearchIndex:
    """Collects words feature by feature, in ascending order."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._words = array("i")
        self._features = array("i")
        self._weights = array("i")

    def add(self, feature: int, tokens: list[str], text: str) -> None:
        """Add the tokens that a feature fires on or promotes, and the text of its contexts."""
        counts = Counter(words_of(text))
        for word in set(words_of("\n".join(tokens))):
            counts[word] += _CHARACTERISTIC
        numbers = self._numbers
        self._words.extend([numbers.setdefault(word, len(numbers)) for word in counts])
        self._features.extend([feature] * len(counts))
        self._weights.extend(counts.values())

    def files(self) -> Iterator[tuple[str, dict[str, list[int]]]]:
        """Yield each file's key, and its words: `[how many features, the first of them]`."""
        columns = (self._words, self._features, self._weights)
        words, features, weights = map(np.asarray, columns)
        order = np.lexsort((features, -weights, words))
        features = features[order]
        counts = np.bincount(words, minlength=len(self._numbers))
        ends = [0, *np.cumsum(counts).tolist()]
        by_key = defaultdict(list)
        for word, number in self._numbers.items():
            by_key[key_of(word)].append((word, number))
        for key, members in sorted(by_key.items()):
            counts = np.array([ends[number + 1] - ends[number] for _, number in members])
            listed = LISTED
            while listed > 1 and np.minimum(counts, listed).sum() > _LISTED_A_FILE:
                listed = listed * 4 // 5
            found = {}
            for word, number in sorted(members):
                start, end = ends[number : number + 2]
                best = features[start : min(end, start + listed)]
                found[word] = [end - start, *best.tolist()]
            yield key, found
