"""One training step of each architecture against its peers and its own floor.

All at the same weights, rows and sparsity, taking turns in one run: our trainer's step, the
encoder's product alone (the floor), and the steps of SAELens, dictionary_learning and sparsify,
as they come and at the settings that a first round finds fastest.
"""

import gc
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import peers
from benchmarks.common import real_rows, side_by_side, write_results
from sae.architectures import ARCHITECTURES
from sae.core.scaling import InputScaling
from sae.training.loop import StepReport, Trainer
from sae.training.optim import OptimConfig

D_SAE, BATCH, K = 9_216, 4_096, 32
ROUNDS = 5
# The penalised ones are timed at the L0 that some training has reached.
SETTINGS: dict[str, tuple[dict[str, Any], int]] = {
    "topk": ({"k": K}, 5),
    "batchtopk": ({"k": K}, 5),
    "matryoshka_batchtopk": ({"k": K}, 5),
    "standard": ({"l1_coefficient": 2.2}, 250),
    "jumprelu": ({"target_l0": 50.0}, 100),
    "gated": ({"l1_coefficient": 4.0}, 250),
}


def main(matmul: str = "auto") -> None:
    """Median seconds of a step of each architecture and its peers.

    Active latents are found by `matmul`, which `python -m benchmarks.step float32` gives.
    """
    rows = real_rows(40_960)
    scaling = InputScaling.of(rows)
    table = [_measure(name, scaling(rows), *SETTINGS[name], matmul) for name in SETTINGS]
    title = f"One training step, d_in 576, d_sae {D_SAE:,}, batch {BATCH:,}"
    if matmul == "auto":
        write_results("step", title, table)
    else:
        write_results(f"step_{matmul}", f"{title}, latents found in {matmul}", table)


def _measure(
    name: str, rows: torch.Tensor, settings: dict[str, Any], warm_steps: int, matmul: str
) -> dict[str, object]:
    x = rows[:BATCH]
    trainer = trained(name, rows, settings, warm_steps)
    step = one_step(trainer, x, matmul)
    l0 = step().metrics()["metrics/l0"]
    same = InputScaling(torch.zeros(x.shape[1]), 1.0)
    weights = trainer.sae.dictionary(same, same).tensors
    w_enc_t = weights["W_enc"].t().contiguous()
    out = torch.empty(BATCH, D_SAE)

    def floor() -> None:
        torch.mm(x, w_enc_t.t(), out=out)

    contenders: dict[str, Callable[[], object]] = {
        "ours": step,
        "floor": floor,
        "linear": lambda: torch.nn.functional.linear(x, w_enc_t, weights["b_enc"]),
    }
    contenders |= _peers(name, weights, x, settings, l0)
    medians = side_by_side(contenders, rounds=ROUNDS)
    ours = medians["ours"]
    print(name, {n: round(s, 3) for n, s in medians.items()}, flush=True)
    row: dict[str, object] = {
        "architecture": name,
        "L0": round(l0),
        "ours (s)": round(ours, 3),
        "ours / encoder (linear)": round(ours / medians["linear"], 2),
        "ours / bare product in place": round(ours / medians["floor"], 2),
    }
    for peer in ("SAELens", "SAELens at its best", "dictionary_learning", "sparsify"):
        found = next((s for n, s in medians.items() if n.split(":")[0] == peer), None)
        row[f"{peer} (times ours)"] = "" if found is None else round(found / ours, 1)
    gc.collect()
    return row


def trained(
    name: str, rows: torch.Tensor, settings: dict[str, Any], n_steps: int, d_sae: int = D_SAE
) -> Trainer:
    """Return a trainer after some steps of 1,024 rows; further ones change no weight."""
    generator = torch.Generator().manual_seed(0)
    sae = ARCHITECTURES[name](d_sae=d_sae, **settings).build(rows, generator)
    same = InputScaling(torch.zeros(rows.shape[1]), 1.0)
    # No warm-up and no decay: the run has no end to take shares of.
    optim = OptimConfig(lr_warm_up_steps=0, lr_decay_steps=0)
    trainer = Trainer(sae, same, optim, lr=3e-3, n_steps=4 * n_steps, dead_window_rows=10**12)
    for _ in range(n_steps):
        x = rows[torch.randperm(len(rows), generator=generator)[:1024]]
        trainer.update(x, x)
    # Past every warm-up, for as long as anybody asks.
    trainer.lr, trainer.step, trainer.n_steps = 1e-9, 10**6, 10**7
    return trainer


def one_step(
    trainer: Trainer, rows: torch.Tensor, matmul: str = "auto"
) -> Callable[[], StepReport]:
    """Return what takes a step on the rows, its active latents found by that product."""

    def step() -> StepReport:
        trainer.sae.matmul = matmul
        return trainer.update(*trainer.scaled((rows,)))

    return step


def _peers(
    name: str,
    weights: dict[str, torch.Tensor],
    x: torch.Tensor,
    settings: dict[str, Any],
    l0: float,
) -> dict[str, Callable[[], object]]:
    if name == "gated":
        return {}
    k = settings.get("k")
    sparsity = {"k": k} if k else {"coefficient": settings.get("l1_coefficient", 1.0)}
    found: dict[str, Callable[[], object]] = {}
    plain = peers.saelens_step(name, weights, x, **sparsity)
    if plain is not None:
        found["SAELens"] = plain
        choices = {
            f"SAELens at its best: {choice}": peers.saelens_step(
                name, weights, x, **sparsity, **choice
            )
            for choice in peers.saelens_choices(name)
        }
        found |= _fastest(choices)
    if name in ("topk", "standard"):
        theirs = peers.dictionary_learning_step(name, weights, x, **sparsity)
        found |= {"dictionary_learning": theirs} if theirs is not None else {}
    if name == "topk":
        choices = {
            f"sparsify: {choice}": peers.sparsify_step(weights, x, k=K, **choice)
            for choice in peers.SPARSIFY_CHOICES
        }
        found |= _fastest(choices)
    return found


def _fastest(
    choices: dict[str, Callable[[], object] | None],
) -> dict[str, Callable[[], object]]:
    """Return the fastest in a first round (its second call: the first may compile)."""
    there = {name: step for name, step in choices.items() if step is not None}
    seconds = {}
    for name, step in there.items():
        step()
        began = time.perf_counter()
        step()
        seconds[name] = time.perf_counter() - began
    best = min(seconds, key=seconds.__getitem__, default=None)
    return {} if best is None else {best: there[best]}


if __name__ == "__main__":
    main(*sys.argv[1:])
