"""The products of an autoencoder step, computed on active latents only.

Where a latent is silent, the gradient of any loss of its activation vanishes, so of the five
dense products of a step only the encoder's forward one is needed in full. The rest runs on a
`Support`, the positions of the active entries by row and, for products with the transposed
matrix, by latent. Nothing is approximated, and no tensor (batch, active, d_in) is ever made.
"""

import warnings
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.core import Indices, Latents, PerLatent, PerRow, Values, Vectors, Weight, cpu_kernels

# Torch warns once a process that CSR tensors are in beta; nothing here can answer that, so
# let it happen now.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor([0, 1], [0], [1.0], (1, 1))


class Support(NamedTuple):
    """Where a (batch, d_sae) matrix of activations is not zero; int32 indices."""

    row_ends: Int[Tensor, " batch_plus_1"]
    """The entries of row i are `row_ends[i]` up to `row_ends[i + 1]`."""
    columns: Indices
    """Latent of each entry, ascending inside a row."""
    column_ends: Int[Tensor, " d_sae_plus_1"]
    """Entries in the order of latents: those of latent j end before `column_ends[j + 1]`."""
    by_column: Indices
    """int64; which entry, in row order, comes at each place in column order."""
    rows_by_column: Indices
    """Row of each entry, in column order."""
    shape: tuple[int, int]

    def matrix(self, values: Values) -> Latents:
        """Return the sparse matrix that holds `values` (in row order)."""
        return torch.sparse_csr_tensor(
            self.row_ends, self.columns, values, self.shape, check_invariants=False
        )

    def counts(self) -> Int[Tensor, " d_sae"]:
        """In how many rows each latent is active."""
        return self.column_ends.diff()

    def rows(self) -> Indices:
        """Row of each entry, in row order, int64."""
        batch = torch.arange(self.shape[0], device=self.columns.device)
        return batch.repeat_interleave(self.row_ends.diff(), output_size=len(self.columns))

    def ranks(self) -> Indices:
        """How many entries of the same row come before each entry, int64."""
        rows = self.rows()
        return torch.arange(len(rows), device=rows.device) - self.row_ends[rows]

    def by_level(self, levels: "Levels") -> tuple["Support", Indices | None]:
        """Return the support with each row cut into one row a level: (batch · levels, d_sae).

        And which entry comes at each place of its row order; None if they keep their order.
        """
        (batch, d_sae), n = self.shape, levels.weights.shape[-1]
        rows, columns, by_column = (
            self.rows() * n + levels.of_entries,
            self.columns,
            self.by_column,
        )
        rows_by_column, order = rows.int()[by_column], None
        if not levels.ascending:
            rows, order = torch.sort(rows, stable=True)
            columns, by_column = columns[order], inverse(order)[by_column]
        ends = torch.searchsorted(
            rows, torch.arange(batch * n + 1, device=rows.device), out_int32=True
        )
        shape = (batch * n, d_sae)
        split = Support(ends, columns, self.column_ends, by_column, rows_by_column, shape)
        return split, order


class Levels(NamedTuple):
    """Nested reconstructions of a row: level g decodes the entries of levels up to g."""

    of_entries: Indices
    """Level of each entry, in row order."""
    weights: Float[Tensor, "*batch levels"]
    """What the squared error of each level weighs in the loss, if need be in each row."""
    ascending: bool = True
    """Whether levels rise within each row, so that its entries are in their order already."""
    detached: bool = False
    """Whether the error of a level before the last one teaches what that level adds alone.

    What earlier levels decode to then counts as given, so gradients of level g's error reach
    its own entries only, and those of the last level's all entries. Gradients of the target
    are those of the first and the last level's errors.
    """
    workspace: Float[Tensor, "batch levels d_out"] | None = None
    """Memory for gradients, to be left alone until the backward pass is over: fresh memory
    costs more than the sums."""


