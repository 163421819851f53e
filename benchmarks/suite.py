"""The standard suite on our dictionaries and SAELens's, trained on equal rows with three seeds.

The dictionaries are those of `benchmarks.quality`, of L1 the one whose L0 is nearest to what
SAELens's comes to, and of SAELens's two learning rates the one that does better. Each figure is
a mean over seeds with half the range beside it, and the floor that it has to be past;
`stability` is between seeds of one trainer and has a figure for ours alone, whose records say
which trainings differ in their seed.
"""

import time
from collections.abc import Sequence

import sae
from benchmarks import quality
from benchmarks.common import write_results
from sae.evidence import Evidence
from sae.run import Run

L0S = {**quality.L0S, "standard": (64,)}
LEARNING_RATES = {name: rates[-1:] for name, rates in quality.LEARNING_RATES.items()}
FIGURES = (
    ("l0", ""),
    ("explained_variance", ""),
    ("ce_loss_score", ""),
    ("description_length", ""),
    ("stability", ""),
    ("sparse_probing", "k=1"),
    ("sparse_probing", "k=16"),
    ("absorption_fraction", ""),
    ("absorption_feature_f1", ""),
)


def main() -> None:
    """Train what is missing, run the suite, write the table."""
    quality.train(L0S, LEARNING_RATES)
    run = Run.at(quality.RUN)
    began = time.perf_counter()
    sae.eval(run=str(quality.RUN), suite="standard", n_behaviour_tokens=2_048, density_rows=1)
    seconds = time.perf_counter() - began
    names = [name for name in run.dictionary_names if run.evidence(name).exists()]
    found = {name: Evidence.read(run.evidence(name)) for name in names}
    write_results(
        "suite",
        f"The standard suite, {quality.N_ROWS:,} rows, d_sae {quality.D_SAE:,}: mean of three "
        f"seeds ± half the range, (floor); {len(found)} dictionaries in {seconds / 60:.0f} min",
        [
            {**whose, **{f"{key} {of}".strip(): _cell(members, key, of) for key, of in FIGURES}}
            for whose, members in quality.by_trainer(found)
        ],
    )


def _cell(members: Sequence[Evidence], key: str, of: str) -> str:
    findings = [found for one in members if (found := one.find(key, of)) is not None]
    values = [found.value for found in findings if found.value is not None]
    if len(values) < len(members):
        return "–"
    floors = [found.floor for found in findings if found.floor is not None]
    floor = f" ({sum(floors) / len(floors):.3g})" if floors else ""
    return quality.spread(values, 3 if max(values) < 10 else 1) + floor


if __name__ == "__main__":
    main()
