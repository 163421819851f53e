"""Our steps against the encoder's product that each cannot do without, all in one round.

Each architecture at weights and an L0 that training reached. "linear" is the product with its
bias as PyTorch users write it; "bare" is the product alone, in float32, into memory at hand.
The same weights take steps whose active latents are found by the product that is the fastest
here, and steps in which float32 finds them.
"""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.common import real_rows, side_by_side, write_results
from benchmarks.step import BATCH, D_SAE, SETTINGS, one_step, trained
from sae.core.scaling import InputScaling
from sae.core.screen import fastest


def main() -> None:
    """Median seconds of a step of every architecture, taking turns."""
    rows = real_rows(40_960)
    rows = InputScaling.of(rows)(rows)
    x = rows[:BATCH]
    l0s: dict[str, float] = {}
    contenders: dict[Any, Callable[[], object]] = {}
    for name, (settings, warm_steps) in SETTINGS.items():
        trainer = trained(name, rows, settings, warm_steps)
        steps = {matmul: one_step(trainer, x, matmul) for matmul in ("auto", "float32")}
        l0s[name] = steps["auto"]().metrics()["metrics/l0"]
        contenders |= {(name, matmul): step for matmul, step in steps.items()}
    w_enc_t, b_enc = trainer.sae.W_enc_t.detach().clone(), trainer.sae.b_enc.detach()
    out = torch.empty(BATCH, D_SAE)
    contenders["bare"] = lambda: torch.mm(x, w_enc_t.t(), out=out)
    contenders["linear"] = lambda: torch.nn.functional.linear(x, w_enc_t, b_enc)
    medians = side_by_side(contenders, rounds=9)
    auto = fastest(x.shape[1], D_SAE, BATCH, x.dtype, x.device)
    table = []
    for name in SETTINGS:
        ours, in_float32 = medians[name, "auto"], medians[name, "float32"]
        table.append(
            {
                "architecture": name,
                "L0": round(l0s[name]),
                "latents found in": auto,
                "step (s)": round(ours, 3),
                "step / linear": round(ours / medians["linear"], 2),
                "step / bare product": round(ours / medians["bare"], 2),
                "step / BatchTopK's": round(ours / medians["batchtopk", "auto"], 2),
                "in float32: step (s)": round(in_float32, 3),
                "in float32: step / bare product": round(in_float32 / medians["bare"], 2),
            }
        )
    write_results(
        "floor", f"Steps and their floor, d_in 576, d_sae {D_SAE:,}, batch {BATCH:,}", table
    )


if __name__ == "__main__":
    main()