def inverse(order: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Return at which place of a permutation each number stands."""
    places = torch.arange(len(order), device=order.device)
    return torch.empty_like(order).scatter_(0, order, places)


def support_of(counts: PerRow, columns: Indices, d_sae: int) -> Support:
    """From the number of entries of each row and their columns, ascending in each row."""
    batch = len(counts)
    row_ends = torch.zeros(batch + 1, dtype=torch.int32, device=columns.device)
    row_ends[1:] = counts.cumsum(0)
    ordered, by_column = torch.sort(columns, stable=True)
    # Not bincount, which takes longer than the sort.
    latents = torch.arange(d_sae + 1, dtype=torch.int32, device=columns.device)
    column_ends = torch.searchsorted(ordered, latents, out_int32=True)
    rows = torch.arange(batch, dtype=torch.int32, device=columns.device)
    rows = rows.repeat_interleave(counts, output_size=len(columns))
    return Support(row_ends, columns, column_ends, by_column, rows[by_column], (batch, d_sae))


def decode_on(support: Support, values: Values, weight: Weight) -> Vectors:
    """Return what activations with `values` on `support` add up to, without gradients."""
    if values.is_cuda:
        from sae.core import triton_kernels

        return triton_kernels.decode(support.row_ends, support.columns, values, weight)
    return torch.nn.functional.embedding_bag(
        support.columns,
        weight,
        support.row_ends,
        mode="sum",
        per_sample_weights=values,
        include_last_offset=True,
    )


def _transposed_times_dense(support: Support, values: Tensor, dense: Tensor) -> Tensor:
    ends, rows = support.column_ends, support.rows_by_column
    values = values[support.by_column]
    if values.is_cuda:
        from sae.core import triton_kernels

        return triton_kernels.transposed_product(ends, rows, values, dense)
    return cpu_kernels.transposed_product(ends, rows, values, dense)


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
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = decode_on(support, grads[0], weight)
        grad_bias = torch.zeros_like(weight[:, 0]).index_add_(0, support.columns, grads[0])
        return grad_x, _transposed_times_dense(support, grads[0], x), grad_bias, None, None


class _Reconstruct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        weight: Tensor,
        target: Tensor,
        support: Support,
        levels: Levels,
        workspace: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        weights = levels.weights
        shares = (weights / len(target)).expand(workspace.shape[:2]).contiguous()
        if values.is_cuda:
            from sae.core import triton_kernels

            # What the kernel for the CPU does, by prefix and suffix sums.
            parts = decode_on(support, values, weight).view_as(workspace)
            errors = parts.cumsum(1) - target[:, None]
            slopes = 2 * shares[:, :, None] * errors
            if levels.detached:
                slopes[:, :-1] += slopes[:, -1:]
                workspace.copy_(slopes)
            else:
                workspace.copy_(slopes.flip(1).cumsum(1).flip(1))
            squares, error = errors.double().square().sum(2), errors[:, -1]
            by_value = triton_kernels.sampled_product(
                support.row_ends, support.columns, workspace.flatten(0, 1), weight
            )
        else:
            entries = support.row_ends, support.columns, values
            squares, error, by_value = cpu_kernels.nested_errors(
                *entries, weight, target, shares, workspace, levels.detached
            )
        mse = (squares.sum(0) / len(target)).to(values.dtype)
        if weights.dim() == 1:
            loss = mse @ weights
        else:
            loss = ((squares * weights).sum() / len(target)).to(values.dtype)
        ctx.save_for_backward(values, by_value, workspace)
        ctx.support = support
        ctx.mark_non_differentiable(mse, error)
        return loss, mse, error

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, by_value, gradients = ctx.saved_tensors
        grad_target = gradients[:, 0] * -grads[0] if ctx.needs_input_grad[2] else None
        grad_weight = None
        if ctx.needs_input_grad[1]:
            values = values * grads[0]
            grad_weight = _transposed_times_dense(ctx.support, values, gradients.flatten(0, 1))
        return by_value * grads[0], grad_weight, grad_target, None, None, None


def encode_on(
    support: Support, values: Values, x: Vectors, weight: Weight, bias: PerLatent
) -> Values:
    """`x @ weight.T + bias` on `support`, with gradients to `x`, `weight` and `bias`.

    The values are given, not computed, because the caller had to compute them to choose the
    support; no gradient flows through that argument.
    """
    read: Tensor = _Encode.apply(x, weight, bias, values.detach(), support)  # type: ignore[no-untyped-call]
    return read


class Reconstruction(NamedTuple):
    """How far sparse activations are from what they stand for."""

    loss: Float[Tensor, ""]
    """`Σ_g w_g ‖x̂_g − x‖²`, averaged over the batch; gradients flow through it."""
    mse: Float[Tensor, " levels"]
    """`‖x̂_g − x‖²` of each level, averaged over the batch; detached."""
    error: Vectors
    """`x̂ − x` of the last level; detached."""


def reconstruct_on(
    support: Support,
    values: Values,
    weight: Weight,
    target: Vectors,
    levels: Levels | None = None,
) -> Reconstruction:
    """Decode sparse activations and compare with `target`, one pass for all nested levels.

    `x̂_g` is the product of the activations of levels up to g with their rows of `weight`;
    without levels there is one, of all latents, with weight one. Nested reconstructions are
    prefix sums of what each level adds, their gradients suffix sums of the levels' errors, so
    levels cost sums over (batch, levels, d_out) and no products. Gradients reach `values`,
    `weight` and `target`.
    """
    if levels is None:
        levels = Levels(support.columns, target.new_ones(1))
    else:
        support, order = support.by_level(levels)
        values = values if order is None else values[order]
    workspace = levels.workspace
    if workspace is None:
        shape = len(target), levels.weights.shape[-1], target.shape[1]
        workspace = target.new_empty(shape)
    loss, mse, error = _Reconstruct.apply(  # type: ignore[no-untyped-call]
        values, weight, target, support, levels, workspace
    )
    return Reconstruction(loss, mse, error)
