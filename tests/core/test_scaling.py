"""Scaling for training, and its exact undoing in the saved weights."""

import pytest
import torch

from sae.base.errors import UserError
from sae.core.scaling import InputScaling
from sae.dictionary import Dictionary


def test_scaled_rows_are_centred_with_mean_square_one_a_coordinate():
    x = torch.randn(4000, 24) * 7 + torch.arange(24.0)
    scaling = InputScaling.of(x)
    scaled = scaling(x)
    torch.testing.assert_close(scaled.mean(0), torch.zeros(24), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled.square().mean(), torch.tensor(1.0), rtol=1e-4, atol=0)


def test_folded_weights_do_on_raw_rows_what_the_trained_do_on_scaled_rows():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 24, generator=generator) * 50 + 200
    scaling = InputScaling.of(x)
    w_enc, w_dec = (torch.randn(*s, generator=generator) for s in ((24, 60), (60, 24)))
    b_enc, b_dec = (torch.randn(n, generator=generator) for n in (60, 24))
    feature_acts = torch.relu(scaling(x) @ w_enc + b_enc)
    x_hat = (feature_acts @ w_dec + b_dec) / scaling.scale + scaling.mean
    folded_enc, folded_b_enc = scaling.fold_encoder(w_enc, b_enc)
    folded_dec, folded_b_dec = scaling.fold_decoder(w_dec, b_dec)
    dictionary = Dictionary.from_weights(folded_enc, folded_b_enc, folded_dec, folded_b_dec)
    torch.testing.assert_close(dictionary.encode(x), feature_acts, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(dictionary(x), x_hat, rtol=1e-5, atol=1e-2)


def test_unfolding_gives_back_what_was_folded():
    generator = torch.Generator().manual_seed(0)
    scaling = InputScaling(torch.randn(24, generator=generator) * 200, 0.03)
    w_enc, w_dec = (torch.randn(*s, generator=generator) for s in ((24, 60), (60, 24)))
    b_enc, b_dec = (torch.randn(n, generator=generator) for n in (60, 24))
    enc = scaling.unfold_encoder(*scaling.fold_encoder(w_enc, b_enc))
    dec = scaling.unfold_decoder(*scaling.fold_decoder(w_dec, b_dec))
    # A folded bias holds the mean's part in float32, which is what its inverse cannot mend.
    for found, given in ((enc[0], w_enc), (dec[0], w_dec)):
        torch.testing.assert_close(found, given, rtol=3e-7, atol=0)
    torch.testing.assert_close(enc[1], b_enc, rtol=0, atol=5e-6)
    torch.testing.assert_close(dec[1], b_dec, rtol=0, atol=1e-6)


def test_unfolded_weights_do_on_scaled_rows_what_the_given_do_on_raw_rows():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 24, generator=generator).double() * 50 + 200
    scaling = InputScaling.of(x)
    scaled = (x - scaling.mean.double()) * scaling.scale
    w_enc, w_dec = (torch.randn(*s, generator=generator) for s in ((24, 60), (60, 24)))
    b_enc, b_dec = (torch.randn(n, generator=generator) for n in (60, 24))
    raw_acts = x @ w_enc.double() + b_enc.double()
    raw_out = raw_acts @ w_dec.double() + b_dec.double()
    w, b = (t.double() for t in scaling.unfold_encoder(w_enc, b_enc))
    torch.testing.assert_close(scaled @ w + b, raw_acts, rtol=0, atol=2e-4)
    w, b = (t.double() for t in scaling.unfold_decoder(w_dec, b_dec))
    expected = (raw_out - scaling.mean.double()) * scaling.scale
    torch.testing.assert_close(raw_acts @ w + b, expected, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize(("size", "cure"), [(1e37, "1e-37"), (1e-30, "1e30"), (1e-42, "1e42")])
def test_rows_of_a_size_that_float32_has_no_room_for_are_told_by_what_to_multiply(size, cure):
    x = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(
        UserError, match=rf"rows are about .* in size .* multiply .* by {cure}$"
    ):
        InputScaling.of(x * size)
    # As told, they are of size one.
    assert InputScaling.of((x * size).double() * float(cure)).scale == pytest.approx(1, rel=0.1)


def test_rows_that_are_no_numbers_are_called_so():
    x = torch.ones(4, 2)
    x[1, 1] = float("inf")
    with pytest.raises(UserError, match="the rows contain NaN or infinity"):
        InputScaling.of(x)
