"""Our steps against the encoder's product that each cannot do without, all in one round.

Each architecture at weights and an L0 that training reached. "linear" is the product with its
bias as PyTorch users write it; "bare" is the product alone, into memory at hand.
"""

from collections.abc import Callable

import torch

from benchmarks.common import real_rows, side_by_side, write_results
from benchmarks.step import BATCH, D_SAE, SETTINGS, our_steps
from sae.core.scaling import InputScaling


def main() -> None:
    """Median seconds of a step of every architecture, taking turns."""
    rows = real_rows(40_960)
    rows = InputScaling.of(rows)(rows)
    x = rows[:BATCH]
    l0s, contenders = {}, {}
    for name, (settings, warm_steps) in SETTINGS.items():
        steps, weights, l0s[name] = our_steps(name, rows, settings, warm_steps)
        contenders[name] = _one(steps)
    w_enc_t, b_enc = weights["W_enc"].t().contiguous(), weights["b_enc"]
    out = torch.empty(BATCH, D_SAE)
    contenders["bare"] = lambda: torch.mm(x, w_enc_t.t(), out=out)
    contenders["linear"] = lambda: torch.nn.functional.linear(x, w_enc_t, b_enc)
    medians = side_by_side(contenders, rounds=9)
    table = [
        {
            "architecture": name,
            "L0": round(l0s[name]),
            "step (s)": round(medians[name], 3),
            "step / linear": round(medians[name] / medians["linear"], 2),
            "step / bare product": round(medians[name] / medians["bare"], 2),
            "step / BatchTopK's": round(medians[name] / medians["batchtopk"], 2),
        }
        for name in SETTINGS
    ]
    write_results(
        "floor", f"Steps and their floor, d_in 576, d_sae {D_SAE:,}, batch {BATCH:,}", table
    )


def _one(steps: object) -> Callable[[], object]:
    return lambda: next(steps)  # type: ignore[call-overload]


if __name__ == "__main__":
    main()
