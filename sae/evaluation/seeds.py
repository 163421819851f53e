"""Stability as a column of an atlas."""

from sae.atlas.seeds import OtherSeeds
from sae.cache.layout import ActivationCache
from sae.dictionary import Dictionary
from sae.evaluation.sample import sample_rows
from sae.evaluation.stability import PerFeature, reseeded, stability
from sae.findings import Finding
from sae.run import Run


def other_seeds(
    run: Run, name: str, dictionary: Dictionary, cache: ActivationCache
) -> OtherSeeds:
    """Return what an atlas of a dictionary is to say of its run's other seeds."""
    others = reseeded(run, name, dictionary)

    def measure() -> tuple[PerFeature, Finding]:
        x, _ = sample_rows(dictionary, cache, held_out=bool(cache.held_out.any()))
        findings, per_feature = stability(dictionary, others, x)
        return per_feature, findings[0]

    return OtherSeeds(tuple(others), tuple(one.digest for one in others.values()), measure)
