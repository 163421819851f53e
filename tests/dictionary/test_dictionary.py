"""Dictionaries of every architecture: the rules, what is refused, what identifies one."""

from dataclasses import replace

import pytest
import torch
from support.world import random_dictionary

from sae.base.errors import UserError
from sae.base.provenance import digest_bytes
from sae.dictionary import ACTIVATIONS, Dictionary, ReLU, TopK
from sae.dictionary.metadata import metadata_of

X = torch.randn(64, 32, generator=torch.Generator().manual_seed(5))


def by_hand(d: Dictionary, x: torch.Tensor) -> list[float]:
    """Feature activations of one row, latent by latent."""
    found = []
    for j in range(d.d_sae):
        product = float(x.double() @ d.W_enc[:, j].double())
        pre = product + float(d.b_enc[j])
        if d.architecture == "jumprelu":
            found.append(max(pre, 0) if pre > d.activation.threshold[j] else 0)
        elif d.architecture == "gated":
            magnitude = float(d.activation.r_mag[j].double().exp()) * product + float(
                d.activation.b_mag[j]
            )
            found.append(max(magnitude, 0) if pre > 0 else 0)
        else:
            found.append(max(pre, 0))
    if d.architecture == "topk":
        edge = sorted(found)[-d.activation.k]
        found = [value if value >= edge else 0 for value in found]
    return found


@pytest.mark.parametrize("architecture", ACTIVATIONS)
def test_activations_are_those_of_the_formula_latent_by_latent(architecture):
    dictionary = random_dictionary(architecture)
    feature_acts = dictionary.encode(X)
    for x, found in zip(X, feature_acts, strict=True):
        assert found.tolist() == pytest.approx(by_hand(dictionary, x), abs=1e-5)
    fired = (feature_acts > 0).float().mean()
    assert 0.05 < fired < 0.8
    assert bool((feature_acts >= 0).all())
    batched = dictionary.encode(X.view(4, 16, 32))
    torch.testing.assert_close(batched.view(64, -1), feature_acts, rtol=1e-5, atol=1e-6)


def test_topk_keeps_no_more_than_k_of_equals_and_fewer_when_fewer_are_positive():
    zeros = torch.zeros(6, 3)
    dictionary = Dictionary.from_weights(
        torch.eye(6), torch.zeros(6), zeros, torch.zeros(3), TopK(2)
    )
    x = torch.tensor([[1.0] * 6, [5, -1, -1, -1, -1, -1], [-1.0] * 6, [3, 2, 2, 2, 0, 0]])
    feature_acts = dictionary.encode(x)
    assert (feature_acts > 0).sum(1).tolist() == [2, 1, 0, 2]
    assert feature_acts.sum(1).tolist() == [2, 5, 0, 5]


@pytest.mark.parametrize("architecture", ACTIVATIONS)
@pytest.mark.parametrize("skip", [False, True])
def test_a_call_is_decode_of_encode_plus_the_skip(architecture, skip):
    dictionary = random_dictionary(architecture, d_out=20, skip=skip)
    expected = dictionary.encode(X) @ dictionary.W_dec + dictionary.b_dec
    if skip:
        expected = expected + X @ dictionary.W_skip.T
    assert dictionary(X).shape == (64, 20)
    assert dictionary.d_out == 20
    torch.testing.assert_close(dictionary(X), expected)


def test_the_hooks_are_those_of_the_metadata():
    plain = random_dictionary(hook_name="a")
    assert (plain.hook_name_out, plain.is_transcoder) == ("a", False)
    same = random_dictionary(hook_name="a", hook_name_out="a")
    assert (same.hook_name_out, same.is_transcoder) == ("a", False)
    other = random_dictionary(hook_name="a", hook_name_out="b")
    assert (other.hook_name_out, other.is_transcoder) == ("b", True)
    assert not random_dictionary().is_transcoder


