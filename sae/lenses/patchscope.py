"""Patchscopes: a vector stands in for one token of a prompt, and the model writes on.

A hidden state (Ghandeharioun et al. 2024, arXiv 2401.06102) or the direction of a feature, as
SelfIE does with states (Chen et al. 2024, arXiv 2403.10949), is put in the place of what the
model has at a placeholder. Only the prompt is changed: what is written after it is computed as
ever, with a key-value cache and without one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.base import require, require_at_least
from sae.edits import Edit, Put, Spans, edited
from sae.edits.positions import EVERYWHERE
from sae.models import LanguageModel, Site, read_activations
from sae.text.token_texts import TokenTexts
from sae.writing import (
    Sampling,
    SharedNoise,
    check_length,
    check_writes,
    checked_prompt_ids,
    generate,
)

IDENTITY = "\n".join(
    f"{word} -> {word}" for word in ("cat", "135", "hello", "black", "shoe", "mean")
)
IDENTITY += "\n? ->"
"""Words that are said again: what follows the placeholder is to say what stands there. Spaces
around the arrow, a line a word and six words do best on SmolLM2, see docs/patchscopes.md."""
UNPATCHED = "unpatched"
"""The arm in which nothing is put anywhere."""
_N_NEXT = 5
"""Likeliest first tokens that are told."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A prompt that asks what stands at its placeholder, and how the model goes on from it."""

    prompt: str = IDENTITY
    """The prompt, with a placeholder; by default words that are said again."""
    placeholder: str = "?"
    """The token of the prompt that the vector replaces. It must occur exactly once."""
    max_new_tokens: int = 16
    """Largest number of tokens that the model writes. It always takes the likeliest token."""
    seed: int = 0
    """Seed of the random vectors that the vector is compared with."""

    def __post_init__(self) -> None:
        require_at_least(self, max_new_tokens=1)
        require(bool(self.prompt.strip()), "prompt is empty; give one with a placeholder in it")
        require(
            bool(self.placeholder.strip()),
            "placeholder is empty; give the token of the prompt that is replaced, such as ?",
        )

    @property
    def sampling(self) -> Sampling:
        """How it is written: until the model ends the text, without chance."""
        return Sampling(
            max_new_tokens=self.max_new_tokens,
            temperature=0,
            seed=self.seed,
            to_the_end=False,
        )


@dataclass(frozen=True, slots=True)
class WrittenToken:
    """One token that the model wrote."""

    text: str
    probability: float
    """Probability of the token when it was written."""
    relevancy: float
    """How far what was put there moves it: |p − p without it| after the same text (SelfIE)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model wrote with one vector in the placeholder's place."""

    arm: str
    """What stood there: `state` or `feature`, or a control of the same norm."""
    norm: float | None
    """Length of the vector; None where nothing was put there."""
    tokens: tuple[WrittenToken, ...]
    """What was written, up to the token that ends a text."""
    likeliest: tuple[tuple[str, float], ...]
    """The likeliest first tokens, each with its probability."""
    next_surprisal: float | None = None
    """-ln p, as the first token, of the token that the model predicts after the state, nats."""
    says_next: bool | None = None
    """Whether that is the likeliest first token: its mean is the precision@1."""
    says_token: bool | None = None
    """Whether the first token is the state's own but for case and spaces."""

    @property
    def text(self) -> str:
        """What was written."""
        return "".join(token.text for token in self.tokens)


@dataclass(frozen=True, slots=True)
class Placed:
    """A question as token ids, with the position of its placeholder."""

    ids: Int[Tensor, " position"]
    position: int
    """Position in the sequence; 0 is the token before the text, if there is one."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What the model wrote in each arm, and what it was about to write."""

    arms: tuple[Answer, ...]
    first: Float[Tensor, "arm vocabulary"]
    """Log-probabilities of the first token."""


def placed(model: LanguageModel, question: Question) -> Placed:
    """Return a question as token ids, and find its placeholder.

    It is found among the texts of the tokens, so it may have a space before it there, as ` ?`.

    Raises:
        UserError: for a model that writes nothing, a placeholder that is not there once and as
            a token of its own, or a prompt too long for what is to be written.
    """
    check_writes(model)
    ids = checked_prompt_ids(model, question.prompt)
    check_length(model, ids, question.sampling)
    texts = TokenTexts(model.tokenizer).in_context(ids.tolist())
    wanted = question.placeholder.strip()
    found = [i for i, text in enumerate(texts) if text.strip() == wanted]
    said = f"placeholder={question.placeholder}"
    require(
        wanted in question.prompt,
        f"{said} is not in the prompt {question.prompt!r:.80}; write it where the vector goes",
    )
    require(
        bool(found),
        f"{said} is no token of its own in the prompt, but a part of "
        f"{next((text for text in texts if wanted in text), wanted)!r} or several tokens; "
        "put spaces around it, or take another one",
    )
    require(
        len(found) == 1,
        f"{said} stands {len(found)} times in the prompt; write it once, where the vector goes",
    )
    return Placed(ids, found[0])


