"""Description length: bits that a dictionary's account of a row takes (arXiv 2410.11179).

Activations are rounded to steps of one length for all features, in the unit of the rows: an
activation counts times the norm of its row of `W_dec`. Equal steps spread a given error over
features at the fewest bits. The steps are as long as they can be while the reconstruction keeps
all but `TOLERANCE` of the rows' variance. A code is learned on one half of the rows and spends
its bits on the other half, and the other way round. What the dictionary itself takes to write
down is not counted: it is written once, however many rows follow.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.core import Values
from sae.core.description import EntryCounts, index_bits
from sae.core.select import Active
from sae.dictionary import Dictionary
from sae.evaluation.averages import mean_finding
from sae.findings import Finding

TOLERANCE = 0.01
"""Share of the rows' variance that rounding the activations may cost."""
_MOST_BINS = 1024
_SAMPLE = 4096
"""Rows that the length of a step is chosen on."""
_HALVINGS = 16
_PARTS = 64
"""Stretches of text that are drawn with replacement for the interval: rows of one stretch are
alike."""

Rows = Float[Tensor, "row d_in"]
Targets = Float[Tensor, "row d_out"]


@dataclass(frozen=True, slots=True)
class Description:
    """What a code makes of rows."""

    bits: Float[Tensor, " row"]
    """Bits of each row, float64, by a code that was learned on the other half."""
    index_bits: Float[Tensor, " row"]
    """Bits that say which features of a row are active if all are equally frequent."""
    explained_variance: float
    """What the reconstruction from rounded activations keeps."""
    step: float
    """Length that activations are rounded to, in the unit of the rows."""


def description_length(
    dictionary: Dictionary,
    x: Rows,
    y: Targets | None = None,
    *,
    tolerance: float = TOLERANCE,
    batch_size: int = 4096,
) -> list[Finding]:
    """Return the bits of a row, beside those of a dense code that is as faithful.

    Args:
        x: rows that nobody trained on, in the order of their text.
        y: what a transcoder is to reconstruct of them.
        tolerance: see `TOLERANCE`.
    """
    target = x if y is None else y
    found = describe(dictionary, x, y, tolerance=tolerance, batch_size=batch_size)
    kept = found.explained_variance
    if kept <= 0:
        why = "its reconstruction is no better than the mean row, so there is nothing to code"
        return [Finding(key="description_length", why_not=why)]
    return [
        mean_finding(
            "description_length",
            _over_text(found.bits),
            n=len(x),
            unit="rows",
            floor=dense_bits(target, kept),
            floor_of=f"principal components at the same explained variance ({kept:.3f})",
        ),
        mean_finding(
            "description_length_index", _over_text(found.index_bits), n=len(x), unit="rows"
        ),
        Finding(key="description_length_kept", value=kept, n=len(x), unit="rows"),
    ]


def describe(
    dictionary: Dictionary,
    x: Rows,
    y: Targets | None = None,
    *,
    tolerance: float = TOLERANCE,
    step: float | None = None,
    batch_size: int = 4096,
) -> Description:
    """Write rows down in a dictionary's features.

    Args:
        step: length that activations are rounded to; by default as `tolerance` allows.
    """
    entries = _Entries(dictionary, x, x if y is None else y, batch_size)
    if step is None:
        step = entries.longest_step(tolerance)
    n_bins = min(_MOST_BINS, 1 + int(entries.highest / step))
    lengths = []
    halves = entries.halves()
    for learned, coded in (halves, halves[::-1]):
        counts = EntryCounts(dictionary.d_sae, n_bins)
        for active in learned:
            counts.add(active.support.shape[0], *entries.binned(active, step, n_bins))
        code = counts.code()
        lengths.append(
            torch.cat([_row_bits(active, code.bits, entries, step, n_bins) for active in coded])
            + code.silent
        )
    n_active = torch.cat([active.support.row_ends.diff() for active in entries.parts])
    return Description(
        bits=torch.cat(lengths[::-1]),
        index_bits=index_bits(n_active.cpu(), dictionary.d_sae),
        explained_variance=entries.explained_variance(step, n_bins),
        step=step,
    )


