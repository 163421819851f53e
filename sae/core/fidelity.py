"""What an autoencoder is trained to minimise, and figures of its reconstructions."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.core import Indices, Latents, PerLatent, Values, Vectors, Weight


def squared_error(x: Vectors, x_hat: Vectors) -> Float[Tensor, ""]:
    """Return the error summed over the width, averaged over the batch (`losses/mse_loss`)."""
    return (x_hat - x).square().sum(-1).mean()


class _RowNorms(torch.autograd.Function):
    """Torch's own gradient of norms goes over the matrix several times, and takes as long."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
        ctx.save_for_backward(rows, norms)
        return norms

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        rows, norms = ctx.saved_tensors
        # A row of zeros has no direction to grow in.
        slopes: Tensor = (grads[0] / norms).masked_fill(norms == 0, 0)
        grad: Tensor = rows * slopes[:, None]
        return grad


def row_norms(rows: Vectors) -> Float[Tensor, " n"]:
    """Return the norm of each row; a row of zeros gets a gradient of zero."""
    norms: Tensor = _RowNorms.apply(rows)  # type: ignore[no-untyped-call]
    return norms


def weighted_l1(feature_acts: Latents, w_dec: Weight) -> Float[Tensor, ""]:
    """`Σ_j f_j ‖W_dec,j‖`, averaged over the batch; `feature_acts` must not be negative.

    Weighing by the decoder norm makes the penalty blind to the scale that an encoder and a
    decoder can trade, so no unit-norm constraint is needed (Anthropic, April 2024 update).
    """
    penalty: Tensor = feature_acts.mean(0) @ row_norms(w_dec)
    return penalty


def weighted_l1_on(
    values: Values, columns: Indices, w_dec: Weight, batch: int
) -> Float[Tensor, ""]:
    """`weighted_l1` of sparse activations with `values` at latents `columns`."""
    sums = torch.zeros_like(w_dec[:, 0]).index_add(0, columns, values)
    penalty: Tensor = sums @ row_norms(w_dec) / batch
    return penalty


class ReconstructionStatistics:
    """Figures streamed over batches in float64; `sae/metrics.py` has the formula of each."""

    def __init__(self, d_in: int, d_sae: int) -> None:
        self.n_rows = 0
        self._sum = torch.zeros(d_in, dtype=torch.float64)
        self._squares = 0.0
        self._totals: dict[str, float] = {}
        self.fired = torch.zeros(d_sae, dtype=torch.int64)

    def add(
        self,
        x: Vectors,
        x_hat: Vectors,
        fired: Int[Tensor, " d_sae"],
        n_active: Int[Tensor, " n"],
        l1: float,
    ) -> None:
        """Count in rows, with the sum of their activations.

        `fired` says in how many rows each latent was active, and `n_active` how many latents
        were in each row.
        """
        x64, hat64 = x.double(), x_hat.double()
        self.n_rows += len(x)
        self._sum += x64.sum(0).cpu()
        norms, hat_norms = x64.norm(dim=1), hat64.norm(dim=1)
        self._squares += float(norms.square().sum())
        inner = torch.linalg.vecdot(x64, hat64)
        self.fired += fired.cpu()
        for name, value in {
            "error": torch.linalg.vector_norm(x64 - hat64).square(),
            "active": fired.sum(),
            "l1": l1,
            "cossim": (inner / (norms * hat_norms).clamp_min(1e-12)).sum(),
            "l2_ratio": (hat_norms / norms.clamp_min(1e-12)).sum(),
            "hat_squares": hat_norms.square().sum(),
            "inner": inner.sum(),
        }.items():
            self._totals[name] = self._totals.get(name, 0.0) + float(value)

    @property
    def density(self) -> PerLatent:
        """Share of the rows in which each latent was active, float64."""
        return self.fired.double() / self.n_rows

    def metrics(self) -> dict[str, float]:
        """All figures over the rows so far; no share of a variance where there is none."""
        n, total = self.n_rows, self._totals
        variance = self._squares - float(self._sum.square().sum()) / n
        bias = total["hat_squares"] / total["inner"] if total["inner"] else 0.0
        shares = {"explained_variance": 1 - total["error"] / variance} if variance > 0 else {}
        return shares | {
            "mse": total["error"] / n,
            "l0": total["active"] / n,
            "l1": total["l1"] / n,
            "cossim": total["cossim"] / n,
            "l2_ratio": total["l2_ratio"] / n,
            "relative_reconstruction_bias": bias,
            "dead_fraction": float((self.fired == 0).double().mean()),
        }


def density_histogram(density: PerLatent) -> dict[str, list[float]]:
    """Return counts of live latents by log10 density, from 1e-6 to 1 in steps of a quarter."""
    edges = torch.linspace(-6, 0, 25, dtype=torch.float64)
    logs = torch.log10(density[density > 0].double()).clamp(-6, 0)
    counts = torch.histogram(logs, edges).hist
    return {"log10_edges": edges.tolist(), "counts": counts.tolist()}
