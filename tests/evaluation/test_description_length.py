import math

import pytest
import torch

from sae.core.description import EntryCounts, index_bits
from sae.dictionary import Dictionary
from sae.evaluation.description_length import dense_bits, describe, description_length

WIDTH = 24


def identity(width: int = WIDTH) -> Dictionary:
    """A dictionary whose features are the rows' own coordinates."""
    eye, zero = torch.eye(width), torch.zeros(width)
    return Dictionary.from_weights(eye, zero, eye, zero)


def planted(n: int, p: torch.Tensor, levels: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Rows whose coordinate j is active with p_j, at one of `levels_j` middles of bins."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(n, len(p), generator=generator)
    which = torch.rand(n, len(p), generator=generator) * levels
    return (drawn < p) * (which.floor() + 0.5)


def entropy(p: torch.Tensor, levels: torch.Tensor) -> float:
    p, levels = p.double(), levels.double()
    binary = -(p * p.log2() + (1 - p) * (1 - p).log2())
    return float((binary + p * levels.log2()).sum())


def source() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.linspace(0.02, 0.6, WIDTH), torch.arange(WIDTH) % 5 + 1


def test_the_length_of_a_planted_source_is_its_entropy():
    p, levels = source()
    rows = planted(30_000, p, levels)
    found = describe(identity(), rows, step=1.0)
    assert found.explained_variance == pytest.approx(1, abs=1e-6)
    assert float(found.bits.mean()) == pytest.approx(entropy(p, levels), rel=0.01)


def test_batches_of_another_size_change_nothing():
    p, levels = source()
    rows = planted(3_000, p, levels) + 0.1
    one, other = (describe(identity(), rows, batch_size=size) for size in (4096, 257))
    assert one.step == pytest.approx(other.step, rel=1e-6)
    torch.testing.assert_close(one.bits, other.bits)
    assert one.explained_variance == pytest.approx(other.explained_variance, abs=1e-9)


def test_the_unit_of_activations_changes_nothing():
    p, levels = source()
    rows, plain = planted(2_000, p, levels), identity()
    gains = torch.linspace(0.1, 10, WIDTH)
    scaled = plain.with_weights(
        {"W_enc": plain.W_enc * gains, "W_dec": plain.W_dec / gains[:, None]}
    )
    torch.testing.assert_close(
        describe(scaled, rows).bits, describe(plain, rows).bits, rtol=1e-3, atol=1e-3
    )


def test_rounding_costs_no_more_variance_than_is_said():
    rows = torch.randn(4_000, WIDTH, generator=torch.Generator().manual_seed(1)).abs()
    for tolerance in (0.05, 0.002):
        found = describe(identity(), rows, tolerance=tolerance)
        assert 1 - 1.05 * tolerance < found.explained_variance < 1 - 0.8 * tolerance


def test_what_is_coded_was_not_learned_from():
    # Learned and coded on one half, this code would take H(p) at most; the halves differ.
    rows = torch.zeros(2_000, 2)
    rows[:1000, 0] = 1
    rows[1000:, 1] = 1
    found = describe(identity(2), rows, step=1.0)
    assert float(found.bits.mean()) > 10


def test_fewer_active_features_take_fewer_bits_and_the_findings_say_what_beside():
    p, levels = source()
    rows = planted(6_000, p / 4, levels)
    turn, _ = torch.linalg.qr(
        torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(2))
    )
    both, zero = torch.cat([turn, -turn], 1), torch.zeros(2 * WIDTH)
    turned = Dictionary.from_weights(both, zero, both.t(), torch.zeros(WIDTH))
    sparse, dense = (description_length(one, rows) for one in (identity(), turned))
    assert sparse[0].value < 0.5 * dense[0].value
    for length, index, kept in (sparse, dense):
        assert length.low < length.value < length.high
        assert length.n == len(rows)
        assert f"{kept.value:.3f}" in length.floor_of
        assert index.value > 0
    assert sparse[0].beats_floor


def test_a_dictionary_that_explains_nothing_has_no_length():
    rows = torch.randn(500, WIDTH, generator=torch.Generator().manual_seed(3)) + 4
    dead = identity().with_weights({"b_enc": torch.full((WIDTH,), -1e4)})
    (only,) = description_length(dead, rows)
    assert only.value is None
    assert "nothing to code" in only.why_not


def test_a_dense_code_of_normal_rows_takes_about_what_theory_says():
    # Half a bit for each halving of the error's deviation, and a quarter more for rounding to
    # equal steps (Gish and Pierce 1968): log2(deviation / step) + log2(sqrt(2 pi e)).
    rows = 3 * torch.randn(20_000, 4, generator=torch.Generator().manual_seed(4))
    kept = 0.99
    step = math.sqrt(12 * (1 - kept)) * 3
    each = math.log2(3 / step) + math.log2(math.sqrt(2 * math.pi * math.e))
    assert dense_bits(rows, kept) == pytest.approx(4 * each, rel=0.02)


def test_index_bits_are_the_logarithm_of_the_choices():
    found = index_bits(torch.tensor([0, 1, 3, 10]), 10)
    expected = [math.log2(math.comb(10, k)) for k in (0, 1, 3, 10)]
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9
    )


def test_counts_add_up_over_batches():
    columns, bins = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 2])
    whole, parts = EntryCounts(3, 3), EntryCounts(3, 3)
    whole.add(4, columns, bins)
    parts.add(3, columns[:2], bins[:2])
    parts.add(1, columns[2:], bins[2:])
    torch.testing.assert_close(whole.code().bins, parts.code().bins)
    assert whole.code().silent == parts.code().silent
