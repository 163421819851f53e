"""What is asked with a Patchscope, of which places and in which sizes, and what was found."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sae.base import plain, require
from sae.dictionary import Dictionary
from sae.lenses.patchscope import (
    Answer,
    Question,
    Source,
    of_feature,
    of_state,
    placed,
    source_of,
)
from sae.models import LanguageModel, Site, find_site, list_sites, locate
from sae.models.hooks import measured

SCALES = (0.5, 1.0, 2.0, 4.0)
"""Lengths in which a feature's direction is tried, in typical lengths of the place."""
_EARLY = 3
"""Block at whose end a feature's direction is put: late enough to be no token any more, and
early enough for most of the model to read it, as SelfIE does."""
_N_LAYERS = 8
"""Places that a state is read at, where none are given."""
_N_SHOWN = 3
"""Likeliest first tokens that people are shown."""
_STREAM = ".hook_resid_post"


@dataclass(frozen=True, slots=True)
class Patchscope:
    """What the model said of one vector, beside its controls."""

    at: str
    """Hook at which the state was read, or for a feature the hook that its dictionary
    writes."""
    into: str
    """Hook at which the vector was put."""
    scale: float | None
    """Length of a feature's direction, in typical lengths of the place; None of a state."""
    answers: tuple[Answer, ...]
    """The prompt left alone, what was asked about, and the controls that are as long."""

    @property
    def mine(self) -> Answer:
        """What the model wrote of what was asked about."""
        return self.answers[1]