@pytest.mark.parametrize(
    ("architecture", "change", "sentence"),
    [
        ("gated", {"b_mag": torch.zeros(47)}, r"b_mag has shape \(47,\) instead of \(48,\)"),
        ("jumprelu", {"threshold": torch.zeros(())}, r"threshold has shape \(\) instead"),
        ("standard", {"b_enc": torch.zeros(32)}, r"b_enc has shape \(32,\) instead of \(48,\)"),
        ("standard", {"b_dec": torch.zeros(31)}, r"b_dec has shape \(31,\) instead of \(32,\)"),
        ("standard", {"W_dec": torch.zeros(47, 32)}, r"W_dec has shape \(47, 32\) instead"),
        ("standard", {"W_skip": torch.zeros(32, 31)}, r"W_skip has shape \(32, 31\) instead"),
    ],
)
def test_weights_that_do_not_belong_together_are_refused(architecture, change, sentence):
    with pytest.raises(UserError, match=sentence):
        random_dictionary(architecture, skip=True).with_weights(change)


@pytest.mark.parametrize("k", [0, 49])
def test_a_k_that_its_latents_cannot_have_is_refused(k):
    with pytest.raises(UserError, match=f"k={k}; give 1 to d_sae=48"):
        replace(random_dictionary("topk"), activation=TopK(k))


def test_several_places_are_refused_in_a_sentence():
    one = random_dictionary()
    with pytest.raises(
        UserError, match="reads exactly one place and writes exactly one, not 2 and 1"
    ):
        replace(one, reads=one.reads * 2)


def test_a_dictionary_is_shown_in_one_line():
    places = {"hook_name": "blocks.3.hook_resid_post", "model_name": "org/lm"}
    found = random_dictionary("topk", d_in=8, d_sae=20, d_out=6, **places)
    sizes = f"k={found.activation.k}, 8 to 20 latents to 6"
    shown = f"Dictionary(topk, {sizes}, blocks.3.hook_resid_post of org/lm)"
    assert repr(found) == shown
    unknown = random_dictionary("topk", d_in=8, d_sae=20, d_out=6)
    assert repr(unknown).endswith(" to 6, ? of ?)")


def test_the_digest_of_a_standard_dictionary_is_that_of_its_four_tensors():
    d = random_dictionary(hook_name="a")
    tensors = (d.W_enc, d.b_enc, d.W_dec, d.b_dec)
    assert d.digest == digest_bytes(w.numpy().tobytes() for w in tensors)


def test_the_digest_covers_the_architecture_and_every_weight():
    digests = []
    for architecture in ACTIVATIONS:
        d = random_dictionary(architecture, skip=True)
        digests.append(d.digest)
        digests += [d.with_weights({name: w + 1}).digest for name, w in d.tensors.items()]
        digests.append(replace(d, W_skip=None).digest)
    topk = random_dictionary("topk")
    digests += [
        replace(topk, activation=TopK(8)).digest,
        replace(topk, activation=ReLU()).digest,
    ]
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize("architecture", ACTIVATIONS)
def test_every_tensor_moves_and_nothing_else_changes(architecture):
    dictionary = random_dictionary(architecture, skip=True, hook_name="a")
    moved = dictionary.to("meta")
    assert {w.device.type for w in moved.tensors.values()} == {"meta"}
    assert list(moved.tensors) == list(dictionary.tensors)
    assert moved.activation.numbers == dictionary.activation.numbers
    assert metadata_of(moved) == metadata_of(dictionary)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("skip", [False, True])
def test_any_floating_type_is_encoded_and_decoded_in_that_of_the_weights(dtype, skip):
    dictionary = random_dictionary("topk", skip=skip)
    x = X.to(dtype)
    feature_acts = dictionary.encode(x)
    assert torch.equal(feature_acts, dictionary.encode(x.float()))
    given = feature_acts.to(dtype)
    x_hat = dictionary.reconstruct(x, given)
    assert x_hat.dtype == torch.float32
    assert torch.equal(x_hat, dictionary.reconstruct(x.float(), given.float()))
    assert torch.equal(dictionary.decode(given), dictionary.decode(given.float()))


def test_what_is_sparse_or_of_another_width_is_refused_in_a_sentence():
    dictionary = random_dictionary("standard")
    acts = dictionary.encode(X)
    for call in (dictionary.encode, dictionary.encode_sparse):
        with pytest.raises(UserError, match=r"a sparse tensor of shape \(64, 32\) was given"):
            call(X.to_sparse())
        with pytest.raises(UserError, match=r"\(64, 31\) was given, .* must be d_in=32"):
            call(X[:, 1:])
    with pytest.raises(UserError, match="make it dense with to_dense"):
        dictionary.decode(acts.to_sparse())
    with pytest.raises(UserError, match=f"must be d_sae={dictionary.d_sae}"):
        dictionary.decode(X)