class _Entries:
    """What a dictionary finds in rows, batch by batch, no batch on both sides of the middle."""

    def __init__(
        self, dictionary: Dictionary, x: Rows, target: Targets, batch_size: int
    ) -> None:
        self.dictionary, middle = dictionary, len(x) // 2
        device = dictionary.W_enc.device
        sizes = [
            len(one)
            for half in (x[:middle], x[middle:])
            for one in torch.split(half, batch_size)
        ]
        self.x = [one.to(device).float() for one in torch.split(x, sizes)]
        self.target = [one.to(device).float() for one in torch.split(target, sizes)]
        self.parts = [dictionary.encode_sparse(one) for one in self.x]
        self._n_first = -(-middle // batch_size)
        norms = torch.linalg.vector_norm(dictionary.W_dec.float(), dim=1)
        self.norms = norms.clamp_min(torch.finfo(norms.dtype).tiny)
        lengths = [self._lengths(part) for part in self.parts]
        self.highest = max(float(one.max()) if len(one) else 0.0 for one in lengths)

    def halves(self) -> tuple[list[Active], list[Active]]:
        """Return what was found in the rows before the middle, and in those after it."""
        return self.parts[: self._n_first], self.parts[self._n_first :]

    def _lengths(self, active: Active) -> Values:
        lengths: Values = active.values.float() * self.norms[active.support.columns.long()]
        return lengths

    def binned(
        self, active: Active, step: float, n_bins: int
    ) -> tuple[Int[Tensor, " nnz"], Int[Tensor, " nnz"]]:
        """Return column and bin of each active entry; what is past the last bin is in it."""
        bins = (self._lengths(active) / step).long().clamp_max(n_bins - 1)
        return active.support.columns.cpu(), bins.cpu()

    def explained_variance(
        self, step: float | None, n_bins: int = _MOST_BINS, n_parts: int | None = None
    ) -> float:
        """Return the share of variance that is kept; without a step nothing is rounded."""
        error, squares, total, n = 0.0, 0.0, torch.zeros(()).double(), 0
        for x, y, active in list(zip(self.x, self.target, self.parts, strict=True))[:n_parts]:
            values = active.values
            if step is not None:
                columns, bins = self.binned(active, step, n_bins)
                middles = (bins.to(values.device) + 0.5) * step
                values = (middles / self.norms[columns.to(values.device).long()]).to(values)
            y_hat = self.dictionary.reconstruct_sparse(x, Active(active.support, values))
            error += float((y_hat.double() - y.double()).square().sum())
            squares += float(y.double().square().sum())
            total, n = total + y.double().sum(0).cpu(), n + len(y)
        variance = squares - float(total.square().sum()) / n
        return 1 - error / variance if variance > 0 else 0.0

    def longest_step(self, tolerance: float) -> float:
        """Return the longest step that costs at most `tolerance` of the variance."""
        sizes = torch.tensor([len(one) for one in self.x]).cumsum(0)
        n_parts = int((sizes < _SAMPLE).sum()) + 1
        wanted = self.explained_variance(None, n_parts=n_parts) - tolerance
        if self.highest == 0:
            return 1.0

        def faithful(step: float) -> bool:
            return self.explained_variance(step, n_parts=n_parts) >= wanted

        return _longest(faithful, self.highest / _MOST_BINS, 2 * self.highest)


def _longest(faithful: Callable[[float], bool], low: float, high: float) -> float:
    """Return about the longest step that is faithful, by halving on a logarithmic scale."""
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if faithful(middle) else (low, middle)
    return low


def _row_bits(
    active: Active,
    bits: Callable[[Tensor, Tensor], Tensor],
    entries: _Entries,
    step: float,
    n_bins: int,
) -> Float[Tensor, " row"]:
    """Return the bits that the active entries of each row add to its silent ones'."""
    found = torch.zeros(active.support.shape[0], dtype=torch.float64)
    each = bits(*entries.binned(active, step, n_bins))
    return found.index_add_(0, active.support.rows().cpu(), each)


def dense_bits(rows: Targets, explained_variance: float) -> float:
    """Return the bits of a row in rounded principal components that keep that much variance.

    Components and code are learned on one half of the rows and spend bits on the other. One
    step for all components gives those of small variance no bits, which is the best that can be
    done for independent components (reverse water-filling, Cover and Thomas 2006, 10.3.3).
    """
    middle, rows = len(rows) // 2, rows.double().cpu()
    halves = rows[:middle], rows[middle:]
    lengths = [_dense_bits(*both, explained_variance) for both in (halves, halves[::-1])]
    n = len(halves[1]), len(halves[0])
    return sum(each * m for each, m in zip(lengths, n, strict=True)) / sum(n)


def _dense_bits(learned: Targets, coded: Targets, explained_variance: float) -> float:
    mean = learned.mean(0)
    _, basis = torch.linalg.eigh((learned - mean).t() @ (learned - mean))
    sides = [(one - mean) @ basis for one in (learned, coded)]
    variance = float((coded - coded.mean(0)).square().sum())
    allowed = (1 - explained_variance) * variance

    def faithful(step: float) -> bool:
        kept = (sides[1] / step).round() * step
        return float((sides[1] - kept).square().sum()) <= allowed

    highest = float(max(side.abs().max() for side in sides))
    step = _longest(faithful, highest / _MOST_BINS, 2 * highest)
    half = 1 + int(highest / step)
    columns = torch.arange(basis.shape[1]).expand(len(learned), -1)
    bins = [(side / step).round().long() + half for side in sides]
    counts = EntryCounts(basis.shape[1], 2 * half + 1)
    counts.add(len(learned), columns.flatten(), bins[0].flatten())
    code = counts.code()
    columns = torch.arange(basis.shape[1]).expand(len(coded), -1)
    total = float(code.bits(columns.flatten(), bins[1].flatten()).sum())
    return code.silent + total / len(coded)


def _over_text(bits: Float[Tensor, " row"]) -> Float[Tensor, " part"]:
    """Return the mean of each of equally long stretches, whose rows are alike."""
    parts: Sequence[Tensor] = bits.tensor_split(min(_PARTS, len(bits)))
    return torch.stack([part.mean() for part in parts])
