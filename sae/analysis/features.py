"""One pass over a cache: how often and how strongly every feature fires, and where most."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sae.base.progress import progress
from sae.cache.layout import chunk_slices
from sae.cache.reader import RowSelection
from sae.dictionary import Dictionary

_ROWS_A_PRODUCT = 4096


@dataclass(frozen=True, slots=True)
class FeatureStatistics:
    """Figures of all features over `n_rows` rows; float64 and int64."""

    n_rows: int
    fired: Tensor
    """(d_sae,): rows in which each feature was active."""
    sums: Tensor
    """(d_sae,): sum of activations."""
    top_values: Tensor
    """(d_sae, k): the highest activations, at most one a sequence, descending; 0 for none."""
    top_sequences: Tensor
    """(d_sae, k): the sequences that hold them."""
    top_positions: Tensor
    """(d_sae, k): the positions in those sequences."""

    @property
    def density(self) -> Tensor:
        """Share of the rows in which each feature was active."""
        return self.fired.double() / self.n_rows

    @property
    def mean(self) -> Tensor:
        """Mean activation over the rows where a feature was active; 0 for a dead one."""
        return self.sums / self.fired.clamp_min(1)


class _TopContexts:
    """The `k` sequences in which each feature fires most; the earlier sequence wins a tie."""

    def __init__(self, d_sae: int, k: int, device: torch.device) -> None:
        self.k = k
        self.values = torch.zeros(0, d_sae, device=device)
        self.sequences = torch.zeros(0, d_sae, dtype=torch.int64, device=device)
        self.positions = torch.zeros_like(self.sequences)

    def add(self, first_sequence: int, feature_acts: Tensor) -> None:
        """Count some consecutive sequences, (sequence, position, d_sae)."""
        values, positions = feature_acts.max(dim=1)
        numbers = torch.arange(len(values), device=values.device) + first_sequence
        self.values = torch.cat([self.values, values])
        self.sequences = torch.cat([self.sequences, numbers[:, None].expand_as(positions)])
        self.positions = torch.cat([self.positions, positions])
        if len(self.values) >= 8 * self.k + 256:
            self.shrink()

    def shrink(self) -> None:
        """Keep the best `k`."""
        # Stable, and what came earlier stands earlier: ties fall to the earlier sequence.
        order = self.values.sort(dim=0, descending=True, stable=True).indices[: self.k]
        self.values = self.values.gather(0, order)
        self.sequences = self.sequences.gather(0, order)
        self.positions = self.positions.gather(0, order)


def _masked_acts(
    dictionary: Dictionary, rows: RowSelection, chunk: slice
) -> Iterator[tuple[int, Tensor]]:
    """Activations of the chunk's sequences, a few at a time, zero where rows are left out.

    Whoever reads a chunk a second time gets the same pieces and the same bits.

    Yields:
        The first sequence's index, and (sequence, position, d_sae).
    """
    device = dictionary.W_enc.device
    x = rows.cache.read(rows.hook_name, chunk)
    for piece in chunk_slices(len(x), max(1, _ROWS_A_PRODUCT // x.shape[1])):
        rows_of_piece = x[piece].to(device).float()
        feature_acts = dictionary.encode(rows_of_piece.flatten(0, 1))
        keep = torch.from_numpy(rows.keep[chunk][piece]).to(device)
        acts = feature_acts.view(*rows_of_piece.shape[:2], -1)
        yield chunk.start + piece.start, acts * keep[..., None]


def feature_statistics(
    dictionary: Dictionary, rows: RowSelection, n_contexts: int
) -> FeatureStatistics:
    """Statistics of every feature over the selected rows, each encoded once."""
    device = dictionary.W_enc.device
    fired = torch.zeros(dictionary.d_sae, dtype=torch.int64, device=device)
    sums = torch.zeros(dictionary.d_sae, dtype=torch.float64, device=device)
    top = _TopContexts(dictionary.d_sae, n_contexts, device)
    with progress(rows.n_rows, "features", "tok") as bar:
        for chunk in rows.cache.chunks(rows.hook_name):
            for first_sequence, feature_acts in _masked_acts(dictionary, rows, chunk):
                flat = feature_acts.flatten(0, 1)
                fired += (flat > 0).sum(0)
                sums += flat.sum(0, dtype=torch.float64)
                top.add(first_sequence, feature_acts)
            bar.update(int(rows.keep[chunk].sum()))
    top.shrink()
    return FeatureStatistics(
        rows.n_rows,
        fired.cpu(),
        sums.cpu(),
        top.values.t().contiguous().cpu(),
        top.sequences.t().contiguous().cpu(),
        top.positions.t().contiguous().cpu(),
    )


@dataclass(frozen=True, slots=True)
class Context:
    """A stretch of one sequence around a feature's activation."""

    feature: int
    rank: int
    sequence: int
    position: int
    start: int
    """First position of the stretch."""
    activations: list[float]
    """Of the feature, one a token of the stretch."""


def top_contexts(
    dictionary: Dictionary, rows: RowSelection, statistics: FeatureStatistics, radius: int
) -> list[Context]:
    """The stretches of `radius` tokens on either side of every feature's top activations."""
    wanted = _by_sequence(statistics)
    found = []
    with progress(len(wanted), "contexts", "sequence") as bar:
        for chunk in rows.cache.chunks(rows.hook_name):
            if not any(s in wanted for s in range(chunk.start, chunk.stop)):
                continue
            for first_sequence, feature_acts in _masked_acts(dictionary, rows, chunk):
                for sequence, acts in enumerate(feature_acts.cpu(), first_sequence):
                    for feature, rank, position in wanted.get(sequence, []):
                        start = max(0, position - radius)
                        stretch = acts[start : position + radius + 1, feature].tolist()
                        found.append(Context(feature, rank, sequence, position, start, stretch))
                    bar.update(sequence in wanted)
    return sorted(found, key=lambda c: (c.feature, c.rank))


def _by_sequence(statistics: FeatureStatistics) -> dict[int, list[tuple[int, int, int]]]:
    """For each sequence the (feature, rank, position) that it is a top context of."""
    wanted: dict[int, list[tuple[int, int, int]]] = {}
    live = (statistics.top_values > 0).nonzero().tolist()
    for feature, rank in live:
        sequence = int(statistics.top_sequences[feature, rank])
        position = int(statistics.top_positions[feature, rank])
        wanted.setdefault(sequence, []).append((feature, rank, position))
    return wanted
