"""Pairs of prompts that differ in what decides the answer: read, drawn or refused."""

import csv
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from sae.base import UserError, require
from sae.base.names import check_names
from sae.models import LanguageModel
from sae.patching.config import PatchConfig

COLUMNS = ("clean", "corrupt", "answer", "wrong")
_SLOT = re.compile(r"\{(\w+)\}")
_MOST_DRAWS = 1000


@dataclass(frozen=True, slots=True)
class PairText:
    """A pair as people write it."""

    clean: str
    corrupt: str
    answer: str
    """The clean prompt's."""
    wrong: str
    """The corrupt prompt's."""
    template: int | None = None
    """Number of the template that it was drawn of, if any."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A pair as a model reads it."""

    text: PairText
    clean: Int[Tensor, " position"]
    corrupt: Int[Tensor, " position"]
    answer: int
    wrong: int

    @property
    def differing(self) -> tuple[int, ...]:
        """Positions at which the prompts have different tokens."""
        return tuple((self.clean != self.corrupt).nonzero()[:, 0].tolist())

    @property
    def shape(self) -> tuple[object, ...]:
        """What pairs have in common whose positions mean the same.

        They are drawn of one template, or have the same tokens but where the prompts differ,
        and are as long and differ at the same positions.
        """
        if self.text.template is not None:
            alike: object = self.text.template
        else:
            alike = tuple(self.clean[self.clean == self.corrupt].tolist())
        return alike, len(self.clean), self.differing


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A pair that cannot be patched."""

    text: PairText
    why: str


def pair_texts(config: PatchConfig) -> list[PairText]:
    """Return the pairs that are asked for, words put into slots.

    Raises:
        UserError: if they cannot be read or drawn.
    """
    if config.table is not None:
        texts = read_table(config.table)
    elif config.pairs:
        texts = [pair_text(row, f"pairs[{i}]") for i, row in enumerate(config.pairs)]
    else:
        texts = [PairText(config.clean, config.corrupt, config.answer, config.wrong)]
    return drawn(texts, config.slots, config.n_pairs, config.seed) if config.slots else texts


def read_table(path: str) -> list[PairText]:
    """Read pairs from a `.csv`, `.jsonl` or `.parquet` file.

    Raises:
        UserError: if it is missing, of another kind, or lacks a column.
    """
    check_names(path)
    place = Path(path).expanduser()
    require(
        place.is_file(),
        f"table={path} is not a file; give one with the columns {', '.join(COLUMNS)}",
    )
    kind = place.suffix
    try:
        if kind == ".csv":
            rows = list(csv.DictReader(place.read_text(encoding="utf-8-sig").splitlines()))
        elif kind in (".jsonl", ".json"):
            lines = place.read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line) for line in lines if line.strip()]
        elif kind == ".parquet":
            import pyarrow.parquet

            rows = pyarrow.parquet.read_table(place).to_pylist()
        else:
            raise UserError(
                f"table={path} has an unknown ending; give a .csv, .jsonl or .parquet file"
            )
    except (ValueError, OSError) as error:
        raise UserError(f"table={path} cannot be read as {kind}: {error}") from error
    require(bool(rows), f"table={path} holds no pair")
    return [pair_text(row, f"row {i + 1} of {path}") for i, row in enumerate(rows)]


def pair_text(row: Mapping[str, object], where: str) -> PairText:
    """Return the pair that a record describes.

    Raises:
        UserError: if a value is missing, empty or no text, or a key is unknown.
    """
    require(isinstance(row, Mapping), f"{where} is not a record with {', '.join(COLUMNS)}")
    for key in row:
        require(key in COLUMNS, f"{where} has {key!r:.40}, and a pair has {', '.join(COLUMNS)}")
    for key in COLUMNS:
        value = row.get(key)
        require(
            isinstance(value, str) and bool(value.strip()),
            f"{where} has {key}={value!r:.40}; give text",
        )
    clean, corrupt, answer, wrong = (str(row[key]) for key in COLUMNS)
    return PairText(clean, corrupt, answer, wrong)


def drawn(
    templates: Sequence[PairText], slots: Mapping[str, Sequence[str]], n: int, seed: int
) -> list[PairText]:
    """Return `n` different pairs of templates in turn, a word of its list in each slot.

    Raises:
        UserError: if a slot has no words, is used nowhere, or there are too few words.
    """
    used = {slot for one in templates for slot in _slots_of(one)}
    for slot in used:
        require(
            bool(slots.get(slot)),
            f"slot {{{slot}}} of a prompt has no words; give slots={{{slot}: [..., ...]}}",
        )
    for slot in slots:
        require(slot in used, f"slots has {slot}, which occurs in no prompt and no answer")
    draw = np.random.default_rng(seed)
    found: dict[PairText, None] = {}
    for i in itertools.islice(itertools.cycle(range(len(templates))), _MOST_DRAWS + n):
        filled = _filled(templates[i], i, slots, draw)
        if filled is not None:
            found[filled] = None
        if len(found) == n:
            return list(found)
    require(bool(found), "no two slots can be given different words; give more words")
    return list(found)


def _slots_of(text: PairText) -> list[str]:
    whole = "".join(getattr(text, key) for key in COLUMNS)
    return sorted({*_SLOT.findall(whole)})


def _filled(
    template: PairText, i: int, slots: Mapping[str, Sequence[str]], draw: np.random.Generator
) -> PairText | None:
    """Return the template with words in its slots, or None if two of them are the same."""
    words = {slot: str(draw.choice(list(slots[slot]))) for slot in _slots_of(template)}
    if len({*words.values()}) < len(words):
        return None
    clean, corrupt, answer, wrong = (
        _SLOT.sub(lambda slot: words[slot[1]], getattr(template, key)) for key in COLUMNS
    )
    return PairText(clean, corrupt, answer, wrong, template=i if words else None)


def tokenised(model: LanguageModel, text: PairText) -> Pair | LeftOut:
    """Return a pair as the model reads it, or say why it cannot be patched."""
    clean, corrupt = (
        torch.from_numpy(model.prompt_ids(one)).long() for one in (text.clean, text.corrupt)
    )
    ids = [model.text_ids(one) for one in (text.answer, text.wrong)]
    for what, word, found in zip(
        ("answer", "wrong"), (text.answer, text.wrong), ids, strict=True
    ):
        if len(found) != 1:
            near = f" {word}" if not word.startswith(" ") else word.strip()
            one = len(model.text_ids(near)) == 1
            better = (
                f"; {near!r} is one" if one else "; give one token, with the space before it"
            )
            return LeftOut(text, f"{what}={word!r} is {len(found)} tokens{better}")
    pair = Pair(text, clean, corrupt, int(ids[0][0]), int(ids[1][0]))
    why = _wrong(model, pair)
    return pair if why is None else LeftOut(text, why)


def _wrong(model: LanguageModel, pair: Pair) -> str | None:
    n_clean, n_corrupt = len(pair.clean), len(pair.corrupt)
    if n_clean != n_corrupt:
        return (
            f"the clean prompt has {n_clean} tokens and the corrupt one {n_corrupt}, and "
            "activations are put from position to position; write both with as many tokens"
        )
    if pair.answer == pair.wrong:
        return "answer and wrong are the same token, so their difference is always 0"
    if not pair.differing:
        return "clean and corrupt are the same prompt; change what decides the answer"
    limit = model.max_positions
    if limit is not None and n_clean > limit:
        return (
            f"the prompts have {n_clean:,} tokens, but the model reads only {limit:,} at once"
        )
    return None
