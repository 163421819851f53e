"""What stands at and around the peaks of all features' top contexts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sae.atlas import flat_and_ends, list_lengths
from sae.text.scripts import is_letter, is_word

if TYPE_CHECKING:
    import pyarrow

_LEFT, _RIGHT = 5, 5
"""Tokens that are looked at on either side of a peak."""
_BROKEN = "\ufffd"
"""What is shown of a character whose last part is not there."""


@dataclass(frozen=True, slots=True)
class Peak:
    """The token of a context at which the feature fires most, and what stands beside it."""

    token: str
    """Its text; empty for a part of a character that the next tokens complete."""
    word: str
    """The whole word that the token is part of, without spaces around it."""
    left: str
    """What of the word stands before the token."""
    before: list[str]
    """The tokens before the word's, the nearest first."""
    after: str
    """The token after the word."""
    spaced: bool
    """Whether a space parts the word from what is before it."""
    position: int


class TopContexts:
    """Top contexts of all features as flat arrays of token numbers."""

    def __init__(self, contexts: "pyarrow.Table") -> None:
        import pyarrow.compute as pc

        columns = ["feature", "position", "start", "tokens"]
        contexts = contexts.select(columns).filter(pc.equal(contexts["group"], "top"))
        tokens, self.ends = flat_and_ends(contexts, "tokens")
        encoded = pc.dictionary_encode(tokens)
        self.codes: np.ndarray = encoded.indices.to_numpy(zero_copy_only=False)
        self.texts: list[str] = encoded.dictionary.to_pylist()
        self.starts = self.ends - list_lengths(contexts, "tokens")
        self.features = contexts["feature"].to_numpy()
        self.positions = contexts["position"].to_numpy()
        peaks = self.starts + self.positions - contexts["start"].to_numpy()
        # Whether tokens tell by a leading space where a word begins.
        self.spaced = sum(t.startswith(" ") for t in self.texts) > 0.05 * len(self.texts)
        # Token numbers around each peak; −1 beyond the ends.
        at = peaks[:, None] + np.arange(-_LEFT, _RIGHT + 1)
        inside = (at >= self.starts[:, None]) & (at < self.ends[:, None])
        windows = np.where(inside, self.codes[np.where(inside, at, 0)], -1)
        self._windows: list[list[int]] = windows.tolist()
        # Where each feature's contexts begin, and the end.
        last = int(self.features[-1]) + 1 if len(self.features) else 0
        self._rows = np.searchsorted(self.features, np.arange(last + 1)).tolist()

    def peaks_of(self, feature: int) -> list[Peak]:
        """Return the peaks of the contexts of one feature, the highest first."""
        if feature + 1 >= len(self._rows):
            return []
        found = []
        for row in range(*self._rows[feature : feature + 2]):
            window = [self.texts[code] if code >= 0 else "" for code in self._windows[row]]
            found.append(_peak(window, int(self.positions[row]), self.spaced))
        return found

    def topics(self) -> dict[int, list[str]]:
        """Find words in many of a feature's contexts and few of all: the most telling first.

        Words are told by whole tokens: what a tokenizer cuts in pieces is left out.
        """
        words, number = _words_of_tokens(self)
        # Parts of characters, which have no text, are nothing between two tokens.
        said = np.array([bool(text) for text in self.texts], dtype=bool)[self.codes]
        codes, before = self.codes[said], np.append(0, np.cumsum(said))
        chosen, starts = number[codes], before[self.starts]
        lengths = before[self.ends] - starts
        if self.spaced:
            # A token that the next one carries on is no whole word.
            begins = np.array([is_letter(text[:1] or " ") for text in self.texts], dtype=bool)
            carries_on = begins[codes]
            carries_on[starts[lengths > 0]] = False
            chosen[:-1][carries_on[1:]] = -1
        context = np.repeat(np.arange(len(lengths)), lengths)
        keep = chosen >= 0
        if not keep.any():
            return {}
        pairs, _ = _counted(context[keep] * len(words) + chosen[keep])
        context, word = np.divmod(pairs, len(words))
        overall = np.bincount(word, minlength=len(words)) / len(self.starts)
        # What one in fifty contexts has is no matter of its own, however often it is found.
        rare = max(0.02, 3 / len(np.unique(self.features)))
        key, counts = _counted(self.features[context].astype(np.int64) * len(words) + word)
        feature, word = np.divmod(key, len(words))
        share = counts / np.bincount(self.features)[feature]
        lift = share / overall[word]
        found = (counts >= 3) & (share >= 0.4) & (lift >= 8) & (overall[word] <= rare)
        feature, word, score = feature[found], word[found], (share * np.log(lift))[found]
        order = np.lexsort((word, -score, feature))
        topics: dict[int, list[str]] = {}
        for f, w in zip(feature[order].tolist(), word[order].tolist(), strict=True):
            topics.setdefault(f, []).append(words[w])
        return topics


def _peak(window: list[str], position: int, spaced: bool) -> Peak:
    # A part of a character has no text: it belongs to the next token that has one.
    place = next((i for i in range(_LEFT, len(window)) if window[i]), None)
    if place is None:
        window, place = [*window[:_LEFT], _BROKEN], _LEFT
    token, place = window[_LEFT], sum(map(bool, window[:place]))
    window = [text for text in window if text]
    first = last = place
    if spaced:
        while first > 0 and _joined(window[first - 1], window[first]):
            first -= 1
        while last + 1 < len(window) and _joined(window[last], window[last + 1]):
            last += 1
    word = "".join(window[first : last + 1])
    return Peak(
        token=token,
        word=word.strip(" ") or word,
        left="".join(window[first:place]),
        before=window[:first][::-1],
        after=window[last + 1] if last + 1 < len(window) else "",
        spaced=window[first].startswith(" "),
        position=position,
    )


def _joined(left: str, right: str) -> bool:
    # Whether they are parts of one word or one number.
    if not (left and right):
        return False
    a, b = left[-1], right[0]
    return (is_letter(a) and is_letter(b)) or (a.isdigit() and b.isdigit())


def _counted(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # Nearly sorted already, which a sort makes use of and numpy's hash table does not.
    values = np.sort(values, kind="stable")
    first = np.flatnonzero(np.diff(values, prepend=values[0] - 1))
    return values[first], np.diff(first, append=len(values))


def _words_of_tokens(contexts: TopContexts) -> tuple[list[str], np.ndarray]:
    # And the number of each token among them, or −1.
    words: dict[str, int] = {}
    number = np.full(len(contexts.texts), -1, dtype=np.int64)
    for code, text in enumerate(contexts.texts):
        word = text.strip(" ").lower()
        if contexts.spaced and not text.startswith(" ") and word[:1] < "\u2e80":
            continue
        if is_word(word) and len(word) >= (3 if word.isascii() else 2):
            number[code] = words.setdefault(word, len(words))
    return list(words), number
