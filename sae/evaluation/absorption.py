"""Absorption of first letters, behind a gate: does a probe find letters in the model at all?

As in SAEBench 0.6 (after Chanin and others 2024, arXiv 2409.14507): a probe of the activations
says which direction a letter has; the letter's own features are the few that tell its words
from others; then `sae.core.absorption` tells how much other features carry, on words that
nothing was fitted to. A reader of SAEBench's figures has to know what is done differently:

- Its letters' features are chosen by F1 on the words that it tests on; here on others.
- It reads each word twice, in prompts drawn anew by a seed that it never sets; here once, by
  the seed that is given.
- It ranks features by the weights of an L1 probe of 50 steps, whose result hangs on the unit of
  the activations; here by the difference of means, as `sae-probes` does.
- Its probe of the activations is fitted by a fixed number of steps, one letter against all
  others; here it is one logistic regression of 26 classes, to its optimum.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from sae.classifiers import one_thread
from sae.classifiers.logistic import Standard
from sae.core.absorption import absorbed
from sae.core.nulls import random_directions
from sae.dictionary import Dictionary
from sae.evaluation.averages import mean_finding
from sae.evaluation.letters import LETTERS, LetterRows
from sae.findings import Finding

PROBE_F1 = 0.6
"""F1 above which a letter counts as known to the model."""
FEWEST_LETTERS = 20
_MOST_FEATURES = 10
_JUMP = 0.03
"""Rise of F1 for which another feature counts as the letter's."""
_PENALTY = 0.03
"""C of the probe, on standardised rows: of 0.003 to 0.1 the best on SmolLM2 at layer 9."""
KEYS = ("absorption_fraction", "absorption_full", "absorption_splits", "absorption_feature_f1")


@dataclass(frozen=True, slots=True)
class LetterAbsorption:
    """What became of one letter's words."""

    letter: str
    probe_f1: float
    feature_f1: float
    """F1 of the letter's features on words that they were not chosen on."""
    features: tuple[int, ...]
    """The letter's own."""
    fraction: float
    """Mean over the words that the probe is right about."""
    full: float
    control: float
    """The fraction with random directions in the decoder's place."""
    n_words: int
    """Words that the probe is right about."""


@dataclass(frozen=True, slots=True)
class Absorption:
    """First letters in a model and a dictionary."""

    probe_f1: Float[Tensor, " letter"]
    """F1 of the probe on words that it was not fitted to; not a number without any words."""
    letters: tuple[LetterAbsorption, ...] = ()
    """Letters that the probe can tell, if these are enough for a result, and otherwise none."""

    @property
    def n_known(self) -> int:
        """Letters that the probe knows."""
        return int((self.probe_f1 > PROBE_F1).sum())


def absorption(dictionary: Dictionary, words: LetterRows, *, seed: int = 0) -> Absorption:
    """Measure how letters are absorbed by a dictionary of the place where words were read.

    Args:
        seed: of the random directions of the control.
    """
    is_letter = nn.functional.one_hot(words.letter, len(LETTERS)).bool()
    fitted, tested = ~words.is_test, words.is_test
    directions, said = letter_probe(words)
    is_said = nn.functional.one_hot(said, len(LETTERS)).bool()
    probe_f1 = torch.tensor(
        [f1(is_said[tested, j], is_letter[tested, j]) for j in range(len(LETTERS))]
    )
    found = Absorption(probe_f1)
    if found.n_known < FEWEST_LETTERS:
        return found
    acts = dictionary.encode(words.x.to(dictionary.W_enc.device)).float().cpu()
    decoder = dictionary.W_dec.detach().float().cpu()
    lengths = acts * decoder.norm(dim=1)
    random = random_directions(len(decoder), decoder.shape[1], seed)
    letters = []
    for j in (probe_f1 > PROBE_F1).nonzero()[:, 0].tolist():
        main, logits = own_features(lengths, is_letter[:, j], fitted)
        rows = tested & is_letter[:, j] & is_said[:, j]
        both = [
            absorbed(words.x[rows], lengths[rows], of_features, directions[j], main)
            for of_features in (decoder, random)
        ]
        letters.append(
            LetterAbsorption(
                letter=LETTERS[j],
                probe_f1=float(probe_f1[j]),
                feature_f1=f1(logits[tested] > 0, is_letter[tested, j]),
                features=tuple(main.tolist()),
                fraction=float(both[0].fraction.mean()),
                full=float(both[0].full.double().mean()),
                control=float(both[1].fraction.mean()),
                n_words=int(rows.sum()),
            )
        )
    return Absorption(probe_f1, tuple(letters))


