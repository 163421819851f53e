"""Whether a dose does more than chance, and holds where prompts are put differently.

These are three ways in which control turned out to be an illusion (FaithSteer-Bench 2026):
other wordings, another format, and an instruction against it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae.base import UserError
from sae.core.bootstrap import Interval, bootstrap_mean
from sae.core.nulls import random_directions, rank_p, z_score
from sae.models import LanguageModel
from sae.steering.material import Ids
from sae.writing import chat_ids, prompt_ids

N_NULLS = 32
"""Random directions, and random features, that the chosen dose is set beside."""
_KEPT = 0.5
"""Share of the effect that has to be left for a dose to hold."""
_TITLES = {
    "reworded": "Other wordings",
    "chat": "In a chat",
    "contrary": "After a contrary instruction",
}


@dataclass(frozen=True, slots=True)
class Tried:
    """Prompts of one check, or why it cannot be made."""

    prompts: tuple[Ids, ...] = ()
    why_not: str | None = None


def prompts_of_checks(
    model: LanguageModel, reworded: Sequence[str], prompts: Sequence[str], contrary: str
) -> dict[str, Tried]:
    """Return the prompts of each check.

    Args:
        reworded: other wordings of prompts.
        prompts: what a dose is reported on.
        contrary: the sentence that tells the model not to.
    """
    found = {"reworded": Tried(tuple(prompt_ids(model, prompt) for prompt in reworded))}
    if not reworded:
        found["reworded"] = Tried(why_not="No other wordings were given.")
    try:
        asked = [f"Continue this text: {prompt}" for prompt in prompts]
        found["chat"] = Tried(tuple(chat_ids(model, one).cpu() for one in asked))
    except UserError as error:
        found["chat"] = Tried(why_not=f"Not measurable: {error}.")
    against = [prompt_ids(model, contrary + prompt) for prompt in prompts]
    found["contrary"] = Tried(tuple(against))
    return {name: _readable(model, tried) for name, tried in found.items()}


def _readable(model: LanguageModel, tried: Tried) -> Tried:
    """Return prompts if the model can read and steering can change all of them."""
    lengths, most = [len(prompt) for prompt in tried.prompts], model.max_positions
    if lengths and min(lengths) < 2:
        return Tried(why_not="Not measurable: a prompt has one token, which is never steered.")
    if lengths and most is not None and max(lengths) > most:
        return Tried(
            why_not=f"Not measurable: a prompt has {max(lengths):,} tokens and the model reads "
            f"{most:,} at once."
        )
    return tried


def check_dose(
    tried: Mapping[str, Tried],
    shifts: Callable[[Sequence[Ids]], Float[Tensor, " prompt"]],
    reported: Interval,
) -> list[dict[str, Any]]:
    """Return what each check finds: it holds if half of a shift above chance is left.

    Args:
        tried: prompts by check.
        shifts: returns the own-token shift of the dose after each of some prompts.
        reported: the shift that is to be held.
    """
    found: list[dict[str, Any]] = []
    for name, one in tried.items():
        about: dict[str, Any] = {"name": name, "title": _TITLES[name]}
        if one.why_not is not None:
            nothing = {"shift": None, "kept": None, "holds": None, "told": one.why_not}
            found.append(about | nothing)
            continue
        shift = bootstrap_mean(shifts(one.prompts))
        kept = shift.mean / reported.mean if reported.mean > 0 else None
        holds = kept is not None and shift.low > 0 and kept >= _KEPT
        found.append(
            about
            | {"shift": shift.to_json(), "kept": kept, "holds": holds}
            | {"told": _told(shift, kept, holds=holds)}
        )
    return found


def _told(shift: Interval, kept: float | None, *, holds: bool) -> str:
    if kept is None:
        return "There is no shift on the reporting prompts that could be held."
    if math.isnan(shift.low):
        return "One prompt does not say how sure its shift is."
    if not shift.low > 0:
        return "The shift cannot be told from none there."
    return f"{kept:.0%} of the shift is left there{'' if holds else ', less than half'}."


def nulls_of(
    vector: Float[Tensor, " d_out"], others: Float[Tensor, "other d_out"], seed: int
) -> Float[Tensor, "null d_out"]:
    """Return random directions, then the directions of other features, as long as a vector."""
    norm = torch.linalg.vector_norm(vector)
    directions = random_directions(N_NULLS, len(vector), seed)
    found: Tensor = norm * torch.cat([directions, torch.nn.functional.normalize(others)])
    return found


def beside_chance(value: Float[Tensor, ""], found: Float[Tensor, " null"]) -> dict[str, Any]:
    """Return mean, z and rank-p of random directions and of random features, see `nulls_of`."""
    about: dict[str, Any] = {"n": N_NULLS, "n_features": len(found) - N_NULLS}
    for kind, nulls in (("direction", found[:N_NULLS]), ("feature", found[N_NULLS:])):
        z = float(z_score(value[None], nulls[:, None])[0])
        about[f"{kind}_mean"] = float(nulls.mean())
        about[f"{kind}_z"] = z if math.isfinite(z) else None
        about[f"{kind}_p"] = float(rank_p(value[None], nulls[:, None])[0])
    return about
