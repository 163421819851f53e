import pytest
import torch

from sae.core.nulls import random_directions
from sae.dictionary import Dictionary
from sae.evaluation.meta_dictionary import meta_dictionary


def with_decoder(rows):
    n, width = rows.shape
    return Dictionary.from_weights(rows.t(), torch.zeros(n), rows, torch.zeros(width))


def made_of_parts(n=256, width=32, parts=48):
    """Decoder rows that are sums of two of a few common directions."""
    generator = torch.Generator().manual_seed(0)
    common = random_directions(parts, width, 1)
    which = torch.stack([torch.randperm(parts, generator=generator)[:2] for _ in range(n)])
    return common[which].sum(1)


def test_directions_that_are_made_of_common_parts_are_explained_beyond_the_floor():
    (found,) = meta_dictionary(with_decoder(made_of_parts()))
    assert found.floor < found.low < found.value < found.high <= 1
    assert found.n == 256


def test_random_directions_are_at_the_floor():
    (found,) = meta_dictionary(with_decoder(random_directions(256, 32, 2)))
    assert found.value == pytest.approx(found.floor, abs=0.06)


def test_lengths_of_decoder_rows_are_of_no_account():
    rows = made_of_parts(128)
    lengths = torch.linspace(0.1, 9, 128)[:, None]
    one, other = (meta_dictionary(with_decoder(d))[0].value for d in (rows, lengths * rows))
    assert one == pytest.approx(other, abs=1e-3)


def test_a_dictionary_of_few_features_has_no_figure():
    (found,) = meta_dictionary(with_decoder(random_directions(12, 8, 0)))
    assert found.value is None
    assert "too few" in found.why_not
