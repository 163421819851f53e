"""What an autoencoder is trained to minimise, as functions of tensors."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def squared_error(
    x: Float[Tensor, "batch d_in"], x_hat: Float[Tensor, "batch d_in"]
) -> Float[Tensor, ""]:
    """Summed over the width, averaged over the batch (SAELens's `losses/mse_loss`)."""
    return (x_hat - x).square().sum(-1).mean()


def weighted_l1(
    feature_acts: Float[Tensor, "batch d_sae"], w_dec: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, ""]:
    """`Σ_j f_j ‖W_dec,j‖`, averaged over the batch; `feature_acts` must not be negative.

    Weighing by the decoder norm makes the penalty blind to the scale that an encoder and a
    decoder can trade, so no unit-norm constraint is needed (Anthropic, April 2024 update).
    """
    penalty: Tensor = feature_acts.mean(0) @ torch.linalg.vector_norm(w_dec, dim=1)
    return penalty


def weighted_l1_on(
    values: Float[Tensor, " nnz"],
    columns: Int[Tensor, " nnz"],
    w_dec: Float[Tensor, "d_sae d_in"],
    batch: int,
) -> Float[Tensor, ""]:
    """`weighted_l1` of sparse activations with `values` at latents `columns`."""
    sums = torch.zeros_like(w_dec[:, 0]).index_add(0, columns, values)
    penalty: Tensor = sums @ torch.linalg.vector_norm(w_dec, dim=1) / batch
    return penalty
