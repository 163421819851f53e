"""A dictionary beside the truth: what it finds of a world whose features are known."""

import math
from dataclasses import replace
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor

from sae.core.bootstrap import bootstrap_mean
from sae.core.fidelity import ReconstructionStatistics
from sae.core.matching import match_directions
from sae.core.nulls import random_directions
from sae.core.truth import RECOVERED_FROM, Detectors, nearest_truth, uniqueness
from sae.dictionary import Dictionary, TopK
from sae.findings import Finding
from sae.synthetic import BLOCK_ROWS, HELD_OUT, World

FLOOR = "random directions of the same number and L0"


def score_truth(dictionary: Dictionary, world: World, n_rows: int) -> list[Finding]:
    """Return what a dictionary finds of a world, on rows of it that are never trained on.

    Beside each figure of directions and detectors is what random directions score in its
    place: as many, of which in each row as many as the dictionary's L0 are active, those of
    the largest projections.
    """
    found = _Measured(dictionary, world, n_rows)
    l0 = max(1, round(found.fidelity["l0"]))
    chance = _Measured(_random(dictionary.d_sae, l0, world), world, n_rows)
    floors = {one.key: one.value for one in chance.findings()}
    return [
        replace(one, floor=floors[one.key], floor_of=FLOOR)
        if one.key.startswith("truth_") and one.key != "truth_l0"
        else one
        for one in found.findings()
    ]


class _Measured:
    """One pass of a dictionary over held-out rows."""

    def __init__(self, dictionary: Dictionary, world: World, n_rows: int) -> None:
        W_dec, truth = dictionary.W_dec, world.directions
        self.nearest = nearest_truth(W_dec, truth)
        self.match = match_directions(truth, W_dec)
        self.n_features, self.d_sae = len(truth), dictionary.d_sae
        self.detectors = Detectors(self.nearest)
        # One to one: latents without a feature of their own are left out.
        self.matched = Detectors(self.match.first)
        statistics = ReconstructionStatistics(world.config.d_in, dictionary.d_sae)
        self.n_rows = self.n_true = 0
        for block in islice(world.blocks(HELD_OUT), -(-n_rows // BLOCK_ROWS)):
            acts = dictionary.encode(block.x)
            fires, is_true = acts > 0, block.codes.dense() > 0
            self.detectors.add(fires, is_true)
            self.matched.add(fires[:, self.match.second], is_true)
            x_hat = dictionary.reconstruct(block.x, acts)
            counts = fires.sum(0), fires.sum(1)
            statistics.add(block.x, x_hat, *counts, float(acts.sum()))
            self.n_rows += len(block.x)
            self.n_true += len(block.codes.features)
        self.fidelity = statistics.metrics()

    def findings(self) -> list[Finding]:
        cosine, detectors = self.match.cosine, self.detectors
        of_features = torch.zeros(self.n_features, dtype=torch.float64)
        of_features[self.match.first] = self.matched.f1
        recovered = torch.zeros_like(of_features)
        recovered[self.match.first] = (cosine >= RECOVERED_FROM).double()
        return [
            _mean("truth_f1", detectors.f1, "latents"),
            _mean("truth_precision", detectors.precision, "latents"),
            _mean("truth_recall", detectors.recall, "latents"),
            _mean("truth_mcc", cosine, "matched pairs"),
            _mean("truth_f1_features", of_features, "features"),
            _mean("truth_recovered", recovered, "features"),
            Finding(
                key="truth_uniqueness",
                value=uniqueness(self.nearest),
                n=self.d_sae,
                unit="latents",
            ),
            *(
                Finding(key=key, value=value, n=self.n_rows, unit="rows")
                for key, value in self._of_rows.items()
            ),
        ]

    @property
    def _of_rows(self) -> dict[str, float]:
        names = ("l0", "explained_variance", "dead_fraction", "l2_ratio")
        found = {name: self.fidelity[name] for name in names}
        return {"truth_l0": self.n_true / self.n_rows, **found}


def _mean(key: str, values: Float[Tensor, " unit"], unit: str) -> Finding:
    mean, *ends = bootstrap_mean(values)
    low, high = (end if math.isfinite(end) else None for end in ends)
    return Finding(key=key, value=mean, low=low, high=high, n=len(values), unit=unit)


def _random(d_sae: int, l0: int, world: World) -> Dictionary:
    """Return a dictionary that nobody trained: the largest `l0` projections are active."""
    directions = random_directions(d_sae, world.config.d_in, seed=world.config.seed + 1)
    b_enc = -(directions @ world.bias)
    weights = directions.t(), b_enc, directions, world.bias
    return Dictionary.from_weights(*weights, activation=TopK(k=min(l0, d_sae)))
