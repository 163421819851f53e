"""A dictionary made smaller for others, and the file with its directions alone."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save

from sae.architectures import MatryoshkaConfig
from sae.base import atomic_path, require
from sae.dictionary import Dictionary
from sae.dictionary.storage import FULL, as_loaded, packed

DIRECTIONS_FILE = "decoder.safetensors"


@dataclass(frozen=True, slots=True)
class Smaller:
    """A dictionary as it is exported."""

    dictionary: Dictionary
    kept: NDArray[np.int64]
    """Features that are left, (n_kept,), by the numbers that they had before."""


def smaller(
    dictionary: Dictionary, dtype: str, n_active: NDArray[np.int64] | None = None
) -> Smaller:
    """Store a dictionary in a smaller type, or without the features that never fired.

    Where neither changes anything, it is the same dictionary.

    Args:
        n_active: rows in which each feature fired, (d_sae,); with None all features stay.

    Raises:
        UserError: if no feature ever fired, or a weight is beyond the type.
    """
    kept = np.arange(dictionary.d_sae) if n_active is None else n_active.nonzero()[0]
    require(
        len(kept) > 0,
        "drop_dead=true would leave nothing, since no feature fired; export without it",
    )
    small = dictionary.of_latents(torch.from_numpy(kept))
    return Smaller(small if dtype == FULL else as_loaded(small, dtype), kept)


def nested_widths(dictionary: Dictionary, kept: NDArray[np.int64]) -> tuple[int, ...]:
    """How many of the latents `kept` lie in each inner level of a Matryoshka dictionary.

    Empty for one that is none, or is no longer as wide as it was trained.

    Args:
        kept: their numbers in `dictionary`, rising.
    """
    training = dictionary.record.training
    if training is None or training.architecture != MatryoshkaConfig.architecture:
        return ()
    if training.sae.get("d_sae") != dictionary.d_sae:
        return ()
    names = ("d_sae", "k", "matryoshka_widths")
    settings: dict[str, Any] = {name: training.sae[name] for name in names}
    widths = MatryoshkaConfig(**settings).level_widths
    found = set(np.searchsorted(kept, widths).tolist()) - {0, len(kept)}
    return tuple(sorted(found))


def save_directions(dictionary: Dictionary, folder: Path, dtype: str) -> None:
    """Write what the decoder adds to the activations: `W_dec` (d_sae, d_out) and `b_dec`.

    The file's metadata has `sae_atlas`, JSON with `model_name` and the `hook_name` that they
    are added to.
    """
    tensors = {"W_dec": dictionary.W_dec, "b_dec": dictionary.b_dec}
    place = {"model_name": dictionary.model_name, "hook_name": dictionary.hook_name_out}
    # One entry: several would come in another order each time, and so would the bytes.
    about = {"sae_atlas": json.dumps(place, ensure_ascii=False)}
    with atomic_path(folder / DIRECTIONS_FILE) as temporary:
        temporary.write_bytes(save(packed(tensors, dtype), metadata=about))
