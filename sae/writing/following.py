"""What a model expects after a prompt: log-probabilities, in nats, under whatever is edited."""

import torch
from jaxtyping import Float
from torch import Tensor

from sae.base import require
from sae.models import LanguageModel
from sae.writing.sampling import check_writes
from sae.writing.texts import Ids, checked_prompt_ids


def check_reads(model: LanguageModel, n: int) -> None:
    """Refuse a text of `n` tokens if the model cannot read as many at once.

    Raises:
        UserError: if it cannot.
    """
    limit = model.max_positions
    require(
        limit is None or n <= limit,
        f"the text has {n:,} tokens, but the model reads only {limit or 0:,} at once; give "
        "a shorter text",
    )


def next_log_probs(model: LanguageModel, prompt: str) -> Float[Tensor, " vocabulary"]:
    """Return the log-probability of each token of the vocabulary to come next.

    Raises:
        UserError: for a model that writes nothing, or a prompt that is empty or too long.
    """
    ids = _prompt_ids(model, prompt)
    return _after(model, ids, len(ids) - 1)[0].cpu()


def log_prob_of(model: LanguageModel, prompt: str, continuation: str) -> float:
    """Return the log-probability of a whole continuation after a prompt.

    Raises:
        UserError: for a model that writes nothing, or texts that are empty or too long.
    """
    before = _prompt_ids(model, prompt)
    _check_text(continuation)
    after = torch.from_numpy(model.text_ids(continuation)).to(before)
    require(len(after) > 0, "the continuation is empty; write something")
    log_probs = _after(model, torch.cat([before, after]), len(before) - 1)
    return float(log_probs[:-1].gather(1, after[:, None]).sum())


def _prompt_ids(model: LanguageModel, prompt: str) -> Ids:
    _check_text(prompt)
    check_writes(model)
    return checked_prompt_ids(model, prompt)


def _check_text(given: object) -> None:
    require(
        isinstance(given, str),
        f"{given!r:.60} is not a text; give one prompt and one continuation at a time",
    )


def _after(model: LanguageModel, ids: Ids, first: int) -> Float[Tensor, "position vocabulary"]:
    """Return log-probabilities of what comes after each token, from the token `first` on."""
    check_reads(model, len(ids))
    with torch.inference_mode():
        logits = model.module(ids[None], use_cache=False).logits[0, first:]
    found: Tensor = logits.float().log_softmax(-1)
    return found
