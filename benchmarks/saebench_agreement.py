"""SAEBench's own core and absorption code on our export, beside our figures of the same rows.

`python -m benchmarks.saebench_agreement [RUN [DICTIONARY]]`. SAEBench 0.6 loads its model by
name with TransformerLens, which has to be let have a local folder; its text comes from the Hub,
so its activation store is replaced by one that gives our held-out sequences. All else in `core`
is its own code. Where its formula is wrong, our numbers put into the same formula have to give
its figure: that is the third column. Its absorption calculator gets our rows at the words, our
letters' directions and their features, so that its rules alone are compared with ours.
"""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import sae
from benchmarks.atlas import RUN, TRAINED
from benchmarks.common import write_results
from sae.core.absorption import absorbed
from sae.core.fidelity import ReconstructionStatistics
from sae.dictionary import Dictionary, add_reconstruction
from sae.evaluation.absorption import PROBE_F1, absorption, letter_probe
from sae.evaluation.behaviour import behaviour
from sae.evaluation.letters import LETTERS, LetterRows, letter_rows
from sae.exchange.saebench import as_custom_sae
from sae.models import LanguageModel, recorded_model
from sae.models.embedded import embedded_folder

SEQUENCES, BATCH = 16, 4
_MASK = "it counts predictions of a document's end, ours those of text after text alone"
_WHY = {
    "relative_reconstruction_bias": "it averages ratios of batches",
    "explained_variance": "it subtracts the squared mean of squares, not of rows",
    "explained_variance_legacy": "a mean of ratios of tokens, which is not among ours",
    "mse": "it divides by the tokens of a batch",
    "ce_loss_without_sae": _MASK,
    "ce_loss_with_sae": _MASK,
    "ce_loss_score": _MASK,
    "kl_div_score": "the same mask, and its probabilities of a document's end",
}
PLACE = -6
"""Position of the word in SAEBench's prompts."""


@dataclass(frozen=True)
class _Subject:
    dictionary: Dictionary
    cache: sae.ActivationCache
    model: LanguageModel
    tokens: Tensor


def main(run: str = str(RUN), name: str = next(iter(TRAINED))) -> None:
    """Compare on the first held-out sequences of a run of the embedded model."""
    cache = sae.open_cache(Path(run) / "cache.zarr")
    dictionary = sae.load(str(Path(run) / "dictionaries" / name))
    tokens = torch.from_numpy(cache.tokens[cache.held_out][:SEQUENCES]).long()
    subject = _Subject(dictionary, cache, recorded_model(cache.model, "cpu"), tokens)
    rows = [*_core(subject), *_absorption(subject)]
    write_results(
        "saebench_agreement",
        f"SAEBench 0.6's own code on {name}, and ours, on the same {SEQUENCES} sequences",
        rows,
    )


@contextmanager
def _transformer_lens(folder: Path) -> Iterator[Any]:
    """Load a local folder with TransformerLens, which looks every name up in a list first."""
    from transformer_lens import HookedTransformer, loading_from_pretrained

    listed = loading_from_pretrained.get_official_model_name
    loading_from_pretrained.get_official_model_name = lambda model_name: (
        model_name if Path(model_name).is_dir() else listed(model_name)
    )
    try:
        yield HookedTransformer.from_pretrained_no_processing(
            str(folder), device="cpu", dtype=torch.float32
        )
    finally:
        loading_from_pretrained.get_official_model_name = listed


def _core(subject: _Subject) -> Iterator[dict[str, object]]:
    from sae_bench.evals.core import main as core

    dictionary, tokens = subject.dictionary, subject.tokens
    ignored = {*subject.model.special_token_ids}
    batches = iter(2 * torch.split(tokens, BATCH))
    store = SimpleNamespace(get_batch_tokens=lambda _: next(batches))
    with _transformer_lens(embedded_folder("smollm2")) as lens, torch.no_grad():
        custom = as_custom_sae(dictionary)
        n = len(tokens) // BATCH
        downstream = core.get_downstream_reconstruction_metrics(
            custom, lens, store, True, True, n, BATCH, ignored, True
        )
        theirs, _ = core.get_sparsity_and_variance_metrics(
            custom, lens, store, n, True, True, True, True, BATCH, {}, ignored
        )
        parts = []
        for batch in torch.split(tokens, BATCH):
            _, seen = lens.run_with_cache(batch, names_filter=[dictionary.hook_name])
            text = ~torch.isin(batch, torch.tensor([*ignored]))
            parts.append(seen[dictionary.hook_name][text])
    ours = _figures(dictionary, torch.cat(parts))
    repeated = _their_formulas(dictionary, parts)
    for key in ("l0", "l1", "cossim", "l2_ratio"):
        yield _row(key, theirs[key], ours[key], None)
    for key, repeated_here in repeated.items():
        yield _row(key, theirs[key], ours.get(key), repeated_here)
    site = subject.cache.site(dictionary.hook_name)
    mean = torch.from_numpy(subject.cache.statistics(dictionary.hook_name)["mean"])
    scores = behaviour(subject.model, site, tokens, {"it": dictionary}, mean)["it"].values
    again = _their_cross_entropy(subject, ignored)
    yield _row(
        "ce_loss_without_sae",
        downstream["ce_loss_without_sae"],
        scores["ce_loss_without_sae"],
        again,
    )
    for key in ("ce_loss_with_sae", "ce_loss_score", "kl_div_score"):
        yield _row(key, downstream[key], scores[key], None)


