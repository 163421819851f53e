"""Edits that are linear in the activations and the same at every token: weights can do them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae.base import UserError
from sae.edits.aim import Aim
from sae.edits.codes import Along
from sae.edits.forward import Edit
from sae.edits.modes import MODES
from sae.edits.positions import ALL, EVERYWHERE
from sae.edits.record import BOS, EVERY_WRITER, EditRecord
from sae.models import Site


@dataclass(frozen=True, slots=True)
class Constant:
    """A vector that is added at a site to all tokens of all texts."""

    site: Site
    vector: Float[Tensor, " d"]


@dataclass(frozen=True, slots=True)
class Projection:
    """A direction that is scaled in all that is written into the stream, at all tokens."""

    sites: Sequence[Site]
    """Where the stream begins, then what each part of each block gives to it."""
    direction: Float[Tensor, " d"]
    """A unit vector."""
    factor: float

    def scaled(self, rows: Float[Tensor, "*row d"]) -> Float[Tensor, "*row d"]:
        """Return rows in which the direction is scaled."""
        w = self.direction.to(rows)
        return rows + (self.factor - 1) * (rows @ w)[..., None] * w

    def edits(self) -> list[Edit]:
        """Return the edits that do it with hooks."""
        amount = torch.tensor([[self.factor]])
        rule = MODES["orthogonal"].rule
        change = Along(self.direction, rule, amount, self.direction)
        return [Edit(site, change, ALL) for site in self.sites]


def linear(aims: Sequence[Aim], *, first_token: bool) -> list[Constant | Projection]:
    """Return what edits do to all tokens alike: additions, then directions that are scaled.

    The order between additions and scalings is not kept where both are at work: so an addition
    together with a scaling is refused.

    Raises:
        UserError: with a sentence for each edit that weights cannot do.
    """
    scaled = [aim for aim in aims if aim.record.at == EVERY_WRITER]
    if not scaled:
        return [*constants(aims, "weights", first_token=first_token)]
    wrong = [
        f"edits[{i}] cannot be made weights: it stands beside one of every writer; bake the "
        "one, and then the other"
        for i, aim in enumerate(aims)
        if aim.record.at != EVERY_WRITER
    ]
    for i, aim in enumerate(aims):
        why = why_not_always(aim) or _why_not_everywhere(aim.record, first_token=first_token)
        if aim.record.at == EVERY_WRITER and why is not None:
            wrong.append(f"edits[{i}] cannot be made weights: {why}")
    if wrong:
        raise UserError(*wrong)
    return [
        Projection(aim.sites, scale.vector.cpu(), float(aim.amount[0, 0]))
        for aim in scaled
        for scale in aim.scales
        if aim.amount is not None
    ]


def constants(aims: Sequence[Aim], what: str, *, first_token: bool) -> list[Constant]:
    """Return what edits add at each site, in the order of their first edit.

    Args:
        aims: edits of one model with its weights.
        what: what is made of them, for the sentences of errors, such as `a control vector`.
        first_token: whether an edit that leaves out the token before a text is taken as one of
            all tokens, for nothing that is made can tell them apart.

    Raises:
        UserError: with a sentence for each edit that is something else.
    """
    wrong, found = list[str](), dict[str, Constant]()
    for i, aim in enumerate(aims):
        why = _why_not(aim, first_token=first_token)
        if why is not None:
            wrong.append(f"edits[{i}] cannot be made {what}: {why}")
            continue
        assert aim.amount is not None
        vectors = torch.stack([scale.vector for scale in aim.scales]).to(aim.amount)
        before = found.get(aim.site.hook_name, Constant(aim.site, torch.zeros(1)))
        added = (aim.amount @ vectors)[0].cpu()
        found[aim.site.hook_name] = Constant(aim.site, before.vector + added)
    if not aims:
        wrong.append(f"there is no edit that could be made {what}")
    if wrong:
        raise UserError(*wrong)
    return [*found.values()]


def _why_not(aim: Aim, *, first_token: bool) -> str | None:
    """Return why an edit does not add the same vector to every token; None if it does."""
    return why_not_same(aim) or _why_not_everywhere(aim.record, first_token=first_token)


def why_not_same(aim: Aim) -> str | None:
    """Return why an edit does not add the same wherever it is made; None if it does."""
    record = aim.record
    if record.at == EVERY_WRITER:
        return f"it is made at {EVERY_WRITER}; sae edit bake makes weights of it"
    if record.mode.reads != "nothing":
        return f"do={record.do} depends on the activations there; add is the same everywhere"
    always = why_not_always(aim)
    if always is not None:
        return always
    if aim.dictionary is not None and aim.dictionary.writes[0].normalisation is not None:
        return "its dictionary reads each row by its own length, so what it adds differs"
    return None


def why_not_always(aim: Aim) -> str | None:
    """Return why an edit is not made in all sequences alike; None if it is."""
    if aim.record.when is not None:
        return "a gate opens at some tokens only"
    if aim.amount is not None and len(aim.amount) > 1:
        return "it has an amount for each sequence of a batch"
    if aim.record.where.sequences is not None:
        return "it has ranges for each sequence of a batch"
    return None


def _why_not_everywhere(record: EditRecord, *, first_token: bool) -> str | None:
    where = record.where
    if where.prompt != EVERYWHERE or where.generated != EVERYWHERE:
        return "it is made at some tokens only; say prompt: all, generated: all"
    if where.but == (BOS,) and not first_token:
        return (
            "it leaves out the token before a text, which cannot be done there; say except: "
            "[], or accept it there too with first_token=true"
        )
    return None if where.but in ((), (BOS,)) else "it leaves out some tokens"
