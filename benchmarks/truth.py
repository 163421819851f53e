"""What recipes find of worlds whose features are known, over seeds, and what could be found.

Dictionaries have a quarter as many latents as there are features, like SynthSAEBench's, and
train on rows that never come twice. `python -m benchmarks.truth` goes through `RECIPES`;
`python -m benchmarks.truth topk batchtopk` through some of them.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from benchmarks.common import rows_there, write_results
from sae.commands.truth import run_all
from sae.config.commands import COMMANDS
from sae.config.launch import grid
from sae.dictionary import load_dictionary
from sae.evaluation.recipes import over_seeds
from sae.findings import Finding
from sae.synthetic import HELD_OUT, World, open_world
from sae.training.truth import TruthConfig

RUN = "runs/bench-truth"
WORLD = ("world=synthsaebench-clear", "sae.d_sae=256")
BUDGET = ("training_tokens=2000000", "n_scored_rows=65536", "seed=1,2,3")
_MATRYOSHKA = ("sae=matryoshka_batchtopk", "sae.k=3")
_DETACHED, _SORTED = "sae.detach_inner=true", "sae.sort_by_frequency=true"
RECIPES: dict[str, Sequence[str]] = {
    "standard": ("sae=standard", "sae.target_l0=3"),
    "jumprelu": ("sae=jumprelu", "sae.target_l0=3"),
    "topk": ("sae=topk", "sae.k=3"),
    "batchtopk": ("sae=batchtopk", "sae.k=3"),
    "batchtopk-falling": ("sae=batchtopk", "sae.k=3", "sae.initial_k=9"),
    "hierarchical": ("sae=hierarchical_topk", "sae.k=3"),
    "ordered": ("sae=ordered_topk", "sae.k=3"),
    "matryoshka": _MATRYOSHKA,
    "matryoshka-detached": (*_MATRYOSHKA, _DETACHED),
    "matryoshka-sorted": (*_MATRYOSHKA, _SORTED),
    "matryoshka-all": (*_MATRYOSHKA, _DETACHED, _SORTED, "sae.initial_k=9"),
}
"""Words of `sae truth` for each recipe; another one is a line here."""
N_BLOCKS = 60
N_THEIRS = 65_536
SHOWN = (
    *("truth_f1", "truth_precision", "truth_recall", "truth_mcc", "truth_recovered"),
    *("truth_uniqueness", "truth_l0", "l0", "explained_variance", "dead_fraction"),
)


def best_threshold(
    z: Float[Tensor, "row latent"], fires: Bool[Tensor, "row latent"]
) -> Float[Tensor, " latent"]:
    """Return the F1 of each column of `z` at the threshold that is best for it."""
    order = z.argsort(0, descending=True)
    hits = fires.gather(0, order).double().cumsum(0)
    chosen = torch.arange(1, len(z) + 1)[:, None]
    return (2 * hits / (chosen + fires.sum(0))).amax(0)


def ceiling(world: World, n: int) -> float:
    """Return the mean F1 of the true directions of the n most frequent features.

    Each has the threshold that is best for it: no tied encoder with thresholds does better.
    """
    blocks = list(islice(world.blocks(HELD_OUT), N_BLOCKS))
    x = torch.cat([block.x for block in blocks])
    fires = torch.cat([block.codes.dense()[:, :n] > 0 for block in blocks])
    return float(best_threshold(x @ world.directions[:n].t(), fires).mean())


def saelens_f1(config: TruthConfig, world: World) -> float | None:
    """Return the F1 that SAELens's own code gives a dictionary; None where it is missing."""
    try:
        from sae_lens import SAE
        from sae_lens.synthetic import FeatureDictionary, eval_sae_on_synthetic_data
    except ImportError:
        return None
    features = FeatureDictionary(world.config.n_features, world.config.d_in, initializer=None)
    features.feature_vectors.data = world.directions
    features.bias.data = world.bias
    blocks = world.blocks(HELD_OUT)

    class Generator:
        """Our rows, for their code."""

        def sample(self, n: int) -> Tensor:
            return next(blocks).codes.dense()[:n]

    theirs = SAE.load_from_disk(str(config.dictionary_path))
    found = eval_sae_on_synthetic_data(theirs, features, Generator(), N_THEIRS, batch_size=1024)
    return float(found.classification.f1_score)


def shown(one: Finding) -> str:
    """Return a figure with its interval and its floor."""
    if one.value is None:
        return "–"
    ends = "" if one.low is None or one.high is None else f" [{one.low:.3f}, {one.high:.3f}]"
    floor = "" if one.floor is None else f" ({one.floor:.3f})"
    return f"{one.value:.3f}{ends}{floor}"


def main(names: Sequence[str]) -> None:
    """Train, score, and write the table, a line a recipe; those of others are kept."""
    rows = {str(row["recipe"]): row for row in rows_there("truth")}
    for name in names:
        words = [f"run={RUN}", *WORLD, *BUDGET, *RECIPES[name]]
        configs = [
            one for one in grid(COMMANDS["truth"], words) if isinstance(one, TruthConfig)
        ]
        scored = run_all([replace(one, name=f"{name}-{one.seed}") for one in configs])
        found = over_seeds(replace(one, recipe=name) for one in scored)[name]
        world, first = open_world(configs[0].world), replace(configs[0], name=f"{name}-1")
        theirs = saelens_f1(first, world)
        ours = next(one.value for one in scored[0].findings if one.key == "truth_f1")
        d_sae = load_dictionary(first.dictionary_path).d_sae
        recipe = " ".join(RECIPES[name])
        rows[recipe] = {
            "recipe": recipe,
            **{one.metric.title: shown(one) for one in found if one.key in SHOWN},
            "seed 1, F1 here / SAELens's": f"{ours:.4f} / {theirs and round(theirs, 4)}",
            "F1 of true directions": round(ceiling(world, d_sae), 3),
        }
        title = "What recipes find of a world whose features are known"
        write_results("truth", title, [*rows.values()])


if __name__ == "__main__":
    main(sys.argv[1:] or list(RECIPES))