def absorption_findings(found: Absorption) -> list[Finding]:
    """Return the figures, or why there are none; the probe's F1 is always among them."""
    there = ~found.probe_f1.isnan()
    # Saying yes to every word has precision p and recall 1.
    share = 1 / int(there.sum())
    always, of = 2 * share / (1 + share), "saying yes to every word"
    probe = mean_finding(
        "absorption_probe_f1", found.probe_f1, unit="letters", floor=always, floor_of=of
    )
    if not found.letters:
        why = (
            f"not measurable on this model: the letter probe's F1 exceeds {PROBE_F1} on "
            f"{found.n_known} letters, of {FEWEST_LETTERS} that are needed (mean F1 "
            f"{probe.value:.2f})"
        )
        return [probe, *(Finding(key=key, why_not=why) for key in KEYS)]

    def mean(key: str, field: str, floor: float | None = None, floor_of: str = "") -> Finding:
        values = torch.tensor([float(getattr(one, field)) for one in found.letters])
        return mean_finding(key, values, unit="letters", floor=floor, floor_of=floor_of)

    control = sum(one.control for one in found.letters) / len(found.letters)
    splits = torch.tensor([float(len(one.features)) for one in found.letters])
    return [
        probe,
        mean(
            "absorption_fraction", "fraction", control, "a random decoder, which hears nothing"
        ),
        mean("absorption_full", "full"),
        mean_finding("absorption_splits", splits, unit="letters"),
        mean("absorption_feature_f1", "feature_f1", always, of),
    ]


def f1(said: Bool[Tensor, " word"], is_so: Bool[Tensor, " word"]) -> float:
    """Return 2·right / (said + is so); not a number where nothing is so."""
    n = int(is_so.sum())
    return 2 * int((said & is_so).sum()) / (int(said.sum()) + n) if n else float("nan")


def letter_probe(
    words: LetterRows,
) -> tuple[Float[Tensor, "letter d"], Int[Tensor, " word"]]:
    """Return the direction of each letter, and which letter the probe says of each word."""
    from sklearn.linear_model import LogisticRegression

    fitted, rows = (~words.is_test).numpy(), words.x.double().numpy()
    standard = Standard.of(rows[fitted])
    model = LogisticRegression(C=_PENALTY, max_iter=1000)
    with one_thread():
        model.fit(standard(rows[fitted]), words.letter.numpy()[fitted])
        said = model.predict(standard(rows))
    directions = torch.zeros(len(LETTERS), rows.shape[1], dtype=torch.float64)
    directions[model.classes_] = torch.from_numpy(model.coef_ / standard.scale)
    return directions, torch.from_numpy(said)


def own_features(
    lengths: Float[Tensor, "word d_sae"],
    is_so: Bool[Tensor, " word"],
    fitted: Bool[Tensor, " word"],
) -> tuple[Int[Tensor, " main"], Float[Tensor, " word"]]:
    """Return the features that tell a letter, as many as raise F1, and their logits."""
    own, others = lengths[fitted & is_so].mean(0), lengths[fitted & ~is_so].mean(0)
    order = (own - others).topk(min(_MOST_FEATURES, lengths.shape[1])).indices
    best, main, logits = -1.0, order[:1], torch.zeros(len(lengths))
    for k in range(1, len(order) + 1):
        rows = lengths[:, order[:k]].double().numpy()
        said = _logits(rows, is_so.numpy(), fitted.numpy())
        now = f1(said[fitted] > 0, is_so[fitted])
        if now <= best + _JUMP:
            break
        best, main, logits = now, order[:k], said
    return main, logits


def _logits(
    rows: NDArray[np.float64], is_so: NDArray[np.bool_], fitted: NDArray[np.bool_]
) -> Float[Tensor, " word"]:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=500, class_weight="balanced")
    with one_thread():
        model.fit(rows[fitted], is_so[fitted])
    return torch.from_numpy(model.decision_function(rows))
