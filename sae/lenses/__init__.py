"""What a model would predict next from its residual stream, after each of its blocks.

A logit lens hands the stream of a block straight to the model's own tail: final norm, head and
soft cap. A tuned lens first maps it to where the stream after the last block would be, by one
affine map a layer that is fitted to activations of a cache. A Patchscope (`patchscope`) has the
model itself say in words what a hidden state, or the direction of a feature, is.
"""

from sae.lenses.config import LensConfig
from sae.lenses.fit import CachedStreams, cached_streams, fit_tuned
from sae.lenses.patchscope import Question, source_of
from sae.lenses.patchscope_asked import (
    SCALES,
    Patchscopes,
    ask_of_feature,
    ask_of_state,
    ask_of_token,
    places_of_state,
)
from sae.lenses.readout import LENS, read_lens
from sae.lenses.streams import check_before_loading
from sae.lenses.tuned import TunedLens, fitted_digest, load_tuned

__all__ = [
    "LENS",
    "SCALES",
    "CachedStreams",
    "LensConfig",
    "Patchscopes",
    "Question",
    "TunedLens",
    "ask_of_feature",
    "ask_of_state",
    "ask_of_token",
    "cached_streams",
    "check_before_loading",
    "fit_tuned",
    "fitted_digest",
    "load_tuned",
    "places_of_state",
    "read_lens",
    "source_of",
]
