"""Which features are dials: every score beside its nulls, as columns of an atlas."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from sae.analysis.dials import Candidates, DialConfig, Measured
from sae.core.nulls import rank_p, z_score

LEAST_SHIFT = math.log(2)
"""A dial makes the tokens that it promotes at least twice as likely; what does less is a weak
one."""


@dataclass(frozen=True, slots=True)
class Dials:
    """Results for the features that were scored as dials."""

    columns: dict[str, object]
    """Columns of `features.parquet`, not a number where a feature was not scored."""
    n_scored: int
    n_dials: int
    n_weak: int
    median_cost: float | None
    """Median cost of the recommended doses of all dials, on texts other than those on which
    they were found."""


def verdicts(config: DialConfig, some: Candidates, found: Measured, seed: int) -> Dials:
    """Set every score beside its nulls, and say which features are dials."""
    n, n_nulls = len(some.chosen), config.n_nulls
    drawn = some.random_features(n_nulls, seed)

    def nulls(values: Float[np.ndarray, " *of"]) -> tuple[Tensor, Tensor]:
        """Split chance's figures, those of (vector) for all features the same."""
        table = torch.from_numpy(values)
        table = table[-n_nulls - len(drawn) :]
        table = table if table.dim() == 2 else table[:, None].expand(-1, n)
        return table[:n_nulls], _without_itself(table[n_nulls:], drawn, some.chosen)

    columns: dict[str, Tensor] = {}
    stated, recommended = found.stated, found.recommended
    for name, own, null, base in (
        ("output_score", "score", "null_score", "plain_score"),
        ("token_shift", "mass", "null_mass", None),
        ("confidence_change", "confidence", "confidence", None),
        ("delta_ce", "ce", "ce", None),
        ("kl", "kl", "kl", None),
    ):
        offset = torch.from_numpy(stated[base]) if base else torch.zeros(n).double()
        values = torch.from_numpy(stated[own][:n]) + offset
        columns[name] = values
        for kind, chance in zip(("direction", "feature"), nulls(stated[null]), strict=True):
            columns[f"{name}_{kind}_mean"] = chance.mean(0) + offset
            columns[f"{name}_{kind}_z"] = z_score(values, chance + offset)
            columns[f"{name}_{kind}_p"] = rank_p(values, chance + offset)
    shift = torch.from_numpy(recommended["mass"])
    shifts = torch.cat(nulls(recommended["null_mass"]))
    columns |= {
        "dial_score": shift,
        "dial_score_null": shifts.amax(0),
        "dial_score_p": rank_p(shift, shifts),
        "dial_strength": torch.from_numpy(found.recommended_strengths[:n]),
        "dial_rise": torch.from_numpy(recommended["score"]),
        "dial_rise_null": torch.cat(nulls(recommended["null_score"])).amax(0),
        "dial_kl": torch.from_numpy(recommended["kl"][:n]),
        "dial_delta_ce": torch.from_numpy(recommended["ce"][:n]),
        "stated_strength": torch.from_numpy(found.stated_strengths[:n]),
    }
    by_others = [some.input_score(some.chosen, np.full(n, other)) for other in drawn]
    others = _without_itself(torch.from_numpy(np.stack(by_others)), drawn, some.chosen)
    columns["input_score"] = torch.from_numpy(some.input_score(some.chosen, some.chosen))
    columns["input_score_feature_mean"] = others.mean(0)
    beyond = (shift > columns["dial_score_null"]).numpy()
    is_dial = beyond & (shift >= LEAST_SHIFT).numpy()
    verdict = np.where(is_dial, "dial", np.where(beyond, "weak", "none"))
    cost = recommended["kl"][:n][is_dial]
    return Dials(
        _spread_out(columns, verdict, some),
        n_scored=n,
        n_dials=int(is_dial.sum()),
        n_weak=int((beyond & ~is_dial).sum()),
        median_cost=float(np.median(cost)) if len(cost) else None,
    )


def _without_itself(
    table: Float[Tensor, "drawn feature"],
    drawn: Int[np.ndarray, " drawn"],
    chosen: Int[np.ndarray, " feature"],
) -> Float[Tensor, "null feature"]:
    """Return the random features' figures beside each feature, one fewer, itself left out."""
    is_itself = torch.from_numpy(drawn[:, None] == chosen)
    # One that was not drawn leaves out the last.
    is_itself[-1] |= ~is_itself.any(0)
    return table.t()[~is_itself.t()].view(len(chosen), -1).t()


def _spread_out(
    columns: dict[str, Tensor], verdict: Shaped[np.ndarray, " feature"], some: Candidates
) -> dict[str, object]:
    """Return columns of all features of the dictionary."""
    d_sae = len(some.max_activation)
    told = np.full(d_sae, "", dtype=object)
    told[some.chosen] = verdict
    found: dict[str, object] = {"dial_verdict": told.tolist()}
    for name, values in columns.items():
        column = np.full(d_sae, np.nan, np.float32)
        column[some.chosen] = values.numpy()
        found[name] = column
    return found
