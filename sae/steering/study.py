"""Steering with one feature beside its baselines: chosen on one half, reported on the other."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.base import require
from sae.edits.copies import strengths_at_cost
from sae.steering.arms import (
    VECTORS,
    difference_of_means,
    random_direction,
    reconstruction,
    unit_dose,
)
from sae.steering.checks import Tried, beside_chance, check_dose, nulls_of
from sae.steering.curve import curve_of
from sae.steering.material import Contexts, Halves, Ids
from sae.steering.reading import Alone, Arms, costs, token_shifts
from sae.steering.trial import READ, WRITTEN, Trial, interval_of
from sae.steering.written import Desk, Writer
from sae.writing import Sampling

_STEPS = (-2.0, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 2.0)
"""Doses that are tried, in multiples of the one that costs what is allowed."""
_AIM = 0.8
"""Share of the cost that is allowed that it is to have on the choosing half, for it costs a
little more or less on the other."""
_FIRST_NORM, _MOST_NORM = 0.25, 2.0
"""Norms, over the mean norm of the activations, of the first try and of the largest dose."""
Doses = dict[str, list[float]]
"""Strengths of each arm that adds a vector."""


@dataclass(frozen=True, slots=True)
class Feature:
    """The feature that is steered with, and what belongs to it alone."""

    row: Mapping[str, Any]
    """Its record in `features.parquet`."""
    others: tuple[int, ...]
    """Random features that fire: the first is a baseline, all are nulls."""
    highest: Mapping[int, float]
    """Highest activations of it and them."""
    told: tuple[int, ...]
    """Ids that the prompt baseline begins with: the plain sentence."""
    checks: Mapping[str, Tried]

    @property
    def number(self) -> int:
        """Its number in the dictionary."""
        return int(self.row["feature"])

    @property
    def own(self) -> Int[Tensor, " token"]:
        """Ids of the tokens that it promotes."""
        return torch.tensor(self.row["top_logit_ids"])


@dataclass(frozen=True, slots=True)
class Studied:
    """What was found of one feature."""

    trials: list[Trial]
    about: dict[str, Any]
    """What the results hold of it, beside the trials."""

    def operating(self, arm: str) -> Trial | None:
        """Return an arm's trial at its operating point; None where it has none."""
        return next((one for one in self.trials if one.arm == arm and one.operating), None)

    @property
    def unsteered(self) -> Trial | None:
        """The trial of the model left alone."""
        found = (one for one in self.trials if one.arm == "feature" and one.strength == 0)
        return next(found, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What steering with any feature of a dictionary is tried on, and how."""

    desk: Desk
    contexts: Contexts
    prompts: Halves
    begins: tuple[str, ...]
    """The prompts to report on, as text."""
    sampling: Sampling
    max_cost: float
    strengths: tuple[float, ...] | None
    """Doses to try; by default some around the one that costs what is allowed."""
    seed: int

    def of(self, feature: Feature) -> Studied:
        """Return what steering with a feature does, beside its baselines."""
        units = self._units(feature)
        doses = self._doses(units)
        chosen, told = self._operating(feature, units, doses)
        strength = chosen["feature"]
        trials = self._read(feature, units, doses, chosen)
        trials, samples = self._written(feature, units, trials)
        found = Studied(trials, {})
        if (mine := found.operating("feature")) is not None:
            shift = interval_of("shift", mine.figures["shift"])
            if shift.low <= 0 <= shift.high:
                told += " On the reporting half its effect cannot be told from noise."
        about = {
            "norm_at_strength_one": float(torch.linalg.vector_norm(units["feature"])),
            "operating_strength": strength,
            "told": told,
            "null": self._nulls(feature, units, mine),
            "curve": self._curve(trials),
            "checks": self._checks(feature, units, mine),
            "samples": samples,
        }
        return replace(found, about=about)

    # Vectors and doses

    def _units(self, feature: Feature) -> dict[str, Float[Tensor, " d_out"]]:
        """Return what strength 1 of each arm adds: all but the random feature are as long."""
        dictionary, copies = self.desk.dictionary, self.desk.copies
        number, other = feature.number, feature.others[0]
        mine = unit_dose(dictionary, number, feature.highest[number]).cpu()
        means = difference_of_means(
            copies, self.contexts.learned[number], self.contexts.neutral.choosing
        ).cpu()
        norm = torch.linalg.vector_norm
        require(
            float(norm(means)) > 0,
            f"the contexts of feature {number} do not differ from other text; choose "
            "another feature",
        )
        return {
            "feature": mine,
            "difference_of_means": means * (norm(mine) / norm(means)),
            "random_direction": random_direction(mine, self.seed + number),
            "random_feature": unit_dose(dictionary, other, feature.highest[other]).cpu(),
        }

    def _arms(
        self, vectors: Float[Tensor, "vector d_out"], others: tuple[Alone, ...] = ()
    ) -> Arms:
        return Arms(self.desk.copies, vectors, others)

    def _doses(self, units: Mapping[str, Float[Tensor, " d_out"]]) -> Doses:
        """Return the doses of each arm; those above 0 alone of all but the feature."""
        if self.strengths is not None:
            all_of = sorted({*self.strengths})
            above = [strength for strength in all_of if strength > 0]
            return {arm: all_of if arm == "feature" else above for arm in VECTORS}
        stacked = torch.stack([units[arm] for arm in VECTORS])
        neutral = self.contexts.neutral.choosing
        typical = self.desk.copies.typical_norm(neutral)
        lengths = torch.linalg.vector_norm(stacked, dim=1) / typical

        def cost(strengths: Tensor) -> Tensor:
            return costs(self._arms(strengths[:, None] * stacked), neutral)["kl"].mean(1)

        at_cost = strengths_at_cost(
            cost, _AIM * self.max_cost, _FIRST_NORM / lengths, _MOST_NORM / lengths
        )
        return {
            # Three digits say all that is known of a dose.
            arm: [
                float(f"{step * strength:.3g}")
                for step in _STEPS
                if step > 0 or arm == "feature"
            ]
            for arm, strength in zip(VECTORS, at_cost.tolist(), strict=True)
        }

    def _operating(
        self, feature: Feature, units: Mapping[str, Tensor], doses: Doses
    ) -> tuple[dict[str, float | None], str]:
        """Choose a dose of each arm on the choosing half, and say how the feature's was.

        It is the one with the largest own-token shift of those above 0 that cost what is
        allowed.
        """
        pairs = [(arm, s) for arm in VECTORS for s in doses[arm] if s > 0]
        if not pairs:
            return dict.fromkeys(VECTORS), "No dose above 0 was asked for."
        arms = self._arms(torch.stack([s * units[arm] for arm, s in pairs]))
        shifts = token_shifts(arms, self.prompts.choosing, feature.own).mean(1).tolist()
        kl = costs(arms, self.contexts.neutral.choosing)["kl"].mean(1).tolist()
        chosen: dict[str, float | None] = {}
        for arm in VECTORS:
            fit = [
                (shift, s)
                for (of, s), shift, cost in zip(pairs, shifts, kl, strict=True)
                if of == arm and cost <= self.max_cost
            ]
            chosen[arm] = max(fit)[1] if fit else None
        n, least = len(doses["feature"]), min(doses["feature"], key=lambda s: s <= 0)
        if chosen["feature"] is None:
            cost = kl[pairs.index(("feature", least))]
            return chosen, (
                f"There is no operating point: no dose above 0 costs at most {self.max_cost:g} "
                f"nats a token; the least, {least:g}×, costs {cost:.2g}."
            )
        return chosen, (
            f"Of {n} doses, {chosen['feature']:g}× moves its tokens most on the choosing half "
            f"of those that cost at most {self.max_cost:g} nats a token there."
        )

    # Reading

    def _read(
        self,
        feature: Feature,
        units: Mapping[str, Tensor],
        doses: Doses,
        chosen: Mapping[str, float | None],
    ) -> list[Trial]:
        """Return the trials of all arms at all doses, with the figures of reading."""
        trials = [Trial(arm, s, s == chosen[arm]) for arm in VECTORS for s in doses[arm]]
        vectors = [trial.strength * units[trial.arm] for trial in trials]  # type: ignore[operator]
        if chosen["feature"] is not None:
            trials.append(Trial("wrong_sign", -chosen["feature"], operating=True))
            vectors.append(-chosen["feature"] * units["feature"])
        trials += [Trial(arm, None, operating=True) for arm in ("prompt", "reconstruction")]
        desk = self.desk
        spliced = reconstruction(desk.dictionary, desk.reads, desk.copies.site, [True])
        others = Alone(before=feature.told), Alone((spliced,))
        figures = self._figures(self._arms(torch.stack(vectors), others), feature)
        return [
            replace(trial, figures=dict(zip(READ, own, strict=True)))
            for trial, own in zip(trials, figures, strict=True)
        ]

    def _figures(self, arms: Arms, feature: Feature) -> list[tuple[Tensor, ...]]:
        """Return the figures `READ` of each arm."""
        shift = token_shifts(arms, self.prompts.reporting, feature.own)
        neutral = costs(arms, self.contexts.neutral.reporting)
        kl, ce = neutral["kl"], neutral["delta_ce"]
        concept = self.contexts.concept[feature.number]
        gain = torch.full((len(shift), 1), torch.nan)
        if concept:
            n = min(len(concept), ce.shape[1])
            gain = ce[:, :n] - costs(arms, concept[:n])["delta_ce"]
        return [*zip(shift, gain, kl, ce, strict=True)]

    # Writing

    def _written(
        self, feature: Feature, units: Mapping[str, Tensor], trials: list[Trial]
    ) -> tuple[list[Trial], list[dict[str, Any]]]:
        """Let the feature write at every dose and all arms at theirs; returns texts as well."""
        writing = [i for i, t in enumerate(trials) if t.arm == "feature" or t.operating]
        zero = torch.zeros_like(units["feature"])
        writers = []
        for trial in (trials[i] for i in writing):
            unit = units.get("feature" if trial.arm == "wrong_sign" else trial.arm, zero)
            writers.append(
                Writer(
                    zero if trial.strength is None else trial.strength * unit,
                    feature.told if trial.arm == "prompt" else None,
                    trial.arm == "reconstruction",
                )
            )
        prompts = self.prompts.reporting
        ids = self.desk.write(writers, prompts, self.sampling)
        read = self.desk.read(feature.number, prompts, ids)
        read["round_trip"] = read["round_trip"] / feature.highest[feature.number]
        read["perplexity"] = read.pop("log_perplexity")
        trials = [*trials]
        for place, i in enumerate(writing):
            own = {name: read[name][place] for name in WRITTEN}
            trials[i] = replace(trials[i], figures={**trials[i].figures, **own})
        samples = [
            {
                "prompt": begin,
                "direction": trials[i].arm,
                "strength": trials[i].strength,
                "text": text,
            }
            for begin, texts in zip(self.begins, self.desk.texts(prompts, ids), strict=True)
            for i, text in zip(writing, texts, strict=True)
        ]
        return trials, samples

    # What is said of the operating point

    def _nulls(
        self, feature: Feature, units: Mapping[str, Tensor], mine: Trial | None
    ) -> dict[str, Any] | None:
        """Set the shift beside random directions and random features of equal norm."""
        if mine is None or mine.strength is None:
            return None
        others = self.desk.dictionary.W_dec[[*feature.others]].float().cpu()
        vectors = nulls_of(mine.strength * units["feature"], others, self.seed + feature.number)
        found = token_shifts(self._arms(vectors), self.prompts.reporting, feature.own)
        return beside_chance(mine.figures["shift"].mean(), found.mean(1))

    def _curve(self, trials: Sequence[Trial]) -> dict[str, Any]:
        of = [trial for trial in trials if trial.arm == "feature"]
        strengths = torch.tensor([float(trial.strength or 0) for trial in of])
        means = [
            torch.stack([trial.figures[name].mean() for trial in of])
            for name in ("shift", "distinct_2")
        ]
        return asdict(curve_of(strengths, *means))

    def _checks(
        self, feature: Feature, units: Mapping[str, Tensor], mine: Trial | None
    ) -> list[dict[str, Any]]:
        if mine is None or mine.strength is None:
            return []
        arms = self._arms((mine.strength * units["feature"])[None])

        def shifts(prompts: Sequence[Ids]) -> Tensor:
            return token_shifts(arms, prompts, feature.own)[0]

        reported = interval_of("shift", mine.figures["shift"])
        return check_dose(feature.checks, shifts, reported)
