r"""Words by their first letter, and what a model has of them where it reads them in a list.

Each word is one token, at the end of a prompt that shows a few others with their letters, as in
SAEBench: `\n apple has the first letter: A\n river`. What follows a word cannot change what a
causal model makes of it, so the prompt ends there. Every draw is by the seed that is given.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.models import LanguageModel, Site
from sae.rows.pooled import Reading, TokenizedText, pooled_rows

LETTERS = "abcdefghijklmnopqrstuvwxyz"
MOST_WORDS = 60
"""Words of a letter."""
_EXAMPLES = 5
_SHORTEST = 3
_TESTED = 0.3
"""Share of each letter's words that no probe is fitted to."""
_SPACES = ("Ġ", "▁")
"""Before a token that begins a word, in byte-level and in sentence-piece vocabularies."""


@dataclass(frozen=True, slots=True)
class LetterRows:
    """Rows of activations at words, a row each."""

    words: tuple[str, ...]
    x: Float[Tensor, "word d"]
    letter: Int[Tensor, " word"]
    """Place of the word's first letter in the alphabet."""
    is_test: Bool[Tensor, " word"]


def words_of(model: LanguageModel, most: int, seed: int) -> list[tuple[int, str]]:
    """Return token and text of up to `most` words of each letter, in the order of letters."""
    found: dict[str, list[tuple[int, str]]] = {letter: [] for letter in LETTERS}
    tokens = model.tokenizer.convert_ids_to_tokens(range(len(model.tokenizer)))
    begins = any(token and token.startswith(_SPACES) for token in tokens)
    for i, token in enumerate(tokens):
        text = (token or "").lstrip("".join(_SPACES))
        if begins and text == token:
            continue
        if len(text) >= _SHORTEST and text.isascii() and text.isalpha() and text.islower():
            found[text[0]].append((i, text))
    draw = random.Random(seed)
    return [one for own in found.values() for one in draw.sample(own, min(most, len(own)))]


def letter_rows(
    model: LanguageModel,
    site: Site,
    *,
    most: int = MOST_WORDS,
    seed: int = 0,
    done: Callable[[int], object] = lambda _: None,
) -> LetterRows:
    """Read words in their prompts, and return the activations at each.

    Args:
        most: words of a letter.
        done: is told how many words were read.
    """
    words, draw = words_of(model, most, seed), random.Random(seed + 1)
    begin, line = model.marks.begin, model.text_ids("\n").tolist()
    shown = [
        model.text_ids(f" {word} has the first letter: {word[0].upper()}\n").tolist()
        for _, word in words
    ]
    texts = []
    for place, (token, _) in enumerate(words):
        others = [i for i in draw.sample(range(len(words)), _EXAMPLES + 1) if i != place]
        examples = [token for i in others[:_EXAMPLES] for token in shown[i]]
        ids = np.array([*begin, *line, *examples, token], dtype=np.int32)
        texts.append(TokenizedText(ids, len(begin), len(ids), None))
    reading = Reading("raw", site)
    rows = pooled_rows(model, texts, [reading], ["last"], done)[f"{reading.key} last"]
    letter = torch.tensor([LETTERS.index(word[0]) for _, word in words], dtype=torch.long)
    is_test = torch.zeros(len(words), dtype=torch.bool)
    for one in range(len(LETTERS)):
        own = (letter == one).nonzero()[:, 0].tolist()
        is_test[draw.sample(own, round(_TESTED * len(own)))] = True
    return LetterRows(tuple(word for _, word in words), rows, letter, is_test)