@dataclass(frozen=True, slots=True)
class Patchscopes:
    """What a model says of a state or of a feature: one Patchscope for each place or scale.

    `records` holds them with all figures; printed, it is a table for people.
    """

    what: str
    """What was asked about, for people."""
    question: Question
    position: int
    """Where in the prompt the placeholder stands, the token before the text counted."""
    records: tuple[Patchscope, ...]
    next_token: str | None = None
    """What the model itself predicts after the state; None of a feature."""

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON has it, with the text of each answer."""
        found: dict[str, Any] = plain(self)
        for record, own in zip(found["records"], self.records, strict=True):
            for answer, its in zip(record["answers"], own.answers, strict=True):
                answer["text"] = its.text
        return found

    def for_page(self) -> dict[str, Any]:
        """Return what the page of an atlas shows: tokens, and how relevant each is."""
        return {
            "prompt": self.question.prompt,
            "placeholder": self.question.placeholder,
            "into": self.records[0].into,
            "plain": _for_page(self.records[0].answers[0]),
            "scales": [
                {"scale": record.scale} | {a.arm: _for_page(a) for a in record.answers[1:]}
                for record in self.records
            ],
        }

    def __str__(self) -> str:
        """Return what each arm wrote, a line each."""
        return "\n".join(self.lines())

    __repr__ = __str__

    def lines(self) -> Iterator[str]:
        """Yield what people read of it."""
        yield f"{self.what}, at {self.question.placeholder!r} of {self.question.prompt!r}:"
        yield f"  {_UNPATCHED}  {_shown(self.records[0].answers[0])}"
        for record in self.records:
            where = (
                record.at if record.scale is None else f"{record.scale:g} x the usual length"
            )
            put = "" if record.at == record.into else f", put into {record.into}"
            yield f"  {where}{put}"
            for answer in record.answers[1:]:
                yield f"    {answer.arm:<14}  {_shown(answer)}"


_UNPATCHED = f"{'nothing put there':<16}"


def _for_page(answer: Answer) -> dict[str, Any]:
    return {
        "tokens": [token.text for token in answer.tokens],
        "relevancy": [token.relevancy for token in answer.tokens],
        "likeliest": [[text, p] for text, p in answer.likeliest[:_N_SHOWN]],
        "norm": answer.norm,
    }


def _shown(answer: Answer) -> str:
    found = [f"{answer.text!r}" if answer.tokens else "(it ends at once)"]
    first = (f"{text!r} {p:.2f}" for text, p in answer.likeliest[:_N_SHOWN])
    found.append(f"likeliest first {' '.join(first)}")
    if answer.says_token:
        found.append("which is its own token")
    if answer.says_next:
        found.append("which it predicts next")
    return ", ".join(found)


def places_of_state(
    module: nn.Module, at: Sequence[str], into: str | None
) -> list[tuple[Site, Site]]:
    """Return where a state is read and where it is put, for each place.

    Args:
        module: a model, with or without weights.
        at: hook names; about eight blocks from the first to the last if there are none.
        into: where it is put; where it was read, if left out.

    Raises:
        UserError: for an unknown hook, or two places of different widths.
    """
    found = []
    for name in at or _spread(module):
        source = find_site(module, name)
        target = source if into is None else find_site(module, into)
        widths = [site.width for site in measured(module, [source, target])]
        require(
            widths[0] == widths[1],
            f"at={name} is {widths[0]} wide and into={into} is {widths[1]}; give places of one "
            "width, such as two of the residual stream",
        )
        found.append((source, target))
    return found


def _spread(module: nn.Module) -> list[str]:
    ends = _ends_of_blocks(module)
    step = max(1, -(-len(ends) // _N_LAYERS))
    return [*dict.fromkeys([*ends[::step], ends[-1]])]


def _ends_of_blocks(module: nn.Module) -> list[str]:
    names = (site.hook_name for site in list_sites(module))
    found = [name for name in names if name.endswith(_STREAM)]
    require(
        bool(found), "the blocks of this model have no TransformerLens names; give at and into"
    )
    return found


def place_of_feature(module: nn.Module, dictionary: Dictionary, into: str | None) -> Site:
    """Return where a dictionary's directions are put.

    That is by default the end of an early block, or where the dictionary writes if it does not
    write into the residual stream.

    Args:
        module: a model, with or without weights.
        dictionary: whose directions they are.
        into: the hook, if it is to be another place.

    Raises:
        UserError: for an unknown hook, or one where the directions mean nothing.
    """
    own = locate(module, dictionary.writes[0].place)
    if into is None and own.in_stream:
        ends = _ends_of_blocks(module)
        target = find_site(module, ends[min(_EARLY, len(ends) // 3)])
    else:
        target = own if into is None else find_site(module, into)
    (target,) = measured(module, [target])
    require(
        target.width in (0, dictionary.d_out),
        f"into={target.hook_name} is {target.width} wide, but the directions of this "
        f"dictionary are {dictionary.d_out} wide; give a place of that width",
    )
    require(
        target.in_stream == own.in_stream or target.module == own.module,
        f"into={target.hook_name}: the directions of this dictionary belong to "
        f"{own.hook_name}, and they mean nothing elsewhere unless both places are in the "
        f"residual stream; give into={own.hook_name}",
    )
    return target


def check_feature(dictionary: Dictionary, feature: int, scales: Sequence[float]) -> None:
    """Refuse a feature that is not there, and scales that are no lengths."""
    require(
        0 <= feature < dictionary.d_sae,
        f"feature={feature} is out of range; this dictionary has 0 to {dictionary.d_sae - 1}",
    )
    require(
        bool(dictionary.W_dec[feature].any()),
        f"feature={feature} has a direction of zeros, which means nothing; choose another one",
    )
    require(
        bool(scales) and all(scale > 0 for scale in scales),
        f"scales={[*scales]}; give lengths above 0, such as {[*SCALES]}",
    )


def ask_of_state(
    model: LanguageModel,
    question: Question,
    source: Source,
    places: Sequence[tuple[Site, Site]],
    check: Callable[[], None] = lambda: None,
) -> Patchscopes:
    """Return what the model says of the states at one position of a text, place by place.

    Args:
        model: the model.
        question: the prompt.
        source: the position of the text, see `source_of`.
        places: where a state is read and where it is put, see `places_of_state`.
        check: is called before each token; whatever it raises ends the writing.

    Raises:
        UserError: as `placed` says.
    """
    at = placed(model, question)
    records = [
        Patchscope(
            pair[0].hook_name,
            pair[1].hook_name,
            None,
            of_state(model, question, source, pair, check),
        )
        for pair in places
    ]
    what = f"the state of {source.token!r} (position {source.position}) in {source.text!r:.60}"
    return Patchscopes(what, question, at.position, tuple(records), source.next_token)


def ask_of_token(
    model: LanguageModel,
    question: Question,
    token: tuple[str, int],
    dictionary: Dictionary,
    check: Callable[[], None] = lambda: None,
) -> Patchscopes:
    """Return what the model says of its state at a token of a text, where a dictionary reads.

    Args:
        model: the model.
        question: the prompt.
        token: the text, and the number of one of its own tokens; the first one is 0.
        dictionary: the state is read, and put, at the first place that it reads.
        check: is called before each token; whatever it raises ends the writing.

    Raises:
        UserError: for no such token, or as `source_of` and `placed` say.
    """
    text, number = token
    n = len(model.text_ids(text))
    require(
        0 <= number < n or n == 0,
        f"position is {number}, but the last token of the text is number {n - 1}; give that or "
        "less",
    )
    source = source_of(model, text, len(model.prompt_ids(text)) - n + number)
    site = locate(model.module, dictionary.reads[0].place)
    return ask_of_state(model, question, source, [(site, site)], check)


def ask_of_feature(
    model: LanguageModel,
    question: Question,
    feature: tuple[Dictionary, int],
    into: str | None = None,
    scales: Sequence[float] = SCALES,
    check: Callable[[], None] = lambda: None,
) -> Patchscopes:
    """Return what the model says of a feature of a dictionary, scale by scale.

    Args:
        model: the model.
        question: the prompt.
        feature: a dictionary, and the number of one of its features.
        into: where its direction is put, see `place_of_feature`.
        scales: its lengths, in typical lengths of the place.
        check: is called before each token; whatever it raises ends the writing.

    Raises:
        UserError: for a feature that is not there, a dictionary of another model, or a place
            where its directions mean nothing.
    """
    dictionary, number = feature
    check_feature(dictionary, number, scales)
    model.record.check_dictionary("this", dictionary.record.model)
    site = place_of_feature(model.module, dictionary, into)
    at = placed(model, question)
    direction = dictionary.W_dec[number].detach().to(torch.float32)
    found = of_feature(model, question, direction, site, scales, check)
    records = [
        Patchscope(dictionary.hook_name_out, site.hook_name, scale, arms)
        for scale, arms in found.items()
    ]
    what = f"feature {number} of {dictionary.hook_name_out}"
    return Patchscopes(what, question, at.position, tuple(records))
