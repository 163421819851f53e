"""The algebra between what tools mean by the same weights.

A `Dictionary` reads raw activations: `pre = x @ W_enc + b_enc`. Others subtract the decoder's
bias first, scale activations to a common norm, or weigh what decides by the norms of the
decoder's rows. Each of these is exact in one direction or both.
"""

import torch
from torch import Tensor

Weights = dict[str, Tensor]
"""By the names of a `Dictionary`'s fields, with its shapes."""

# A threshold that nothing passes, and that stays finite when it is scaled or its logarithm
# is taken and undone.
_NEVER = 1e30
# The norm of a row that has none: too short to change a reconstruction in float32, and long
# enough that products with it keep all their digits.
_NO_NORM = 1e-15
# How far from one norms of float32 rows are when they have been divided by them.
_ROUNDING = 1e-6


def without_b_dec(weights: Weights) -> Weights:
    """Weights whose biases take the raw `x`, of some whose biases take `x - b_dec`."""
    return _moved(weights, -1)


def with_b_dec(weights: Weights) -> Weights:
    """Weights whose biases take `x - b_dec`, of some whose biases take the raw `x`."""
    return _moved(weights, 1)


def _moved(weights: Weights, sign: int) -> Weights:
    shift = sign * (weights["b_dec"] @ weights["W_enc"])
    moved = {**weights, "b_enc": weights["b_enc"] + shift}
    if "b_mag" in weights:
        moved["b_mag"] = weights["b_mag"] + weights["r_mag"].exp() * shift
    return moved


def scaled_by_decoder_norm(weights: Weights) -> Weights:
    """Weights of unit decoder rows, whose activations are those of before times the norms.

    Which latents fire does not change, but for top-k: it sees activations times the norms.
    """
    norms = weights["W_dec"].norm(dim=-1)
    scaled: Weights = {
        name: weights[name] * norms
        for name in ("W_enc", "b_enc", "b_mag", "threshold")
        if name in weights
    }
    # A row of zeros stays one: its latent never fires.
    rows = torch.nn.functional.normalize(weights["W_dec"], dim=-1, eps=1e-30)
    return {**weights, **scaled, "W_dec": rows}


def has_unit_rows(W_dec: Tensor) -> bool:
    """Whether all rows of a decoder are of norm one, to the rounding of float32."""
    norms = W_dec.detach().float().norm(dim=-1)
    return bool(((norms - 1).abs() <= _ROUNDING).all())


def with_directions(weights: Weights) -> Weights:
    """Weights whose decoder has no row of zeros, which could not be made one of norm one.

    What stands in their place is too short to change a reconstruction.
    """
    W_dec = weights["W_dec"].clone()
    W_dec[W_dec.norm(dim=-1) < _NO_NORM, 0] = _NO_NORM
    return {**weights, "W_dec": W_dec}


def for_raw_activations(weights: Weights, scale_in: float, scale_out: float) -> Weights:
    """Weights for raw activations, of some that read `scale_in * x`, write `scale_out * y`.

    With s = scale_in and t = scale_out: W_enc stays, b_enc / s, threshold / s, W_dec * s / t,
    b_dec / t; the activations are those of before over s. Which latents fire does not change.
    """
    folded = {
        **weights,
        "b_enc": weights["b_enc"] / scale_in,
        "W_dec": weights["W_dec"] * (scale_in / scale_out),
        "b_dec": weights["b_dec"] / scale_out,
    }
    if "threshold" in weights:
        folded["threshold"] = weights["threshold"] / scale_in
    return folded


def threshold_before_norm(threshold: Tensor, W_dec: Tensor) -> Tensor:
    """The threshold of `pre`, (d_sae,), where `pre * |row of W_dec|` is compared to one.

    A row of zeros passes no threshold above 0.
    """
    norms = W_dec.norm(dim=-1)
    return torch.where(norms > 0, threshold / norms, _NEVER).clamp(max=_NEVER)
