"""What a change of a model does to its next-token probabilities, from log-probabilities alone.

All figures are of one position each: averages are taken by whoever has several. `log_probs` are
natural logarithms of next-token probabilities; `own` are the ids of the tokens that a feature
promotes.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

LogProbs = Float[Tensor, "*position vocabulary"]
Figure = Float[Tensor, "*position"]
Own = Int[Tensor, "*#position token"]


def log_mass(log_probs: LogProbs, own: Own) -> Figure:
    """Return the log-probability that the next token is one of `own`.

    The own-token shift of a change is this after it minus this before it, in nats.

    Args:
        log_probs: of next tokens.
        own: ids, the same for all positions or of each.
    """
    found: Tensor = _of_own(log_probs, own).logsumexp(-1)
    return found


def output_score(log_probs: LogProbs, own: Own) -> Figure:
    """Return max p(t) (1 − rank(t) / V) over the own tokens t, ranks from 0 for the likeliest.

    The likeliest own token has the best rank too, so both maxima are of one token. A feature
    that writes one of its tokens for certain has 1, one that writes none of them about 0 (Arad
    et al. 2025, "SAEs are good for steering, if you select the right features").
    """
    best = _of_own(log_probs, own).amax(-1)
    rank = (log_probs > best[..., None]).sum(-1)
    found: Tensor = best.exp() * (1 - rank / log_probs.shape[-1])
    return found


def _of_own(log_probs: LogProbs, own: Own) -> Float[Tensor, "*position token"]:
    return log_probs.gather(-1, own.expand(*log_probs.shape[:-1], own.shape[-1]))


def scores_of_many(
    log_probs: Float[Tensor, "position vocabulary"], own: Int[Tensor, "feature token"]
) -> tuple[Float[Tensor, "position feature"], Float[Tensor, "position feature"]]:
    """Return `output_score` and `log_mass` of the own tokens of many features at once."""
    there = log_probs[:, own.flatten()].reshape(len(log_probs), *own.shape)
    best, size = there.amax(-1), log_probs.shape[-1]
    # One sort serves all features; as many are likelier as stand behind the last of its equals.
    rank = size - torch.searchsorted(_ascending(log_probs), best, right=True)
    return best.exp() * (1 - rank / size), there.logsumexp(-1)


def _ascending(values: LogProbs) -> LogProbs:
    # NumPy sorts a vocabulary with vector instructions, which takes a tenth of torch's time.
    if values.device.type == "cpu" and values.dtype == torch.float32:
        return torch.from_numpy(np.sort(values.numpy(), axis=-1))
    found: Tensor = values.sort(-1).values
    return found


def confidence(log_probs: LogProbs) -> Figure:
    """Return the highest probability of a next token.

    How much a change moves it tells which features steer (Wang et al. 2025, "Does higher
    interpretability imply better utility?").
    """
    found: Tensor = log_probs.amax(-1).exp()
    return found


def cross_entropy(log_probs: LogProbs, following: Int[Tensor, "*position"]) -> Figure:
    """Return −log p of the tokens that really follow, in nats."""
    found: Tensor = -log_probs.gather(-1, following[..., None]).squeeze(-1)
    return found


def kl_divergence(before: Float[Tensor, "*#position vocabulary"], after: LogProbs) -> Figure:
    """Return KL(before ‖ after) = Σ p_before (log p_before − log p_after), in nats.

    Where the model before the change is calibrated, this is what the change is expected to add
    to cross-entropy: Σ p_before (−log p_after + log p_before). It needs no following token, so
    that it varies far less from text to text.
    """
    found: Tensor = (before.exp() * (before - after)).sum(-1)
    return found.clamp_min(0)
