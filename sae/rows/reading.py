"""What a model reads, and where its activations are taken: a harvest without its cache."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from sae.base import digest, require, require_at_least
from sae.cache.stored import STORED_DTYPES
from sae.models import (
    LanguageModel,
    ModelConfig,
    Site,
    find_site,
    load_skeleton,
    read_activations,
)
from sae.models.positions import usable_positions
from sae.models.probe import probe
from sae.text.source import DataConfig

# 8 sequences of 128 are the fastest on two cores (docs/log.md). A GPU takes a whole chunk.
_CPU_TOKENS, _GPU_TOKENS = 1024, 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """Which model reads which text, and where its activations are taken."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """Language model whose activations are read."""
    data: DataConfig = field(default_factory=DataConfig)
    """Text that the model reads."""
    hook_names: list[str] = field(default_factory=lambda: ["blocks.9.hook_resid_post"])
    """Places in the model to read, as TransformerLens names or module paths. Several places
    need only one forward pass."""
    context_size: int = 128
    """Number of tokens in a sequence."""
    one_document_a_row: bool = False
    """Begin a new sequence with every document and pad it, instead of packing documents end to
    end."""
    dtype: str = "float16"
    """Precision in which activations are stored: float16, bfloat16, float32, or int8 with a
    scale for each token."""
    batch_size: int | None = None
    """Number of sequences in a forward pass. By default it is about a thousand tokens on a CPU,
    which fit into its caches, and a whole chunk on a GPU."""
    text_workers: int | None = None
    """Number of processes that tokenise text ahead of the model. By default it is a quarter of
    the cores, and at most 8."""

    def __post_init__(self) -> None:
        require(bool(self.hook_names), "hook_names is empty; name at least one hook")
        twice = {name for name in self.hook_names if self.hook_names.count(name) > 1}
        require(
            not twice, f"hook_names holds {', '.join(sorted(twice))} twice; name each one once"
        )
        require_at_least(self, context_size=2, batch_size=1)
        require(
            self.dtype in STORED_DTYPES,
            f"dtype={self.dtype} is unknown; choose one of {', '.join(STORED_DTYPES)}",
        )
        require(
            self.text_workers is None or self.text_workers >= 0,
            f"text_workers={self.text_workers} is negative; give 0 to tokenise in the main "
            "process",
        )

    def sequences_a_batch(self, device: torch.device) -> int:
        """Return how many sequences a forward pass has, as asked for or as suits the device."""
        most = _CPU_TOKENS if device.type == "cpu" else _GPU_TOKENS
        return self.batch_size or max(1, most // self.context_size)


def check_sites(reading: Reading) -> None:
    """Refuse unknown or repeated places and too long sequences before weights are loaded."""
    skeleton = load_skeleton(reading.model)
    names = reading.hook_names
    # What does not run on made-up weights is asked for its names when it is loaded.
    if probe(skeleton).failure is None:
        names = [find_site(skeleton, name).hook_name for name in names]
    twice = {name for name in names if names.count(name) > 1}
    require(not twice, f"hook_names names {', '.join(sorted(twice))} twice; name each one once")
    _check_length(reading, usable_positions(skeleton))


def _check_length(reading: Reading, longest: int | None) -> None:
    require(
        longest is None or reading.context_size <= longest,
        f"context_size={reading.context_size} is longer than the model's {longest} positions",
    )


def sites_of(reading: Reading, model: LanguageModel) -> list[Site]:
    """Return the sites that are read, in the order of their names, without their widths.

    Raises:
        UserError: if there is no such place, or with its weights the model turns out to read
            shorter sequences.
    """
    _check_length(reading, model.max_positions)
    return [find_site(model.module, name) for name in reading.hook_names]


def tokenizer_digest(model: LanguageModel) -> str:
    """Return what identifies the model's tokenizer: a digest of its vocabulary."""
    return digest(model.tokenizer.get_vocab())


def activations(
    tokens: NDArray[np.int32],
    text: NDArray[np.bool_],
    model: LanguageModel,
    sites: Sequence[Site],
    batch_size: int,
) -> list[dict[str, Float[Tensor, "sequence position d_in"]]]:
    """Return activations of some sequences at every site, batch by batch, by hook name.

    `tokens` are ids and `text` says where one is and not padding, (sequence, position) both.
    """
    seen = []
    for at in range(0, len(tokens), batch_size):
        ids = torch.from_numpy(tokens[at : at + batch_size]).long().to(model.device)
        there = torch.from_numpy(text[at : at + batch_size])
        # Padding is masked. Without any the model makes the mask that it was trained with.
        mask = None if bool(there.all()) else there.long().to(model.device)
        seen.append(read_activations(model.module, sites, ids, mask))
    return seen
