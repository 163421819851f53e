"""Features held at 0 because of the tokens that they promote, beside as many at random."""

import random
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae.base import UserError
from sae.dictionary import Dictionary
from sae.edits import Edit, Spans
from sae.edits.codes import Codes, Reader, Step
from sae.edits.modes import MODES
from sae.edits.positions import EVERYWHERE
from sae.models import LanguageModel, locate

CRITERION = (
    "Of the live features, those most of whose promoted tokens can stand in no text of allowed "
    "words, the most often active first, and at most half of all live ones. As many others are "
    "drawn at random from twice as many that are the most often active of the rest."
)


def choose_suppressed(
    features: Sequence[dict[str, Any]],
    allowed: Bool[Tensor, " vocabulary"],
    n: int,
    seed: int,
) -> tuple[list[int], list[int]]:
    """Return up to `n` features by `CRITERION`, and as many others by `seed`.

    Args:
        features: records of `features.parquet`.
        allowed: which tokens can stand in a text of allowed words.
        n: how many to choose at most.
        seed: seed of the draw of the others.

    Raises:
        UserError: if features have no promoted tokens, or none of them is live.
    """
    live = [row for row in features if row["max_activation"] > 0]
    if not live:
        raise UserError("no feature of this dictionary fired on the text of its atlas")
    if any("top_logit_ids" not in row for row in live):
        raise UserError("features of this dictionary have no promoted tokens")
    ranked = sorted(live, key=lambda row: (-row["density"], row["feature"]))
    chosen = [
        row["feature"]
        for row in ranked
        if 2 * int(allowed[row["top_logit_ids"]].sum()) < len(row["top_logit_ids"])
    ][: min(n, len(live) // 2)]
    others = [row["feature"] for row in ranked if row["feature"] not in {*chosen}]
    pool = others[: 2 * len(chosen)]
    return chosen, sorted(random.Random(seed).sample(pool, len(chosen)))


def held_at_zero(
    model: LanguageModel,
    dictionary: Dictionary,
    features: Sequence[int],
    own: int,
    n_sequences: int,
) -> Edit:
    """Return the edit that takes features out of one of several sequences of a batch.

    At all positions but the first what a feature adds, its code times its direction, is taken
    away; all else in the activations stays, the error of the reconstruction too.
    """
    step = Step(
        torch.arange(len(features), device=model.device),
        MODES["ablate"].rule,
        torch.zeros(1, len(features)),
        where := Spans(
            but=((0, 1),),
            each=tuple(EVERYWHERE if i == own else () for i in range(n_sequences)),
        ),
    )
    chosen, (read,), (write,) = [*features], dictionary.reads, dictionary.writes
    return Edit(
        locate(model.module, write.place),
        Codes(
            Reader.of(dictionary, chosen),
            dictionary.W_dec[chosen].float(),
            (step,),
            write.normalisation,
        ),
        where,
        locate(model.module, read.place) if dictionary.is_transcoder else None,
    )


def divergence(
    changed: Float[Tensor, "*row vocabulary"],
    plain: Float[Tensor, "*row vocabulary"],
    temperature: float,
    never: int | None,
) -> Float[Tensor, "*row"]:
    """Return KL(changed ‖ plain) of distributions given as logits, nats, in float64.

    Args:
        changed: logits of the one.
        plain: logits of the other.
        temperature: what logits are divided by first.
        never: a token that is never drawn, if any: it has no part in either.
    """
    log_q, log_p = (_log_probs(logits, temperature, never) for logits in (changed, plain))
    found: Tensor = (log_q.exp() * (log_q - log_p)).sum(-1)
    return found


def _log_probs(logits: Tensor, temperature: float, never: int | None) -> Tensor:
    scaled = logits.double() / temperature
    if never is not None:
        # Finite, so that the difference of two of them is 0 and not undefined.
        scaled[..., never] = torch.finfo(scaled.dtype).min / 4
    return scaled.log_softmax(-1)
