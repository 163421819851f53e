"""Trained dictionaries: weights, activations, records, and the files that keep them."""

from sae.dictionary.activations import ACTIVATIONS, Activation, Gated, JumpReLU, ReLU, TopK
from sae.dictionary.dictionary import CODER, Dictionary, Place, Port
from sae.dictionary.record import Record

__all__ = [
    "ACTIVATIONS",
    "CODER",
    "Activation",
    "Dictionary",
    "Gated",
    "JumpReLU",
    "Place",
    "Port",
    "ReLU",
    "Record",
    "TopK",
]
