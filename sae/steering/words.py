"""A list of allowed words, and which tokens may come next for a text to hold no others.

What is allowed, as a rule: a *word* is a run of letters, as long as it goes; each must be one
of the list, as it stands there or with its first letter a capital. All that is no letter (white
space, punctuation, digits, symbols) is always allowed and ends a word, so `don't` is the words
`don` and `t`, in the list as in a text. Words that run into each other are one word, which is
mostly no allowed one: scripts without spaces between words cannot be limited so.

Tokens do not end where words do. So the list is a tree of the bytes of its words, a *state* is
the place in it that the last letters of the text have come to, and a token is allowed if its
bytes lead on to a place from which tokens of letters can finish a word. However a word is cut
into tokens, and whatever else they hold, what is written is judged the same. Some tokens hold a
part of a character: those bytes are taken for bytes of letters.

A token that is *outside* ends or goes on with a word that is none. After it the text is in the
state `CLOSED` until the word ends, and all tokens that lengthen the word are outside too.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor

from sae.base import UserError, require
from sae.models import LanguageModel
from sae.text.scripts import is_letter
from sae.text.token_texts import BYTE, TokenTexts

State = int
ROOT: State = 0
"""No word has begun."""
CLOSED: State = 1
"""Inside a word that no letter may be added to."""
_UNITS = re.compile(rf"{BYTE.pattern}|.", re.DOTALL)
_BROKEN = "\ufffd"


def read_words(path: str) -> list[str]:
    """Return the words of a text file, each once, in the order of the file.

    Raises:
        UserError: if there is no such file of text, or no word in it.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"vocabulary={path} cannot be read as text: {error}") from error
    found = dict.fromkeys(chunk.decode() for chunk in _chunks(text) if chunk)
    require(
        bool(found),
        f"vocabulary={path} contains no word; write some, separated by spaces or line ends",
    )
    return [*found]


def token_texts(model: LanguageModel) -> list[str | None]:
    """Return the text of each id that the model predicts; None of those that are no text."""
    special, ids = {*model.special_token_ids}, model.tokenizer.get_vocab().values()
    found: list[str | None] = [None] * model.module.config.get_text_config().vocab_size
    known = sorted(i for i in ids if i not in special and i < len(found))
    for i, text in zip(known, TokenTexts(model.tokenizer).single(known), strict=True):
        found[i] = text
    return found