def put(
    site: Site,
    position: int,
    vectors: Float[Tensor, "arm d"],
    *,
    n_plain: int = 0,
) -> Edit:
    """Return the edit that puts a vector at one position of each prompt of a batch.

    Nothing that is written after a prompt is changed.

    Args:
        site: where in the model.
        position: where in each prompt, padding not counted.
        vectors: one for each sequence, after those that stay plain.
        n_plain: sequences at the beginning of the batch that nothing is put into.
    """
    values = torch.cat([vectors.new_zeros(n_plain, vectors.shape[1]), vectors])
    each = ((),) * n_plain + (EVERYWHERE,) * len(vectors)
    return Edit(site, Put(values), Spans(((position, position + 1),), (), each=each))


def answers(
    model: LanguageModel,
    question: Question,
    site: Site,
    vectors: dict[str, Float[Tensor, " d"]],
    check: Callable[[], None] = lambda: None,
) -> Answers:
    """Return what the model writes unpatched, and with each vector in the placeholder's place.

    Args:
        model: the model.
        question: the prompt.
        site: where in the model the vectors are put.
        vectors: a vector for each arm.
        check: is called before each token; whatever it raises ends the writing.

    Raises:
        UserError: as `placed` says.
    """
    found, sampling = placed(model, question), question.sampling
    stacked = torch.stack([*vectors.values()]).to(model.device, torch.float32)
    edits = [put(site, found.position, stacked, n_plain=1)]
    prompts = found.ids.expand(1 + len(stacked), -1)
    noise = SharedNoise(sampling, check)
    new = generate(model, prompts, edits, sampling, noise=noise)
    patched, first = _probabilities(model, prompts, new, edits)
    plain, _ = _probabilities(model, prompts, new, [])
    norms = [None, *torch.linalg.vector_norm(stacked, dim=1).tolist()]
    texts, arms = TokenTexts(model.tokenizer), []
    for i, arm in enumerate([UNPATCHED, *vectors]):
        ids = _until_the_end(new[i].tolist(), model.tokenizer.eos_token_id)
        own = texts.in_context([*found.ids.tolist(), *ids])[len(found.ids) :]
        both = zip(own, patched[i].tolist(), plain[i].tolist(), strict=False)
        tokens = tuple(WrittenToken(text, p, abs(p - q)) for text, p, q in both)
        best = first[i].topk(min(_N_NEXT, first.shape[1]))
        shown = zip(
            texts.single(best.indices.tolist()), best.values.exp().tolist(), strict=True
        )
        arms.append(Answer(arm, norms[i], tokens, tuple(shown)))
    return Answers(tuple(arms), first)


def _probabilities(
    model: LanguageModel,
    prompts: Int[Tensor, "arm position"],
    new: Int[Tensor, "arm new_position"],
    edits: Sequence[Edit],
) -> tuple[Tensor, Tensor]:
    """Return the probability of each token that was written, (arm, new_position).

    Beside it stand the log-probabilities of all first tokens, (arm, vocabulary).
    """
    before = prompts.shape[1] - 1
    with torch.inference_mode(), edited(model.module, edits):
        logits = model.module(torch.cat([prompts, new], 1), use_cache=False).logits
    log_probs = logits[:, before:-1].float().log_softmax(-1)
    own = log_probs.gather(2, new[..., None])[..., 0].exp()
    return own.cpu(), log_probs[:, 0].cpu()


def _until_the_end(ids: list[int], end: int | None) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids


@dataclass(frozen=True, slots=True)
class Source:
    """A position of a text, whose hidden states are asked about."""

    text: str
    ids: Int[Tensor, " position"]
    position: int
    token: str
    """Its text."""
    next_id: int
    """The token that the model itself predicts after it."""
    next_token: str
    """The text of that."""


