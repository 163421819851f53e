"""What `sae truth` measures, on rows whose features are known."""

from sae.metrics.metric import Metric

TRUTH: dict[str, Metric] = {
    metric.key: metric
    for metric in (
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
"""By key, in the order that is shown."""
