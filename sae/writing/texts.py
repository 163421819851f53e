"""What a model writes after prompts of any lengths, and what it answers in a conversation."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor, nn

from sae.base import UserError, require
from sae.edits import Edit
from sae.models import LanguageModel
from sae.text.token_texts import TokenTexts
from sae.writing.sampling import (
    Sampling,
    SharedNoise,
    check_length,
    check_writes,
    generate,
    prompt_ids,
)

Ids = Int[Tensor, " position"]


@dataclass(frozen=True, slots=True)
class Written:
    """What a model wrote after one prompt."""

    text: str
    n_prompt: int
    """Tokens of the prompt."""
    n_tokens: int
    """Tokens that were written, the one that ends a text left out."""
    ended: bool
    """Whether the model ended the text by itself."""


def checked_prompt_ids(model: LanguageModel, prompt: str) -> Ids:
    """Return the token ids of a text that is to go on, with what the model has before it.

    Raises:
        UserError: for an empty one.
    """
    require(
        len(model.text_ids(prompt)) > 0,
        f"the prompt is {prompt!r:.60}; write a beginning",
    )
    return prompt_ids(model, prompt)


def chat_ids(model: LanguageModel, messages: str | Sequence[Mapping[str, str]]) -> Ids:
    """Return the token ids of a conversation that the model is to go on with.

    Args:
        model: the model.
        messages: what is asked, or a conversation of `{"role": ..., "content": ...}`.

    Raises:
        UserError: for a model without a chat template, or a conversation it cannot hold.
    """
    require(
        bool(getattr(model.tokenizer, "chat_template", None)),
        f"{model.record.hub_id} has no chat template; give a prompt to generate instead",
    )
    said = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    try:
        text = model.tokenizer.apply_chat_template(
            [dict(one) for one in said], add_generation_prompt=True, tokenize=False
        )
    except Exception as error:
        # Templates raise what they please, in a language of their own.
        raise UserError(f"the chat template refuses these messages: {error}") from error
    # The template has all special tokens in it.
    found = torch.from_numpy(model.text_ids(text)).long()
    require(len(found) > 0, "the conversation is empty; write a message")
    return found.to(model.device)


def write(
    model: LanguageModel,
    prompts: Iterable[Ids],
    how: Sampling,
    check: Callable[[], None] = lambda: None,
) -> list[Written]:
    """Return what the model writes after token ids, in one batch.

    Args:
        model: the model, with whatever edits are made in it.
        prompts: ids of each prompt; they may be of different lengths.
        how: how it is drawn.
        check: is called before each token; whatever it raises ends the writing.

    Raises:
        UserError: for a model that writes nothing, or a prompt that is too long.
    """
    check_writes(model)
    rows = list(prompts)
    require(bool(rows), "there are no prompts; give a beginning")
    for row in rows:
        check_length(model, row, how)
    width = max(map(len, rows))
    ids = torch.stack(
        [nn.functional.pad(row, (width - len(row), 0), value=model.marks.pad) for row in rows]
    )
    lengths = torch.tensor([[len(row)] for row in rows])
    mask = (torch.arange(width) >= width - lengths).long().to(ids.device)
    written = generate(model, ids, [], how, attention_mask=mask, noise=_Checked(check))
    return [_written(model, row, new) for row, new in zip(rows, written, strict=True)]


def write_beside(
    model: LanguageModel,
    prompt: Ids,
    n_arms: int,
    edits: Sequence[Edit],
    how: Sampling,
    check: Callable[[], None] = lambda: None,
) -> list[Written]:
    """Return what the model writes after one prompt in each of several sequences.

    All draw their tokens with the same noise: where edits change no logit the texts are equal,
    so what differs is what the edits do.

    Args:
        model: the model.
        prompt: its ids.
        n_arms: number of sequences.
        edits: edits of single sequences of the batch.
        how: how it is drawn.
        check: is called before each token; whatever it raises ends the writing.

    Raises:
        UserError: for a model that writes nothing, or a prompt that is too long.
    """
    check_writes(model)
    check_length(model, prompt, how)
    noise, likeliest = SharedNoise(how, check), replace(how, temperature=0)
    written = generate(model, prompt.expand(n_arms, -1), edits, likeliest, noise=noise)
    return [_written(model, prompt, new) for new in written]


def _written(model: LanguageModel, before: Tensor, new: Tensor) -> Written:
    """Return what was written, up to the token that ends it."""
    end, after = model.tokenizer.eos_token_id, new.tolist()
    ended = end in after
    after = after[: after.index(end)] if ended else after
    text = TokenTexts(model.tokenizer).continuation(before.tolist(), after)
    return Written(text, len(before), len(after), ended)


@dataclass(frozen=True, slots=True)
class _Checked:
    """Calls a function before each token, and leaves the scores as they are."""

    check: Callable[[], None]

    def __call__(self, _: Tensor, scores: Tensor) -> Tensor:
        self.check()
        return scores
