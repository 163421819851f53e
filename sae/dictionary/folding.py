"""The algebra between what tools mean by the same weights.

A `Dictionary` reads raw activations: `pre = x @ W_enc + b_enc`. Others subtract the decoder's
bias first, scale activations to a common norm, or weigh what decides by the norms of the
decoder's rows. Each of these is exact in one direction or both.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from sae.dictionary.dictionary import Dictionary

# A threshold that nothing passes, and that stays finite when it is scaled or its logarithm
# is taken and undone.
_NEVER = 1e30
# The norm of a row that has none: too short to change a reconstruction in float32, and long
# enough that products with it keep all their digits.
_NO_NORM = 1e-15
# How far from one norms of float32 rows are when they have been divided by them.
_ROUNDING = 1e-6


def without_b_dec(dictionary: Dictionary) -> Dictionary:
    """Return one whose biases take the raw `x`, of one whose biases take `x - b_dec`."""
    return _moved(dictionary, -1)


def with_b_dec(dictionary: Dictionary) -> Dictionary:
    """Return one whose biases take `x - b_dec`, of one whose biases take the raw `x`."""
    return _moved(dictionary, 1)


def _moved(dictionary: Dictionary, sign: int) -> Dictionary:
    shift = sign * (dictionary.b_dec @ dictionary.W_enc)
    activation = dictionary.activation.shifted(shift)
    return dictionary.with_weights({"b_enc": dictionary.b_enc + shift}, activation)


def scaled_by_decoder_norm(dictionary: Dictionary) -> Dictionary:
    """Return one of unit decoder rows, whose activations are those of before times the norms.

    Which latents fire does not change, but for top-k: it sees activations times the norms.
    """
    norms = dictionary.W_dec.norm(dim=-1)
    weights = {
        "W_enc": dictionary.W_enc * norms,
        "b_enc": dictionary.b_enc * norms,
        # A row of zeros stays one: its latent never fires.
        "W_dec": torch.nn.functional.normalize(dictionary.W_dec, dim=-1, eps=1e-30),
    }
    return dictionary.with_weights(weights, dictionary.activation.scaled(norms))


def has_unit_rows(W_dec: Float[Tensor, "d_sae d_out"]) -> bool:
    """Return whether all rows of a decoder are of norm one, to the rounding of float32."""
    norms = W_dec.detach().float().norm(dim=-1)
    return bool(((norms - 1).abs() <= _ROUNDING).all())


def with_directions(dictionary: Dictionary) -> Dictionary:
    """Return one whose decoder has no row of zeros, which could not be made one of norm one.

    What stands in their place is too short to change a reconstruction.
    """
    W_dec = dictionary.W_dec.clone()
    W_dec[W_dec.norm(dim=-1) < _NO_NORM, 0] = _NO_NORM
    return dictionary.with_weights({"W_dec": W_dec})


def for_raw_activations(
    dictionary: Dictionary, scale_in: float, scale_out: float
) -> Dictionary:
    """Return one for raw activations, of one that reads `scale_in * x`, writes `scale_out * y`.

    With s = scale_in and t = scale_out: W_enc stays, b_enc / s, threshold / s, W_dec * s / t,
    b_dec / t; the activations are those of before over s. Which latents fire does not change.
    """
    weights = {
        "b_enc": dictionary.b_enc / scale_in,
        "W_dec": dictionary.W_dec * (scale_in / scale_out),
        "b_dec": dictionary.b_dec / scale_out,
    }
    return dictionary.with_weights(weights, dictionary.activation.scaled(1 / scale_in))


def with_input_scale(dictionary: Dictionary, factor: float) -> Dictionary:
    """Return one for raw activations, of one that reads and writes `factor` times them.

    Activations stay as they are, as SAELens folds it: W_enc * s, W_dec / s, b_dec / s.
    """
    weights = {
        "W_enc": dictionary.W_enc * factor,
        "W_dec": dictionary.W_dec / factor,
        "b_dec": dictionary.b_dec / factor,
    }
    return dictionary.with_weights(weights)


def threshold_before_norm(
    threshold: Float[Tensor, " d_sae"], W_dec: Float[Tensor, "d_sae d_out"]
) -> Float[Tensor, " d_sae"]:
    """Return thresholds of `pre`, where `pre * |row of W_dec|` is compared to `threshold`.

    A row of zeros passes no threshold above 0.
    """
    norms = W_dec.norm(dim=-1)
    return torch.where(norms > 0, threshold / norms, _NEVER).clamp(max=_NEVER)
