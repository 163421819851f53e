"""The two matrix products of an autoencoder step, computed on active latents only.

Where a latent is silent, the gradient of any loss of its activation vanishes (for ReLU,
TopK and every other gate that outputs zero there), so of the five dense products of a step
only the encoder's forward one is needed in full. The rest runs on a `Support`: the
positions of the active entries, in compressed sparse row (CSR) order. Nothing is
approximated: values and gradients equal those of the dense computation up to rounding.

Products with the transposed matrix use a second CSR matrix, by latent, whose order is found by
one sort a step and shared by both weight gradients (multiplying with torch's transposed view
sorts anew each time). No tensor of shape (batch, active, d_in) is ever made.
"""

import warnings
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# Torch warns once a process that CSR tensors are in beta; nothing here can answer that, so
# let it happen now.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor([0, 1], [0], [1.0], (1, 1))


class Support(NamedTuple):
    """Where a (batch, d_sae) matrix of activations is not zero; int32 indices."""

    row_ends: Int[Tensor, " batch_plus_1"]
    """The entries of row i are `row_ends[i]` up to `row_ends[i + 1]`."""
    columns: Int[Tensor, " nnz"]
    """Latent of each entry, ascending inside a row."""
    column_ends: Int[Tensor, " d_sae_plus_1"]
    """The same entries by latent: those of latent j end before `column_ends[j + 1]`."""
    by_column: Int[Tensor, " nnz"]
    """int64; which entry, in row order, comes at each place in column order."""
    rows_by_column: Int[Tensor, " nnz"]
    """Row of each entry, in column order."""
    shape: tuple[int, int]

    def matrix(self, values: Float[Tensor, " nnz"]) -> Tensor:
        """The sparse (batch, d_sae) matrix that holds `values` (in row order)."""
        return torch.sparse_csr_tensor(
            self.row_ends, self.columns, values, self.shape, check_invariants=False
        )

    def transposed(self, values: Float[Tensor, " nnz"]) -> Tensor:
        """The sparse (d_sae, batch) matrix that holds `values` (in row order)."""
        return torch.sparse_csr_tensor(
            self.column_ends,
            self.rows_by_column,
            values[self.by_column],
            self.shape[::-1],
            check_invariants=False,
        )

    def counts(self) -> Int[Tensor, " d_sae"]:
        """In how many rows each latent is active."""
        return self.column_ends.diff()


def support_of(active: Bool[Tensor, "batch d_sae"]) -> Support:
    """The positions of the true entries of `active`."""
    batch, d_sae = active.shape
    rows, columns = (index.int() for index in torch.where(active))
    by_column = torch.sort(columns, stable=True).indices
    return Support(
        _ends(rows, batch),
        columns,
        _ends(columns, d_sae),
        by_column,
        rows[by_column],
        (batch, d_sae),
    )


def _ends(indices: Int[Tensor, " nnz"], n: int) -> Int[Tensor, " n_plus_1"]:
    ends = torch.zeros(n + 1, dtype=torch.int32, device=indices.device)
    ends[1:] = torch.bincount(indices, minlength=n).cumsum(0)
    return ends


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, values: Tensor, support: Support
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.support = support
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        support: Support = ctx.support
        grad_x = support.matrix(grads[0]) @ weight if ctx.needs_input_grad[0] else None
        grad_bias = torch.zeros_like(weight[:, 0]).index_add_(0, support.columns, grads[0])
        return grad_x, support.transposed(grads[0]) @ x, grad_bias, None, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, support: Support) -> Tensor:
        ctx.save_for_backward(values, weight)
        ctx.support = support
        return support.matrix(values) @ weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, weight = ctx.saved_tensors
        support: Support = ctx.support
        grad = grads[0].contiguous()
        zeros = support.matrix(torch.zeros_like(values))
        grad_values = torch.sparse.sampled_addmm(zeros, grad, weight.t(), beta=0.0).values()
        return grad_values, support.transposed(values) @ grad, None


def encode_on(
    support: Support,
    values: Float[Tensor, " nnz"],
    x: Float[Tensor, "batch d_in"],
    weight: Float[Tensor, "d_sae d_in"],
    bias: Float[Tensor, " d_sae"],
) -> Float[Tensor, " nnz"]:
    """`x @ weight.T + bias` on `support`, with gradients to `x`, `weight` and `bias`.

    The values are given, not computed, because the caller had to compute them to choose the
    support; no gradient flows through that argument.
    """
    read: Tensor = _Encode.apply(x, weight, bias, values.detach(), support)  # type: ignore[no-untyped-call]
    return read


def decode_on(
    support: Support,
    values: Float[Tensor, " nnz"],
    weight: Float[Tensor, "d_sae d_in"],
) -> Float[Tensor, "batch d_in"]:
    """The product of the sparse activations with the decoder, with gradients to both."""
    x_hat: Tensor = _Decode.apply(values, weight, support)  # type: ignore[no-untyped-call]
    return x_hat
