"""The activations that a dictionary can have, one file each; this module is their registry."""

from sae.dictionary.activations.base import Activation
from sae.dictionary.activations.gated import Gated
from sae.dictionary.activations.jumprelu import JumpReLU
from sae.dictionary.activations.relu import ReLU
from sae.dictionary.activations.topk import TopK

ACTIVATIONS: dict[str, type[Activation]] = {
    activation.name: activation for activation in (ReLU, JumpReLU, TopK, Gated)
}
"""By SAELens's word for each, which is the `architecture` in `cfg.json`."""

__all__ = ["ACTIVATIONS", "Activation", "Gated", "JumpReLU", "ReLU", "TopK"]