def _figures(dictionary: Dictionary, x: Tensor) -> dict[str, float]:
    statistics = ReconstructionStatistics(dictionary.d_out, dictionary.d_sae)
    add_reconstruction(statistics, dictionary, x, x)
    return statistics.metrics()


def _their_formulas(dictionary: Dictionary, parts: list[Tensor]) -> dict[str, float]:
    """SAEBench's figures of rows, by its formulas, computed from our reconstructions."""
    errors, legacy, mse, bias = [], [], [], []
    for x in parts:
        error = (x - dictionary(x)).double().square().sum(1)
        errors.append(error.mean())
        legacy.append(1 - error / (x - x.mean(0)).double().square().sum(1))
        mse.append(error / len(x))
        x_hat = dictionary(x).double()
        bias.append(x_hat.square().sum(1).mean() / (x_hat * x).sum(1).mean())
    squares = torch.stack([x.double().square().sum(1).mean() for x in parts]).mean()
    # The mean over batches and coordinates of squares, where the mean row was meant.
    wrong = torch.cat([x.double().square().mean(0) for x in parts]).mean()
    variance = squares - wrong**2
    return {
        "explained_variance": float(1 - torch.stack(errors).mean() / variance),
        "explained_variance_legacy": float(torch.cat(legacy).mean()),
        "mse": float(torch.cat(mse).mean()),
        "relative_reconstruction_bias": float(torch.stack(bias).mean()),
    }


def _their_cross_entropy(subject: _Subject, ignored: set[int]) -> float:
    """Return our model's cross-entropy with SAEBench's mask: after text, be it of a mark."""
    losses = []
    for batch in torch.split(subject.tokens, BATCH):
        with torch.no_grad():
            logits = subject.model.module(batch).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), batch[:, 1:], reduction="none"
        )
        losses.append(loss[~torch.isin(batch[:, :-1], torch.tensor([*ignored]))])
    return float(torch.cat(losses).mean())


def _absorption(subject: _Subject) -> Iterator[dict[str, object]]:
    from sae_bench.evals.absorption.feature_absorption_calculator import (
        FeatureAbsorptionCalculator,
    )

    dictionary = subject.dictionary
    words = letter_rows(subject.model, subject.cache.site(dictionary.hook_name))
    found = absorption(dictionary, words)
    directions, said = letter_probe(words)
    custom, layer = as_custom_sae(dictionary), int(dictionary.hook_name.split(".")[1])
    theirs: list[Tensor] = []
    ours: list[Tensor] = []
    for one in found.letters:
        j = LETTERS.index(one.letter)
        rows = words.is_test & (words.letter == j) & (said == j)
        stub = _Reader(words.x[rows], f"blocks.{layer}.hook_resid_post")
        calculator = FeatureAbsorptionCalculator(
            model=stub,
            icl_word_list=[*words.words],
            max_icl_examples=2,
            base_template="{word} has the first letter:",
            word_token_pos=PLACE,
        )
        random.seed(0)
        results = calculator.calculate_absorption(
            custom,
            [word for word, is_one in zip(words.words, rows, strict=True) if is_one],
            directions[j].float(),
            [*one.features],
            layer,
            show_progress=False,
        ).word_results
        theirs.append(
            torch.tensor(
                [[r.absorption_fraction, float(r.is_full_absorption)] for r in results]
            )
        )
        ours.append(_own(dictionary, words, rows, directions[j], one.features))
    if not found.letters:
        yield {"figure": "absorption", "why": f"too few letters have F1 above {PROBE_F1}"}
        return
    both = torch.cat(theirs), torch.cat(ours)
    for place, key in enumerate(("absorption_fraction", "is_full_absorption")):
        yield _row(
            f"{key}, {len(both[0])} words",
            float(both[0][:, place].mean()),
            float(both[1][:, place].mean()),
            None,
            float((both[0] - both[1])[:, place].abs().max()),
        )


def _own(
    dictionary: Dictionary,
    words: LetterRows,
    rows: Tensor,
    direction: Tensor,
    features: tuple[int, ...],
) -> Tensor:
    x, decoder = words.x[rows], dictionary.W_dec
    lengths = dictionary.encode(x) * decoder.norm(dim=1)
    found = absorbed(x, lengths, decoder, direction, torch.tensor(features))
    return torch.stack([found.fraction, found.full.double()], 1).float()


class _Reader:
    """Stands for the model: gives rows that were read before, in their order."""

    def __init__(self, rows: Tensor, hook_name: str) -> None:
        self.rows, self.hook_name, self.given = rows, hook_name, 0

    def to_tokens(self, _: str) -> Tensor:
        return torch.zeros(1, 8)

    def run_with_cache(self, prompts: list[str], names_filter: list[str]) -> tuple[None, Any]:
        assert names_filter == [self.hook_name]
        some = self.rows[self.given : self.given + len(prompts)]
        self.given += len(prompts)
        return None, {self.hook_name: some[:, None].expand(-1, 8, -1)}


def _row(
    key: str,
    theirs: float,
    ours: float | None,
    repeated: float | None,
    largest: float | None = None,
) -> dict[str, object]:
    return {
        "figure": key,
        "SAEBench": f"{theirs:.5g}",
        "ours": "" if ours is None else f"{ours:.5g}",
        "its formula, our numbers": "" if repeated is None else f"{repeated:.5g}",
        "largest difference": "" if largest is None else f"{largest:.1e}",
        "why they differ": _WHY.get(key, ""),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
