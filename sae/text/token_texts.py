"""The text of tokens: what each adds to the text that it stands in, and of one by itself.

Tokenizers turn ids into text only all together: SentencePiece drops the space before the first
word, WordPiece puts spaces between tokens, and the bytes of one character may be spread over
several tokens. So the text of a token *in context* is the difference between two decoded
prefixes: with those before it, and with it too. Put together, the texts of a sequence's tokens
are what the tokenizer decodes the sequence to. A character that is spread over tokens is wholly
the text of the last of them; the others have none.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

LONGEST_RUN = 8
"""Tokens after which a character that is still not whole is taken for broken."""
_COMPARED = 256
"""Stretches of many whose texts are compared with what the tokenizer decodes."""
_BROKEN = "\ufffd"
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""How a token that is a part of a character shows one of its bytes."""


def _character_bytes() -> dict[str, int]:
    # GPT-2's vocabulary writes bytes that cannot be printed as characters from 256 on.
    printed = {*range(33, 127), *range(161, 173), *range(174, 256)}
    moved = (byte for byte in range(256) if byte not in printed)
    return {chr(byte): byte for byte in range(256)} | {
        chr(256 + n): byte for n, byte in enumerate(moved)
    }


_BYTES = _character_bytes()


class TokenTexts:
    """The texts of one tokenizer's tokens; what was decoded once is kept."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._backend = tokenizer, _backend(tokenizer)
        self.strings: list[str] = [""]
        """All texts that were met, each once; the numbers of `windows` are places here."""
        self._numbers: dict[str, int] = {"": 0}
        self._alone: dict[int, str] = {}
        # Of each id whether it may be a part of a character: 1, 0, or −1 for not known yet.
        self._parts = np.full(0, -1, np.int8)
        # Numbers of the texts of tokens behind others, by both ids; −1 where it has none.
        self._behind: dict[int, int] = {}
        self._characters: dict[tuple[tuple[int, ...], tuple[int, ...]], list[str]] = {}

    def single(self, ids: Iterable[int]) -> list[str]:
        """Return the texts of tokens by themselves, as the vocabulary has them.

        The space that begins a word is part of the text. Where a token is a part of a
        character its bytes are shown, `<0xE4>`, and where there is no such token its id.
        """
        wanted = list(ids)
        unique = sorted(set(wanted))
        self._learn(np.array(unique, np.int64))
        names = self._tokenizer.convert_ids_to_tokens(unique)
        twice = self._decode([[i, i] for i in unique])
        table = {
            i: _single(i, name, self._alone[i], both)
            for i, name, both in zip(unique, names, twice, strict=True)
        }
        return [table[i] for i in wanted]

    def in_context(self, sequence: Sequence[int]) -> list[str]:
        """Return the text of each token of one sequence, from its beginning on."""
        if not len(sequence):
            return []
        ids = np.array(sequence, np.int64)
        numbers = self.windows(ids, np.array([0]), np.array([len(ids)]), len(ids))
        return [self.strings[number] for number in numbers.tolist()]

    def continuation(self, before: Sequence[int], ids: Sequence[int]) -> str:
        """Return the text that `ids` add to that of the tokens `before` them."""
        return "".join(self.in_context([*before, *ids])[len(before) :])

    def windows(
        self,
        tokens: NDArray[np.integer],
        starts: NDArray[np.int64],
        ends: NDArray[np.int64],
        size: int,
    ) -> NDArray[np.int64]:
        """Return the numbers in `strings` of the texts of tokens, window by window.

        Windows are cut from sequences of `size` tokens that lie end to end in `tokens`; a text
        is that in the whole sequence. So the first token keeps its space, and a character that
        is cut by the edge of a window is whole if its last token is inside.
        """
        left, right = self._widened(tokens, starts, ends, size)
        lengths = right - left
        own = np.repeat(np.arange(len(left)), lengths)
        place = np.arange(len(own)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        places = left[own] + place
        ids = np.asarray(tokens[places], np.int64)
        inside = (places >= starts[own]) & (places < ends[own])
        found: NDArray[np.int64] = self._texts(ids, lengths)[inside]
        return found

    def _widened(
        self,
        tokens: NDArray[np.integer],
        starts: NDArray[np.int64],
        ends: NDArray[np.int64],
        size: int,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        # To the token before that is whole, and on to the end of the last character.
        first, left, right = starts // size * size, starts.copy(), ends.copy()
        last = first + size
        left -= (left > first) & (left < ends)
        for _ in range(LONGEST_RUN):
            left -= (left > first) & self._is_part(tokens[np.minimum(left, len(tokens) - 1)])
            beyond = self._is_part(tokens[np.maximum(right - 1, 0)])
            right += (right < np.minimum(last, len(tokens))) & beyond
        return left, right

    def _texts(self, ids: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of the texts of tokens in stretches that lie end to end."""
        ends = np.cumsum(lengths)
        first = np.zeros(len(ids), np.bool_)
        first[(ends - lengths)[lengths > 0]] = True
        part = self._is_part(ids)
        found = np.zeros(len(ids), np.int64)
        alone = first & ~part
        unique, inverse = np.unique(ids[alone], return_inverse=True)
        found[alone] = self._number([self._alone[i] for i in unique.tolist()])[inverse]
        inner = np.flatnonzero(~first & ~part)
        found[inner] = self._behind_others(ids[inner - 1], ids[inner])
        begins = np.flatnonzero(part & (first | ~np.roll(part, 1)))
        stops = np.flatnonzero(part & (np.roll(first, -1) | ~np.roll(part, -1))) + 1
        if len(ids) and part[-1]:
            stops = np.append(stops[stops < len(ids)], len(ids))
        for begin, stop in zip(begins.tolist(), stops.tolist(), strict=True):
            before = () if first[begin] else (int(ids[begin - 1]),)
            found[begin:stop] = self._number(self._run(before, ids[begin:stop].tolist()))
        return self._checked(ids, lengths, found)

    def _checked(
        self, ids: NDArray[np.int64], lengths: NDArray[np.int64], found: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Compare what was put together with what the tokenizer makes of whole stretches.

        How far a decoder looks is a property of it and not of the text, so some of many
        stretches are compared, and all where one of them differs.
        """
        ends = np.cumsum(lengths)
        some = np.unique(np.linspace(0, len(ends) - 1, _COMPARED).astype(int))
        for chosen in (some, np.arange(len(ends))):
            wrong = False
            stretches = [slice(ends[i] - lengths[i], ends[i]) for i in chosen.tolist()]
            texts = self._decode([ids[own].tolist() for own in stretches])
            for own, text in zip(stretches, texts, strict=True):
                numbers = found[own].tolist()
                joined = "".join([self.strings[number] for number in numbers])
                known = min(numbers, default=0) >= 0
                # Some decoders give up all bytes in a row for one that is wrong; here the
                # characters among them are kept.
                if known and (joined == text or joined.count(_BROKEN) < text.count(_BROKEN)):
                    continue
                wrong, stretch = True, ids[own].tolist()
                prefixes = self._decode([stretch[:n] for n in range(1, len(stretch) + 1)])
                found[own] = self._number(_differences(["", *prefixes]))
            if not wrong and (found >= 0).all():
                break
        return found

    def _behind_others(
        self, before: NDArray[np.int64], ids: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        pairs, inverse = np.unique(before << 32 | ids, return_inverse=True)
        new = [pair for pair in pairs.tolist() if pair not in self._behind]
        both = self._decode([[pair >> 32, pair & 0xFFFFFFFF] for pair in new])
        for pair, text in zip(new, both, strict=True):
            start = self._alone[pair >> 32]
            known = text.startswith(start)
            self._behind[pair] = self._number([text[len(start) :]])[0] if known else -1
        numbers = np.array([self._behind[pair] for pair in pairs.tolist()], np.int64)
        return numbers[inverse]

    def _run(self, before: tuple[int, ...], ids: list[int]) -> list[str]:
        """Return the texts of tokens that may be parts of characters, behind others."""
        texts: list[str] = []
        while len(texts) < len(ids):
            rest = tuple(ids[len(texts) : len(texts) + LONGEST_RUN])
            for length in range(1, len(rest) + 1):
                found = self._character(before, rest[:length])
                if found:
                    texts += found
                    # Behind anything that is whole the next ones are the same.
                    before = before or rest[:length]
                    break
            else:
                # None of it completes a character: it begins with a broken one.
                length = self._broken(rest)
                texts += [""] * (length - 1) + self._decode([list(rest[:length])])
        return texts

    def _character(self, before: tuple[int, ...], ids: tuple[int, ...]) -> list[str]:
        """Return the texts of tokens that are whole characters together; else nothing."""
        if (before, ids) not in self._characters:
            prefixes = [[*before, *ids[:n]] for n in range(not before, len(ids) + 1)]
            texts = [""] * (not before) + self._decode(prefixes)
            added = texts[-1].removeprefix(texts[0])
            whole = added and _BROKEN not in added
            self._characters[before, ids] = _differences(texts) if whole else []
        return self._characters[before, ids]

    def _broken(self, ids: tuple[int, ...]) -> int:
        """Return how many tokens are shown as one broken character, or one."""
        lengths = range(min(4, len(ids)), 1, -1)
        texts = self._decode([list(ids[:n]) for n in lengths])
        return next((n for n, text in zip(lengths, texts, strict=True) if text == _BROKEN), 1)

    def _is_part(self, ids: NDArray[np.integer]) -> NDArray[np.bool_]:
        self._learn(ids)
        found: NDArray[np.bool_] = self._parts[ids] == 1
        return found

    def _learn(self, ids: NDArray[np.integer]) -> None:
        """Decode each id by itself, if it is new."""
        more = int(ids.max(initial=-1)) + 1 - len(self._parts)
        if more > 0:
            self._parts = np.append(self._parts, np.full(more, -1, np.int8))
        new = np.unique(ids[self._parts[ids] < 0]).tolist()
        if not new:
            return
        names = self._tokenizer.convert_ids_to_tokens(new)
        for i, name, text in zip(new, names, self._decode([[i] for i in new]), strict=True):
            self._alone[i] = text
            byte = name is not None and BYTE.fullmatch(name) is not None
            self._parts[i] = byte or not text or _BROKEN in text

    def _number(self, texts: Iterable[str]) -> NDArray[np.int64]:
        numbers = []
        for text in texts:
            number = self._numbers.setdefault(text, len(self.strings))
            if number == len(self.strings):
                self.strings.append(text)
            numbers.append(number)
        return np.array(numbers, np.int64)

    def _decode(self, sequences: list[list[int]]) -> list[str]:
        if not sequences:
            return []
        found: list[str]
        if self._backend is not None:
            found = self._backend.decode_batch(sequences, skip_special_tokens=False)
        else:
            found = self._tokenizer.batch_decode(
                sequences, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        return found


def _backend(tokenizer: Any) -> Any:
    """Return what decodes for a tokenizer that adds nothing to it, or None."""
    from transformers import PreTrainedTokenizerFast as Fast

    kind = type(tokenizer)
    plain = issubclass(kind, Fast) and all(
        getattr(kind, name) is getattr(Fast, name)
        for name in ("batch_decode", "decode", "_decode")
    )
    return tokenizer.backend_tokenizer if plain else None


def _differences(prefixes: list[str]) -> list[str]:
    """Return what each prefix adds to the one before, as parts of the last."""
    whole = prefixes[-1]
    ends = np.maximum.accumulate([_shared(text, whole) for text in prefixes])
    return [whole[a:b] for a, b in pairwise(ends.tolist())]


def _shared(a: str, b: str) -> int:
    """Return how many characters two texts begin with alike."""
    alike = (n for n, (one, other) in enumerate(zip(a, b, strict=False)) if one != other)
    return next(alike, min(len(a), len(b)))


def _single(i: int, name: str | None, alone: str, twice: str) -> str:
    inner = twice.removeprefix(alone)
    if name is not None and name == alone:
        return name
    if inner and _BROKEN not in inner:
        return inner
    if not name:
        return f"[{i}]"
    if BYTE.fullmatch(name) or not all(character in _BYTES for character in name):
        return name
    # Bytes that are no character become lone surrogates.
    text = bytes(_BYTES[character] for character in name).decode("utf-8", "surrogateescape")
    return re.sub("[\udc80-\udcff]", lambda byte: f"<0x{ord(byte[0]) - 0xDC00:02X}>", text)
