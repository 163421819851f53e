"""What `sae eval suite=standard` measures besides: each figure is a `Finding`."""

from sae.metrics.metric import Metric

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
            key="stability_shared",
            title="Shared features",
            meaning="share of the features that another seed has too: decoder and encoder are "
            "matched with the same feature, both at a cosine of at least 0.7",
            formula="mean over j of [m(j) = mₑ(j), both cosines ≥ 0.7]",
            scale="1: the other seed has all of them; 0: none",
            higher_is_better=True,
            form=".1%",
        ),
        Metric(
            key="stability_agreement",
            title="Agreement of the matches",
            meaning="share of the features whose encoder and decoder match the same feature",
            formula="mean over j of [m(j) = mₑ(j)]",
            scale="1: reading and writing say the same; chance is one over the features",
            higher_is_better=True,
            form=".1%",
        ),
        Metric(
            key="description_length",
            title="Description length",
            meaning="bits that writing a row down in active features takes, rounded as far as "
            "costs a hundredth of the variance",
            formula="Σⱼ [H(pⱼ) + pⱼ · H(bin of fⱼ | fⱼ > 0)]",
            scale="fewer is a shorter account; compare at equal explained variance",
            higher_is_better=False,
            form=".1f",
        ),
        Metric(
            key="description_length_index",
            title="Index bits",
            meaning="bits that say which features of a row are active, if all are equally "
            "frequent",
            formula="mean log₂ C(d_sae, L0 of the row)",
            scale="part of the description of a dictionary whose features are all as frequent",
            form=".1f",
        ),
        Metric(
            key="description_length_kept",
            title="Explained variance, rounded",
            meaning="share of the variance kept by what the description length counts",
            formula="1 − Σ‖x−x̂‖² / Σ‖x−x̄‖², activations rounded",
            scale="lengths of different dictionaries compare where this is equal",
        ),
        Metric(
            key="absorption_fraction",
            title="Absorption",
            meaning="how much of a word's first letter other features carry in the place of "
            "the letter's own",
            formula="mean over letters of a / (a + M), a = min(A, P − M)",
            scale="0: the letter's features do it all; 1: they are silent and others speak",
            higher_is_better=False,
        ),
        Metric(
            key="absorption_full",
            title="Full absorption",
            meaning="share of words where the letter's features are silent and one other "
            "feature carries the letter",
            formula="mean over letters of [M = 0, c ≥ 0.025, f·c ≥ 0.4 P for one feature]",
            scale="0: never; 1: on every word",
            higher_is_better=False,
        ),
        Metric(
            key="absorption_splits",
            title="Features of a letter",
            meaning="features that a letter is split into: each raises the probe's F1 by 0.03",
            formula="mean over letters of max k : F1(k) > F1(k−1) + 0.03",
            scale="1: one feature a letter; more means that the letter is split",
            form=".2f",
        ),
        Metric(
            key="absorption_probe_f1",
            title="Letter probe",
            meaning="how well a probe on activations tells a word's first letter",
            formula="mean over letters of F1, words not trained on",
            scale="absorption is measured where this exceeds 0.6 for 20 letters or more",
            higher_is_better=True,
        ),
        Metric(
            key="absorption_feature_f1",
            title="Letter features",
            meaning="how well the features of a letter tell a word's first letter",
            formula="mean over letters of F1 of the features that count as the letter's",
            scale="what the absorption is to be read beside: at 0 no feature knows letters",
            higher_is_better=True,
        ),
        Metric(
            key="meta_explained_variance",
            title="Meta-dictionary",
            meaning="share of the decoder directions' variance that a dictionary of them, a "
            "quarter as wide and with four active, explains",
            formula="1 − Σ‖d−d̂‖² / Σ‖d−d̄‖², d a unit row of W_dec",
            scale="high: features are made of a few common parts; the floor is what random "
            "directions give",
        ),
        Metric(
            key="sparse_probing",
            title="Sparse probing",
            meaning="accuracy of a probe on k features of a text's last token, on texts that "
            "it was not trained on",
            formula="mean over data sets of the share of right answers",
            scale="1: all right; half: chance. Read it beside the probe on activations",
            higher_is_better=True,
        ),
        Metric(
            key="sparse_probing_raw",
            title="Probing of activations",
            meaning="accuracy of logistic regression on the activations themselves",
            formula="mean over data sets of the share of right answers",
            scale="what the model knows; features can hardly do better",
            higher_is_better=True,
        ),
    )
}
"""By key, in the order that is shown."""
