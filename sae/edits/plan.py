"""From edits as data to the edits that are made in one model, in which order and together."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from sae.base import UserError
from sae.edits.aim import Aim, Aimer, Subject
from sae.edits.changes import Add
from sae.edits.codes import Along, Codes, Part, Reader, Step
from sae.edits.file import Edits
from sae.edits.forward import Edit
from sae.edits.library import Library, Measured
from sae.edits.positions import AnyOf
from sae.models import locate

_RIDGE = 1e-6
"""Share of the mean second moment that is added to each, so that they can be inverted."""


class Planner:
    """Plans edits for one model.

    All edits of features of one dictionary at one hook share one encoding of the activations,
    where the first of them stands in the list; all others are made in order, each of what
    those before it left.
    """

    def __init__(self, subject: Subject, library: Library) -> None:
        self.subject, self.aimer = subject, Aimer(subject, library)

    def aims(self, edits: Edits, sequence: tuple[int, int] | None = None) -> list[Aim]:
        """Return what each record means.

        Args:
            sequence: the number of the one sequence that they are for, and how many a batch
                has; for all if left out.

        Raises:
            UserError: with a sentence for each edit that cannot be made.
        """
        found, wrong = list[Aim](), [*self._wrong_model(edits)]
        for i, record in enumerate(edits.records):
            try:
                found.append(self.aimer.aim(record, sequence))
            except UserError as error:
                wrong.append(f"edits[{i}]: {error}")
        if wrong:
            raise UserError(*wrong)
        return found

    def _wrong_model(self, edits: Edits) -> Iterator[str]:
        own = self.subject.record
        if own is None:
            return
        if edits.model is not None and edits.model not in (own.name, own.hub_id):
            yield f"the edits say model: {edits.model}, and here is the model {own.hub_id}"
        elif own.weights_known and edits.model_digest not in (None, own.weight_digest):
            yield (
                f"these edits are for a model with weights {edits.model_digest}, and this one "
                f"has {own.weight_digest}"
            )

    def edits(self, aims: Sequence[Aim]) -> Iterator[Edit]:
        """Yield the edits to make, in order."""
        groups = defaultdict[object, list[Aim]](list)
        for aim in aims:
            groups[_kept_together(aim)].append(aim)
        for aim in aims:
            group = groups[_kept_together(aim)]
            # Nothing has to be read to add what is always the same.
            if not any(one.reads_codes for one in group):
                yield from self._alone(aim)
            elif aim is group[0]:
                yield self._encoded(group)

    def _alone(self, aim: Aim) -> Iterator[Edit]:
        """Yield the edits of a record that reads no codes; of several features one each."""
        record, mode, amount = aim.record, aim.record.mode, aim.amount
        assert amount is not None
        edit = Edit(aim.site, Part(0, 0, mode.rule, amount), aim.positions, gate=aim.gate)
        if record.head is not None:
            width = self.aimer.heads(aim.site)[1]
            first = record.head * width
            yield replace(edit, change=Part(first, first + width, mode.rule, amount))
            return
        vectors = torch.stack([scale.vector for scale in aim.scales]).to(amount)
        if mode.reads == "nothing":
            summed = amount @ vectors
            undone = aim.dictionary.writes[0].normalisation if aim.dictionary else None
            added = summed[0] if len(summed) == 1 else summed
            yield replace(edit, change=Add(added, undone))
            return
        for i, w in enumerate(vectors):
            step = _least_change(w, aim.scales[i].find_rows()) if mode.least_change else w
            change = Along(w, mode.rule, amount[:, i : i + 1], step)
            yield from (replace(edit, site=site, change=change) for site in aim.sites)

    def _encoded(self, group: Sequence[Aim]) -> Edit:
        """Return the one edit of records that share an encoding."""
        first, dictionary = group[0], group[0].dictionary
        assert dictionary is not None
        gates = {aim.own_gate for aim in group if aim.own_gate is not None}
        features = sorted({f for aim in group for f in aim.record.chosen} | gates)
        column = {feature: i for i, feature in enumerate(features)}
        steps = []
        for aim in group:
            assert aim.amount is not None
            gate = None
            if aim.own_gate is not None and aim.gate is not None:
                gate = column[aim.own_gate], aim.gate
            columns = torch.tensor(
                [column[f] for f in aim.record.chosen], device=aim.amount.device
            )
            rule = aim.record.mode.rule
            steps.append(Step(columns, rule, aim.amount, aim.positions, gate))
        places = tuple(dict.fromkeys(aim.positions for aim in group))
        change = Codes(
            Reader.of(dictionary, features),
            dictionary.W_dec[features].float(),
            tuple(steps),
            dictionary.writes[0].normalisation,
        )
        return Edit(
            first.site,
            change,
            places[0] if len(places) == 1 else AnyOf(places),
            locate(self.subject.module, dictionary.reads[0].place)
            if dictionary.is_transcoder
            else None,
            None if first.own_gate is not None else first.gate,
        )


def _kept_together(aim: Aim) -> object:
    """Return what edits have in common that share an encoding; nothing is like any other."""
    if aim.dictionary is None or aim.record.mode.reads == "projection":
        return id(aim)
    foreign = None if aim.gate is None or aim.own_gate is not None else aim.record.when
    return aim.record.dictionary, aim.site.hook_name, foreign


def _least_change(w: torch.Tensor, rows: Measured | str) -> torch.Tensor:
    """Return M⁻¹w / (wᵀM⁻¹w), which raises the projection on w by one.

    Of all vectors that do it moves usual activations least in the other directions.
    """
    # Refused before where there are none.
    assert not isinstance(rows, str)
    moments = rows.second_moments
    ridge = _RIDGE * moments.diagonal().mean() * torch.eye(len(moments), dtype=moments.dtype)
    solved = torch.linalg.solve(moments + ridge, w.double().cpu())
    step: torch.Tensor = solved / (w.double().cpu() @ solved)
    return step.to(w)
