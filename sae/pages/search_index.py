"""From words to the features that fire on them, promote them or stand among them."""

import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np

LONGEST_WORD = 40
"""Characters after which a word is cut."""
LISTED = 300
"""Features that are listed of a word at most; their number is always given."""
_LISTED_A_FILE = 30_000
"""Features that a file lists at most, some 180 kB."""
_CHARACTERISTIC = 1000
"""Weight of a token that a feature fires on or promotes; a context's word counts one."""

_WORD = re.compile(r"[^\W_]+")


def words_of(text: str) -> list[str]:
    """Maximal runs of letters and digits, in lower case, cut to 40 characters."""
    return [word[:LONGEST_WORD] for word in _WORD.findall(text.lower())]


def key_of(word: str) -> str:
    """The name of the file that holds a word: its first two UTF-16 units in hexadecimal."""
    units = word[:2].encode("utf-16-be")[:4]
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
        """The key of every file, and its words: `[how many features, the first of them]`."""
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
