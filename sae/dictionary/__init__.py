"""Trained dictionaries: weights, activations, records, and the files that keep them."""

from sae.dictionary.activations import ACTIVATIONS, Activation, Gated, JumpReLU, ReLU, TopK
from sae.dictionary.dictionary import CODER, Dictionary, Place, Port
from sae.dictionary.files import load_dictionary, save_dictionary
from sae.dictionary.metadata import dictionary_of, metadata_of
from sae.dictionary.normalisation import ConstantNorm, LayerNorm, Normalisation
from sae.dictionary.reconstruction import add_reconstruction
from sae.dictionary.record import Record, TrainingRecord

__all__ = [
    "ACTIVATIONS",
    "CODER",
    "Activation",
    "ConstantNorm",
    "Dictionary",
    "Gated",
    "JumpReLU",
    "LayerNorm",
    "Normalisation",
    "Place",
    "Port",
    "ReLU",
    "Record",
    "TopK",
    "TrainingRecord",
    "add_reconstruction",
    "dictionary_of",
    "load_dictionary",
    "metadata_of",
    "save_dictionary",
]