def source_of(model: LanguageModel, text: str, token: int) -> Source:
    """Return a position of a text, with what the model predicts there.

    Args:
        model: the model.
        text: the text.
        token: the position, counted as in `Model.tokens`: the token that the model has before
            a text, if it has one, is 0; below 0 it is counted from the end.

    Raises:
        UserError: for an empty text, one longer than the model reads, or no such position.
    """
    check_writes(model)
    require(len(model.text_ids(text)) > 0, "the text is empty; write something")
    ids = torch.from_numpy(model.prompt_ids(text)).long().to(model.device)
    n, most = len(ids), model.max_positions
    require(
        most is None or n <= most,
        f"the text has {n:,} tokens, but the model reads only {most or 0:,} at once; give a "
        "shorter text",
    )
    require(
        -n <= token < n,
        f"token={token} is out of range: the text has {n} tokens, the one before it included; "
        f"give {-n} to {n - 1}",
    )
    position = token % n
    with torch.inference_mode():
        logits = model.module(ids[None, : position + 1], use_cache=False).logits
    likeliest, texts = int(logits[0, -1].argmax()), TokenTexts(model.tokenizer)
    own, after = texts.in_context(ids.tolist())[position], texts.single([likeliest])[0]
    return Source(text, ids, position, own, likeliest, after)


def of_state(
    model: LanguageModel,
    question: Question,
    source: Source,
    sites: tuple[Site, Site],
    check: Callable[[], None] = lambda: None,
) -> tuple[Answer, ...]:
    """Return what the model writes with a state of a text in the placeholder's place.

    Beside it stand the prompt left alone, a random vector, and the state of another position
    of the text; both are as long.

    Args:
        model: the model.
        question: the prompt.
        source: the position of the text.
        sites: where the state is read, and where it is put.
        check: is called before each token; whatever it raises ends the writing.

    Raises:
        UserError: as `placed` says, or if the places are not of one width.
    """
    (states,) = read_activations(model.module, [sites[0]], source.ids[None]).values()
    states = states[0].float()
    mine = states[source.position]
    vectors = {"state": mine, "random": _random(mine, question.seed)}
    if (other := _another(model, source)) is not None:
        vectors["other position"] = _as_long(states[other], mine)
    found = answers(model, question, sites[1], vectors, check)
    return tuple(
        replace(
            answer,
            next_surprisal=-float(first[source.next_id]),
            says_next=int(first.argmax()) == source.next_id,
            says_token=_alike(answer.likeliest[0][0], source.token),
        )
        for answer, first in zip(found.arms, found.first, strict=True)
    )


def of_feature(
    model: LanguageModel,
    question: Question,
    direction: Float[Tensor, " d"],
    site: Site,
    scales: Sequence[float],
    check: Callable[[], None] = lambda: None,
) -> dict[float, tuple[Answer, ...]]:
    """Return what the model writes with a direction in the placeholder's place, by its scale.

    Beside it stand the prompt left alone, and a random direction that is as long.

    Args:
        model: the model.
        question: the prompt.
        direction: of any length but zero.
        site: where it is put.
        scales: lengths, in `typical_norm`s.
        check: is called before each token; whatever it raises ends the writing.

    Raises:
        UserError: as `placed` says.
    """
    unit = typical_norm(model, question, site) / torch.linalg.vector_norm(direction)
    vectors = dict[str, Tensor]()
    for i, scale in enumerate(scales):
        mine = (scale * unit).to(direction) * direction.float()
        vectors |= {f"feature {i}": mine, f"random {i}": _random(mine, question.seed)}
    plain, *others = answers(model, question, site, vectors, check).arms
    pairs = zip(others[::2], others[1::2], strict=True)
    return {
        scale: (plain, replace(feature, arm="feature"), replace(random, arm="random"))
        for scale, (feature, random) in zip(scales, pairs, strict=True)
    }


def typical_norm(model: LanguageModel, question: Question, site: Site) -> float:
    """Return the median length of what the model has at a place, over the question's prompt.

    The first token is left out: its state is many times as long as any other.
    """
    ids = placed(model, question).ids
    (states,) = read_activations(model.module, [site], ids[None]).values()
    return float(torch.linalg.vector_norm(states[0, 1:].float(), dim=1).median())


def _random(like: Tensor, seed: int) -> Tensor:
    draw = torch.randn(len(like), generator=torch.Generator().manual_seed(seed))
    return _as_long(draw.to(like), like)


def _as_long(vector: Tensor, like: Tensor) -> Tensor:
    found: Tensor = vector * (torch.linalg.vector_norm(like) / torch.linalg.vector_norm(vector))
    return found


def _another(model: LanguageModel, source: Source) -> int | None:
    """Return another position of the text, of another token, as far away as there is one."""
    begin, ids = len(model.marks.begin), source.ids.tolist()
    others = [i for i in range(begin, len(ids)) if ids[i] != ids[source.position]]
    return max(others, key=lambda i: abs(i - source.position), default=None)


def _alike(one: str, other: str) -> bool:
    return one.strip().casefold() == other.strip().casefold() != ""
