"""An automatic label for every feature: what it fires on most, in a few words.

A label is read from the feature's top contexts. Where the words at their peaks agree, they are
the label (`“tax”`, `“-ly” in blazingly, hotly`); where they do not, what they or the texts have
in common (`numbers: …`, `in texts with film`). `→ “who”` says what follows or is promoted.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from sae.analysis.peaks import Peak, TopContexts
from sae.text.scripts import JOINERS, is_word

if TYPE_CHECKING:
    import pyarrow

LONGEST = 60
"""Characters of the longest label."""
_SAME = 0.5
"""Share of the contexts that must agree for a word to be the label alone."""
_BESIDE = 0.7
"""Share of the contexts that must agree on the token before or after."""
_DENSE = 0.2
"""Density from which a label says first how often the feature fires."""
_SIGNS = {"\n": "↵", "\t": "⇥", "\r": "␍", " ": "␣"}
_SPECIAL = re.compile(r"<\|.*\|>|</?s>|<(?:bos|eos|pad|unk)>|\[(?:CLS|SEP|PAD|UNK)\]")


_PARTS = "parts of characters"
_Figures = dict[str, Any]
"""What a label needs of a record of `features.parquet`."""


def automatic_labels(features: "pyarrow.Table", contexts: "pyarrow.Table") -> list[str]:
    """Label every feature from the tables of its atlas, whose `label` need not be there.

    A label has at most 60 characters, none of them a control character, and never begins with
    what a spreadsheet takes for a formula. Contexts are sorted by feature and rank.
    """
    top = TopContexts(contexts)
    topics = top.topics()
    names = ["density", "n_active", "positions", "top_tokens", "top_logit_tokens"]
    figures = features.select([name for name in names if name in features.column_names])
    labels = [
        _label(row, top.peaks_of(feature), topics.get(feature, []))
        for feature, row in enumerate(figures.to_pylist())
    ]
    times = Counter(labels)
    return [
        _told_apart(label, top.peaks_of(feature)) if times[label] > 1 else label
        for feature, label in enumerate(labels)
    ]


def _told_apart(label: str, peaks: list[Peak]) -> str:
    # What stands before the peaks tells features of one label apart.
    words = [word for word in _distinct(map(_word_before, peaks)) if word not in label]
    for n in (3, 2, 1):
        longer = f"{label} after {', '.join(map(visible, words[:n]))}"
        if words[:n] and len(longer) <= LONGEST:
            return longer
    return label


def _word_before(peak: Peak) -> str:
    # From the last space on; nothing if it is long or special.
    word = ""
    for token in peak.before:
        word = token + word
        if token.startswith(" ") and word.strip(" "):
            break
    word = word.strip(" ")
    return word if len(word) <= 12 and word.isprintable() and "<|" not in word else ""


def _label(figures: _Figures, peaks: list[Peak], topic: list[str]) -> str:
    if figures["n_active"] == 0:
        return "dead"
    if not peaks:
        return _fitting([_quoted(figures["top_tokens"])], "active")
    density, positions = figures["density"], figures["positions"]
    start = [f"on {density:.0%} of tokens"] if density >= _DENSE else []
    at_start = positions[0] >= 0.9 * sum(positions) > 0 if positions else False
    if at_start and all(peak.position <= 4 for peak in peaks):
        start.append("at the start of the text")
    common, arrow = _common_word(peaks), _arrow(figures, peaks)
    kind = "" if common else _common_kind(peaks)
    parts = [common or kind or _listed(peaks), arrow]
    said = {_folded(peak.word) for peak in peaks}
    shown = " ".join(parts).lower()
    words = [word for word in topic if word not in said and word not in shown]
    if words and not common and not kind and len(said) > len(peaks) / 2:
        # The peaks differ and the texts agree: these come first.
        parts = [f"in texts with {', '.join(words[:3])}", _listed(peaks[:2])]
    elif words:
        parts.append(f"near {', '.join(words[:2])}")
    return _fitting(start + parts, "active")


def _fitting(parts: Iterable[str], otherwise: str) -> str:
    label = ""
    for part in parts:
        longer = f"{label} {part}" if label and part.startswith("→") else f"{label} · {part}"
        longer = longer if label else part
        if part and len(longer) <= LONGEST:
            label = longer
    return label or otherwise


def _common_word(peaks: list[Peak]) -> str:
    # The word or two at most peaks, with what stands before it if that is always the same.
    if sum("�" in peak.token for peak in peaks) >= _SAME * len(peaks):
        return _PARTS
    words = Counter(_folded(peak.word) for peak in peaks)
    (first, n_first), *others = words.most_common(2)
    if n_first >= _SAME * len(peaks):
        with_first = [peak for peak in peaks if _folded(peak.word) == first]
        if others and others[0][1] > 1:
            return _quoted([_form(peaks, first), _form(peaks, others[0][0])])
        return _quoted([_phrase(with_first)])
    tokens = Counter(_folded(peak.token) for peak in peaks)
    token, n = tokens.most_common(1)[0]
    if n >= _SAME * len(peaks):
        with_token = [peak for peak in peaks if _folded(peak.token) == token]
        return _common_part(with_token) if token else _PARTS
    covered = words.most_common(3)
    if sum(n for _, n in covered) >= 0.8 * len(peaks) and covered[-1][1] > 1:
        return _quoted([_form(peaks, word) for word, _ in covered])
    return ""


def _common_part(peaks: list[Peak]) -> str:
    # The token stands in different words at these peaks.
    words = _distinct(peak.word for peak in peaks)
    token = visible(peaks[0].token)
    if not is_word(token):
        return _quoted([token])
    longer = [visible(word) for word in words if _folded(word) != _folded(peaks[0].token)]
    if all(peak.left for peak in peaks):
        return f"“-{token}” in {', '.join(longer[:3])}"
    if not any(peak.left for peak in peaks) and len(longer) > 1:
        return f"“{token}-” in {', '.join(longer[:3])}"
    return _quoted(words[:3])


def _common_kind(peaks: list[Peak]) -> str:
    # What different words at the peaks have in common, with examples; or nothing.
    words = _distinct(peak.word for peak in peaks)
    before = _agreed(_before(peaks, 0), _BESIDE)
    if before.strip(" "):
        special = _SPECIAL.fullmatch(before)
        after = f"first after {visible(before)}" if special else f"after {_quoted([before])}"
        return f"{after}: {', '.join(map(visible, words[:3]))}"
    for kind, belongs in _KINDS:
        if sum(map(belongs, words)) >= 0.9 * len(words):
            return f"{kind}: {_quoted(words[:3])}"
    for length in (5, 4, 3, 2):
        ending, n = Counter(word.lower()[-length:] for word in words).most_common(1)[0]
        longer = [word for word in words if word.lower().endswith(ending)]
        if n >= 0.7 * len(words) >= 2 and ending.isalpha() and min(map(len, longer)) > length:
            return f"words in “-{ending}”: {', '.join(longer[:3])}"
    return ""


def _is_number(word: str) -> bool:
    return any(c.isdigit() for c in word) and not any(c.isalpha() for c in word)


_KINDS = (
    ("numbers", _is_number),
    ("signs", lambda word: not any(c.isalnum() for c in word)),
    ("upper case", lambda word: word.isupper() and len(word) > 1),
    ("capitalised", lambda word: word[:1].isupper()),
)


def _listed(peaks: list[Peak]) -> str:
    # Those that come often first, then those that fire most.
    words = Counter(_folded(peak.word) for peak in peaks)
    return _quoted([_form(peaks, word) for word, _ in words.most_common(4)])


def _arrow(figures: _Figures, peaks: list[Peak]) -> str:
    # What comes after the peaks, if it is one thing: promoted by the feature or there.
    promoted = [_folded(token) for token in figures.get("top_logit_tokens", [])]
    at_peak = {_folded(peak.word) for peak in peaks} | {_folded(peak.token) for peak in peaks}
    after = Counter(_folded(peak.after) for peak in peaks if peak.after)
    found = [word for word, _ in after.most_common() if word in promoted]
    if sum(after[word] for word in found) >= 0.3 * len(peaks):
        return f"→ {_quoted(found[:2])}"
    form, n = Counter(promoted).most_common(1)[0] if promoted else ("", 0)
    if n >= 3 and form not in at_peak:
        return f"→ {_quoted([form])}"
    same = _agreed([peak.after for peak in peaks], _BESIDE)
    return f"→ {_quoted([same])}" if same and not _SPECIAL.fullmatch(same) else ""


def _agreed(tokens: Sequence[str], share: float) -> str:
    # Letter case and spaces aside; nothing if they do not agree.
    if len(tokens) < 3:
        return ""
    token, n = Counter(map(_folded, tokens)).most_common(1)[0]
    if not token or n < share * len(tokens):
        return ""
    return next(raw for raw in tokens if _folded(raw) == token)


def _before(peaks: list[Peak], place: int) -> list[str]:
    return [peak.before[place] if place < len(peak.before) else "" for peak in peaks]


def _phrase(peaks: list[Peak]) -> str:
    # The word at these peaks, with the tokens of the word that always stands before it.
    phrase = _form(peaks, _folded(peaks[0].word))
    gap = " " if peaks[0].spaced else ""
    for place in range(3):
        before = _agreed(_before(peaks, place), _BESIDE)
        if not before.strip() or _SPECIAL.fullmatch(before):
            break
        phrase, gap = before.strip() + gap + phrase, ""
        if before.startswith(" "):
            break
    return phrase


def _form(peaks: list[Peak], folded: str) -> str:
    forms = Counter(peak.word for peak in peaks if _folded(peak.word) == folded)
    return folded if folded in forms else forms.most_common(1)[0][0]


def _distinct(words: Iterable[str]) -> list[str]:
    # Letter case aside, in order.
    found: dict[str, str] = {}
    for word in words:
        found.setdefault(_folded(word), word)
    return list(found.values())


@cache
def _folded(text: str) -> str:
    return text.strip(" ").lower() or text


def _quoted(texts: Iterable[str]) -> str:
    return ", ".join(f"“{text}”" for text in dict.fromkeys(map(visible, texts)))


@cache
def visible(text: str) -> str:
    """Return a token as a label shows it: nothing invisible, nothing that breaks the line."""
    text = text.strip(" ") or text
    blank = text.isspace()
    out = []
    for place, character in enumerate(text):
        if character in JOINERS and 0 < place < len(text) - 1:
            # Inside a word or a picture it is seen by what it does.
            out.append(character)
        elif character in _SIGNS and (blank or character != " "):
            out.append(_SIGNS[character])
        elif unicodedata.category(character)[0] in "CZ" and character != " ":
            out.append(f"U+{ord(character):04X}")
        else:
            out.append(character)
    shown = re.sub(r"(.)\1{3,}", r"\1\1\1…", "".join(out))
    return shown if len(shown) <= 20 else shown[:19] + "…"
