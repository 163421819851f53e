"""Every figure that says how good a dictionary is: name, formula, and where it is shown.

This is the only place that says so: the evaluation may write no figure that is not in here, and
tables, pictures, pages, cards and documentation take titles, formulas and formats from here.
In the formulas x is a row of activations, x̂ its reconstruction, x̄ the mean of all rows, and fⱼ
the activation of feature j. Means and sums are over the held-out rows, in float64. Names are
SAELens's where it has one.
"""

from dataclasses import dataclass
from typing import Literal

Place = Literal["table", "picture", "tile"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One figure of a dictionary, as people read it."""

    key: str
    title: str
    meaning: str
    """What it is, as a phrase that a newcomer understands."""
    formula: str
    scale: str
    """What 0 and 1, or less and more, say about a dictionary."""
    higher_is_better: bool | None = None
    """None where neither is: the best is in between, or it says nothing of the dictionary."""
    form: str = ".3f"
    """How it is written, in Python's way."""
    short: str = ""
    """A title for a narrow column, if the title is long."""
    where: tuple[Place, ...] = ()
    """Where it is shown besides the CSV, the cards, the report's table and `docs/metrics.md`.
    `table`: on the terminal and in the README. `picture`: a panel over L0, in `pareto.png` and
    on the pages. `tile`: at the head of a report, for the recommended dictionary."""


METRICS: dict[str, Metric] = {
    metric.key: metric
    for metric in (
        Metric(
            key="l0",
            title="L0",
            meaning="mean number of features active on a token",
            formula="mean #{j : fⱼ > 0}",
            scale="fewer are easier to read; compare fidelity at equal L0",
            higher_is_better=False,
            form=".1f",
            where=("table", "tile"),
        ),
        Metric(
            key="explained_variance",
            title="Explained variance",
            short="Expl. var.",
            meaning="share of the activations' variance kept",
            formula="1 − Σ‖x−x̂‖² / Σ‖x−x̄‖²",
            scale="1 is all of it; 0 is no better than the mean x̄, and below 0 is worse",
            higher_is_better=True,
            where=("table", "picture", "tile"),
        ),
        Metric(
            key="ce_loss_score",
            title="CE score",
            meaning="share of the layer's effect on the model's loss kept",
            formula="(CE_zero − CE_sae) / (CE_zero − CE_clean)",
            scale="1: the model predicts as well as before; 0: as badly as with zeros there",
            higher_is_better=True,
            where=("table", "picture", "tile"),
        ),
        Metric(
            key="ce_loss_score_mean_ablation",
            title="CE score, mean ablation",
            short="CE (mean)",
            meaning="the CE score, compared with the mean activation instead of zeros",
            formula="(CE_mean − CE_sae) / (CE_mean − CE_clean)",
            scale="1: as well as before; 0: as badly as with the mean. The stricter of the two",
            higher_is_better=True,
            where=("table",),
        ),
        Metric(
            key="kl_div_score",
            title="KL score",
            meaning="share of the layer's effect on next-token probabilities kept",
            formula="(KL_zero − KL_sae) / KL_zero",
            scale="1: the same probabilities as before; 0: as far from them as with zeros",
            higher_is_better=True,
            where=("table",),
        ),
        Metric(
            key="dead_fraction",
            title="Dead features",
            short="Dead",
            meaning="share of the features that never fired",
            formula="mean over j of [fⱼ = 0 in every row counted]",
            scale="0: all features are in use; 1: none is. Training rows are counted as well",
            higher_is_better=False,
            form=".1%",
            where=("table", "picture", "tile"),
        ),
        Metric(
            key="mse",
            title="Squared error",
            meaning="mean squared error of a row, summed over its width",
            formula="mean ‖x−x̂‖²",
            scale="0 is lossless; in the model's own unit, so compare within a hook",
            higher_is_better=False,
            form=".3g",
        ),
        Metric(
            key="cossim",
            title="Cosine",
            meaning="mean cosine of x and x̂",
            formula="mean ⟨x, x̂⟩ / (‖x‖ ‖x̂‖)",
            scale="1: the direction is right; 0: it has nothing to do with x",
            higher_is_better=True,
        ),
        Metric(
            key="l2_ratio",
            title="L2 ratio",
            meaning="mean length of x̂, relative to that of x",
            formula="mean ‖x̂‖ / ‖x‖",
            scale="1: of the right length; below 1 the reconstruction shrinks",
        ),
        Metric(
            key="relative_reconstruction_bias",
            title="Reconstruction bias",
            meaning="length of x̂, relative to the multiple of it that would fit x best",
            formula="mean ‖x̂‖² / mean ⟨x, x̂⟩",
            scale="1: without bias; below 1 the reconstruction shrinks",
        ),
        Metric(
            key="l1",
            title="L1",
            meaning="mean sum of a row's feature activations",
            formula="mean Σⱼ fⱼ",
            scale="in the model's own unit, so compare within a hook",
            form=".3g",
        ),
        Metric(
            key="ce_loss_without_sae",
            title="CE, untouched",
            meaning="next-token cross-entropy of the model as it is, nats a token",
            formula="CE_clean = mean −log p(next token)",
            scale="the model's own, whatever the dictionary",
        ),
        Metric(
            key="ce_loss_with_sae",
            title="CE, reconstruction",
            meaning="cross-entropy with the reconstruction in place, nats a token",
            formula="CE_sae",
            scale="lossless where it is no more than CE_clean",
            higher_is_better=False,
        ),
        Metric(
            key="ce_loss_with_ablation",
            title="CE, zeros",
            meaning="cross-entropy with zeros in place, nats a token",
            formula="CE_zero",
            scale="the model's own at this hook, whatever the dictionary",
        ),
        Metric(
            key="ce_loss_with_mean_ablation",
            title="CE, mean activation",
            meaning="cross-entropy with the mean activation in place, nats a token",
            formula="CE_mean",
            scale="the model's own at this hook, whatever the dictionary",
        ),
        Metric(
            key="kl_div_with_sae",
            title="KL, reconstruction",
            meaning="how far the reconstruction moves next-token probabilities, nats a token",
            formula="KL_sae = mean KL(clean ‖ replaced)",
            scale="0: the same probabilities as before",
            higher_is_better=False,
            form=".3g",
        ),
        Metric(
            key="kl_div_with_ablation",
            title="KL, zeros",
            meaning="how far zeros move next-token probabilities, nats a token",
            formula="KL_zero",
            scale="the model's own at this hook, whatever the dictionary",
            form=".3g",
        ),
    )
}
"""What every evaluation on held-out text measures, by key, in the order that is shown."""

SUITE: dict[str, Metric] = {
    metric.key: metric
    for metric in (
        Metric(
            key="stability",
            title="Stability",
            meaning="mean cosine of a feature's direction and that of its match in a "
            "dictionary of another seed",
            formula="mean over matched pairs of |⟨dⱼ, d'ₘ₍ⱼ₎⟩|",
            scale="1: the other seed finds the same; the floor is what random directions match",
            higher_is_better=True,
        ),
        Metric(
            key="truth_f1",
            title="F1 of latents",
            short="F1",
            meaning="how well a latent fires where the true feature nearest to it does",
            formula="mean over latents of 2 TP / (2 TP + FP + FN), 0 for dead ones",
            scale="1: exactly there; the floor is random directions. SynthSAEBench's",
            higher_is_better=True,
        ),
        Metric(
            key="truth_precision",
            title="Precision of latents",
            short="Precision",
            meaning="share of the rows in which a latent fires where its true feature does",
            formula="mean over latents of TP / (TP + FP), 0 for dead ones",
            scale="1: a latent never fires without its feature",
            higher_is_better=True,
        ),
        Metric(
            key="truth_recall",
            title="Recall of latents",
            short="Recall",
            meaning="share of the rows in which a true feature fires where its latent does",
            formula="mean over latents of TP / (TP + FN)",
            scale="1: a latent fires whenever its feature does",
            higher_is_better=True,
        ),
        Metric(
            key="truth_mcc",
            title="MCC",
            meaning="mean absolute cosine of true features and latents, matched one to one",
            formula="mean over matched pairs of |⟨dⱼ, tₘ₍ⱼ₎⟩|",
            scale="1: each pair has one direction; the floor is what random directions match",
            higher_is_better=True,
        ),
        Metric(
            key="truth_f1_features",
            title="F1 of true features",
            short="F1 (true)",
            meaning="how well a true feature is detected by the one latent it is matched with",
            formula="mean over true features of their match's F1, 0 without a match",
            scale="1: every feature has its detector; narrow dictionaries cannot reach it",
            higher_is_better=True,
        ),
        Metric(
            key="truth_recovered",
            title="Recovered features",
            short="Recovered",
            meaning="share of the true features whose direction was found",
            formula="mean over true features of [|⟨dₘ₍ᵢ₎, tᵢ⟩| ≥ 0.9], matched one to one",
            scale="1: all of them; 0: none",
            higher_is_better=True,
            form=".1%",
        ),
        Metric(
            key="truth_uniqueness",
            title="Uniqueness",
            meaning="number of true features that are nearest to some latent, over latents",
            formula="#{features nearest to a latent} / d_sae",
            scale="1: no two latents are nearest to the same feature",
            higher_is_better=True,
        ),
        Metric(
            key="truth_l0",
            title="True L0",
            meaning="mean number of true features in a row",
            formula="mean #{i : feature i fires}",
            scale="the world's own, whatever the dictionary",
            form=".1f",
        ),
    )
}
"""What `sae eval suite=standard` and `sae truth` measure besides. Each figure is a `Finding`,
with its interval and its floor."""


def metric_of(key: str) -> Metric:
    """Return the metric of that key, whatever measures it.

    Raises:
        KeyError: if no metric has it.
    """
    return METRICS[key] if key in METRICS else SUITE[key]


def shown_in(place: Place) -> list[Metric]:
    """Return the metrics that are shown in `place`."""
    return [metric for metric in METRICS.values() if place in metric.where]