class Words:
    """Allowed words, spelled in the tokens of one model. States are places in the tree.

    Args:
        words: the allowed words, letters alone.
        texts: the text of each token; None where it has none.

    Raises:
        UserError: if tokens spell none of the words, or none of them parts words.
    """

    def __init__(self, words: Iterable[str], texts: Sequence[str | None]) -> None:
        self._children: list[dict[int, State]] = [{}, {}]
        # Where a text may end or a sign follow: at no word, and behind one that is over.
        self._ends = [True, True]
        spelled = {word: [self._add(word), self._add(_capital(word))] for word in words}
        self._pieces = [
            None if text is None else _chunks(_UNITS.findall(text)) for text in texts
        ]
        # Tokens of letters alone, and those of a sign behind letters, by these letters.
        self._letters: dict[bytes, list[int]] = {}
        self._others: dict[bytes, list[int]] = {}
        for token, pieces in enumerate(self._pieces):
            if pieces is not None and len(pieces) == 1 and pieces[0]:
                self._letters.setdefault(pieces[0], []).append(token)
        self._finishable = self._find_finishable()
        landings = self._find_others()
        require(
            bool(self._others.get(b"")),
            "the tokenizer of this model has no token that separates words, such as a "
            "space; words cannot be limited with it",
        )
        self._reachable = self._find_reachable(landings)
        self.n_spelled = sum(
            any(self._reachable[end] for end in ends) for ends in spelled.values()
        )
        """How many of the words tokens can spell."""
        require(
            self.n_spelled > 0,
            f"the tokenizer can spell none of the {len(spelled):,} allowed words; give words "
            "of a script that the model writes",
        )
        self._allowed: dict[State, Bool[Tensor, " vocabulary"]] = {}

    def begin(self, prompt: str) -> State:
        """Return the state after a prompt: the word that it ends with is over."""
        return CLOSED if is_letter(prompt[-1]) else ROOT

    def allowed(self, state: State) -> Bool[Tensor, " vocabulary"]:
        """Return which tokens may come next; it is at least one."""
        if state not in self._allowed:
            self._allowed[state] = self._mask(self._tokens(state))
        return self._allowed[state]

    def ever_allowed(self) -> Bool[Tensor, " vocabulary"]:
        """Return which tokens may come next in any state that tokens lead to."""
        states = [state for state, reached in enumerate(self._reachable) if reached]
        found = torch.zeros(len(self._pieces), dtype=torch.bool)
        # One after another: most states that may end a word allow the same thousands.
        for state in states:
            found |= self.allowed(state)
        return found

    def step(self, state: State, token: int) -> tuple[State, bool]:
        """Return the state after a token, and whether the token is allowed."""
        pieces = self._pieces[token]
        if pieces is None:
            return ROOT, False
        fine = True
        for i, piece in enumerate(pieces):
            if i > 0:
                fine, state = fine and self._ends[state], ROOT
            found = self._walk(state, piece)
            state, fine = (CLOSED, False) if found is None else (found, fine)
        return state, fine and self._finishable[state]

    def outside(self, state: State, tokens: Iterable[int]) -> list[bool]:
        """Return of each token that follows in turn whether it is outside."""
        found = []
        for token in tokens:
            state, fine = self.step(state, token)
            found.append(not fine)
        return found

    def count(self, state: State, text: str) -> tuple[int, int]:
        """Return the number of words that are none of the list, and of all, in a text.

        Args:
            state: where the text begins: `CLOSED` if its first letters end another word.
            text: what is written. Its last word may be cut: it counts as none only if no
                allowed word begins with it.
        """
        *over, last = _chunks(text.replace(_BROKEN, ""))
        wrong = n = 0
        for piece in over:
            found = self._walk(state, piece)
            n, wrong = n + bool(piece), wrong + (found is None or not self._ends[found])
            state = ROOT
        return wrong + (self._walk(state, last) is None), n + bool(last)

    def _add(self, word: str) -> State:
        """Put a word into the tree, and return the state behind it."""
        state = ROOT
        for byte in word.encode():
            state = self._children[state].setdefault(byte, len(self._children))
            if state == len(self._children):
                self._children.append({})
                self._ends.append(False)
        self._ends[state] = True
        return state

    def _walk(self, state: State, letters: bytes) -> State | None:
        """Return the state behind letters; None where the tree does not go on."""
        for byte in letters:
            found = self._children[state].get(byte)
            if found is None:
                return None
            state = found
        return state

    def _below(self, state: State) -> Iterator[tuple[bytes, State]]:
        """Yield the state itself and all that it leads to, with the bytes that do."""
        waiting = [(b"", state)]
        while waiting:
            path, at = waiting.pop()
            yield path, at
            waiting += [(path + bytes([b]), after) for b, after in self._children[at].items()]

    def _by_letters(self, state: State) -> Iterator[tuple[bytes, State]]:
        """Yield where tokens of letters alone lead, with their letters."""
        return ((path, at) for path, at in self._below(state) if path in self._letters)

    def _find_finishable(self) -> list[bool]:
        """Return of each state whether tokens of letters alone lead on to a word's end."""
        found = [*self._ends]
        # A state has a higher number than those before it in its word.
        for state in reversed(range(len(found))):
            found[state] |= any(found[at] for _, at in self._by_letters(state))
        return found

    def _find_others(self) -> list[State]:
        """Sort in tokens whose letters behind a sign are allowed; return where they lead."""
        landings = []
        for token, pieces in enumerate(self._pieces):
            if pieces is not None and len(pieces) > 1:
                first, *rest = pieces
                # A state whose word may end stands for the letters that come before.
                state, fine = CLOSED, True
                for piece in rest:
                    fine = fine and self._ends[state]
                    found = self._walk(ROOT, piece)
                    state, fine = (CLOSED, False) if found is None else (found, fine)
                if fine and self._finishable[state]:
                    self._others.setdefault(first, []).append(token)
                    landings += [] if first else [state]
        return landings

    def _find_reachable(self, landings: Iterable[State]) -> list[bool]:
        """Return of each state whether allowed tokens lead to it from where no word is."""
        found = [False] * len(self._children)
        for state in (ROOT, CLOSED, *landings):
            found[state] = True
        for state, reached in enumerate(found):
            if reached:
                for _, at in self._by_letters(state):
                    found[at] |= self._finishable[at]
        return found

    def _tokens(self, state: State) -> Iterator[int]:
        for path, at in self._below(state):
            if self._finishable[at]:
                yield from self._letters.get(path, ())
            if self._ends[at]:
                yield from self._others.get(path, ())

    def _mask(self, tokens: Iterable[int]) -> Bool[Tensor, " vocabulary"]:
        found = torch.zeros(len(self._pieces), dtype=torch.bool)
        found[torch.tensor([*tokens], dtype=torch.int64)] = True
        return found


def _capital(word: str) -> str:
    return word[0].upper() + word[1:]


def _chunks(units: Iterable[str]) -> list[bytes]:
    """Return the letters of characters in UTF-8, parted at every one that is none.

    So what begins with a space has an empty chunk first. A byte, `<0xE4>`, is part of a letter.
    """
    found = [bytearray()]
    for unit in units:
        if len(unit) > 1:
            found[-1].append(int(unit[3:5], 16))
        elif is_letter(unit):
            found[-1] += unit.encode()
        else:
            found.append(bytearray())
    return [bytes(chunk) for chunk in found]
