import pytest
import torch

from sae.core.absorption import absorbed
from sae.dictionary import Dictionary
from sae.evaluation.absorption import (
    FEWEST_LETTERS,
    KEYS,
    absorption,
    absorption_findings,
    f1,
)
from sae.evaluation.letters import LETTERS, LetterRows, letter_rows, words_of
from sae.models import ModelConfig, find_site, load_model

WIDTH, PER_LETTER = 64, 60


def letters(n_absorbed: int = 0, known: int = 26) -> tuple[Dictionary, LetterRows]:
    """Words whose letters are directions, and a dictionary that has them as features.

    Some of the words that begin with `a` have each a feature of their own, whose direction
    points along the letter's; the letter's feature is silent there.
    """
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator))
    letter = torch.arange(26).repeat_interleave(PER_LETTER)
    x = 0.02 * torch.randn(len(letter), WIDTH, generator=generator)
    told = letter < known
    x[told] += 10 * basis[letter[told]]
    own = basis[26 : 26 + n_absorbed]
    both = torch.nn.functional.normalize(basis[0] + 0.7 * own, dim=1)
    x[:n_absorbed] += 10 * both - 10 * basis[0]
    encoder, decoder = basis[: 26 + n_absorbed].clone(), basis[: 26 + n_absorbed].clone()
    encoder[0] -= 2 * own.sum(0)
    encoder[26:], decoder[26:] = 1.75 * own, both
    dictionary = Dictionary.from_weights(
        encoder.t(), torch.full((len(encoder),), -0.5), decoder, torch.zeros(WIDTH)
    )
    is_test = torch.arange(len(letter)) % 3 == 0
    names = tuple(f"{LETTERS[i]}{n}" for n, i in enumerate(letter.tolist()))
    return dictionary, LetterRows(names, x, letter, is_test)


def values(findings):
    return {one.key: one for one in findings}


def test_letters_that_have_features_of_their_own_are_not_absorbed():
    found = values(absorption_findings(absorption(*letters())))
    assert found["absorption_fraction"].value == 0
    assert found["absorption_full"].value == 0
    assert found["absorption_splits"].value == 1
    assert found["absorption_probe_f1"].value == pytest.approx(1)
    assert found["absorption_feature_f1"].value == pytest.approx(1)
    assert found["absorption_probe_f1"].beats_floor


def test_a_letter_that_another_feature_speaks_for_is_absorbed_in_those_words():
    n = 24
    found = absorption(*letters(n))
    (a,) = (one for one in found.letters if one.letter == "a")
    assert a.features == (0,)
    assert a.fraction == pytest.approx(n / PER_LETTER, abs=0.02)
    assert a.full == pytest.approx(n / PER_LETTER, abs=0.02)
    assert a.control < 0.1
    others = [one for one in found.letters if one.letter != "a"]
    assert max(one.fraction for one in others) == 0


def test_a_model_that_does_not_know_letters_is_not_measurable_and_says_its_f1():
    dictionary, words = letters(known=FEWEST_LETTERS - 1)
    found = values(absorption_findings(absorption(dictionary, words)))
    probe = found["absorption_probe_f1"]
    assert 0 < probe.value < 1
    for key in KEYS:
        assert found[key].value is None
        assert "not measurable on this model" in found[key].why_not
        assert f"{FEWEST_LETTERS - 1} letters" in found[key].why_not
        assert f"{probe.value:.2f}" in found[key].why_not
    enough, words = letters(known=FEWEST_LETTERS)
    assert absorption(enough, words).n_known >= FEWEST_LETTERS


def test_rules_hold_row_by_row():
    # Two dimensions: p is the first. Features: main along p, an absorber, one of no account.
    decoder = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.05, 1.0]])
    main, p = torch.tensor([0]), torch.tensor([2.0, 0.0])
    lengths = torch.tensor(
        [
            [10.0, 0.0, 0.0],  # main carries all
            [0.0, 10.0, 0.0],  # the absorber alone: 6 of 6
            [4.0, 10.0, 0.0],  # both: A = 6, M = 4, P = 10
            [9.0, 1.0, 0.0],  # the absorber carries too little
            [0.0, 0.0, 10.0],  # points along p too little to absorb
        ]
    )
    x = lengths @ torch.nn.functional.normalize(decoder, dim=1)
    found = absorbed(x, lengths, decoder, p, main)
    torch.testing.assert_close(
        found.fraction, torch.tensor([0, 1, 0.6, 0, 0], dtype=torch.float64)
    )
    assert found.full.tolist() == [False, True, False, False, True]
    # Norms of decoder rows and of the probe are of no account.
    scaled = absorbed(x, lengths, decoder * torch.tensor([[3.0], [0.1], [7.0]]), 9 * p, main)
    torch.testing.assert_close(scaled.fraction, found.fraction)


def test_f1_is_that_of_scikit_learn():
    from sklearn.metrics import f1_score

    generator = torch.Generator().manual_seed(1)
    said, is_so = (torch.rand(2, 50, generator=generator) < 0.4).unbind()
    assert f1(said, is_so) == pytest.approx(f1_score(is_so, said))


def test_words_are_read_by_the_seed_at_the_end_of_their_prompts(tiny_model):
    model = load_model(ModelConfig(name=str(tiny_model), device="cpu"))
    site = find_site(model.module, "blocks.1.hook_resid_post")
    one, again, other = (letter_rows(model, site, most=3, seed=seed) for seed in (0, 0, 1))
    torch.testing.assert_close(one.x, again.x, rtol=0, atol=0)
    assert one.words == again.words
    assert not torch.equal(one.x, other.x)
    assert all(LETTERS[i] == word[0] for word, i in zip(one.words, one.letter, strict=True))
    assert len({word for _, word in words_of(model, 3, 0)}) == len(one.words)
