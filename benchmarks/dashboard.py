"""SAEDashboard on rows of ours, at its best settings, to be timed and compared beside ours.

SAEDashboard 0.8.0 visits all tokens once for every batch of features (128 by its default). It
is given what it needs most: activations that are computed already, in its own cache of files,
so that no model runs, and no page or JSON is written. Tried on 131,072 tokens with a ReLU
dictionary of 1,152 latents, 128 features at once (two busy cores): 8.6 s with minibatches of 32
prompts (its default), 3.8 s with 256, 3.5 s with 1,024; 256 features at once took 5.6 s.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Dashboard(NamedTuple):
    """What SAEDashboard found of one feature."""

    n_active: int
    top_values: list[float]
    """Its highest activations, descending."""
    top_places: list[tuple[int, int]]
    """Sequence and position of each."""


def cache_activations(rows: Tensor, hook_name: str, folder: Path, prompts: int) -> None:
    """Write (prompt, position, d_in) as the files that SAEDashboard would make of a model."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(torch.split(rows, prompts)):
        torch.save({hook_name: part.float()}, folder / f"model_activations_{number}.pt")


def dashboards(
    dictionary_folder: Path,
    unembedding: Tensor,
    tokens: Tensor,
    features: list[int],
    activations: Path,
    **settings: Any,
) -> Any:
    """Run SAEDashboard's `SaeVisRunner`, with the panels of Neuronpedia's pages.

    Args:
        unembedding: (d_model, vocabulary).
        tokens: (prompt, position), int64.
        activations: folder that `cache_activations` has filled.
        settings: further fields of `SaeVisConfig`.
    """
    from sae_dashboard.sae_vis_data import SaeVisConfig
    from sae_dashboard.sae_vis_runner import SaeVisRunner
    from sae_lens import SAE

    encoder = SAE.load_from_disk(str(dictionary_folder))
    if not getattr(encoder.cfg, "rescale_acts_by_decoder_norm", True):
        # It folds the norms of a TopK's decoder in, which SAELens allows where they count in
        # the choice. Where all are equal they make no difference to that.
        norms = encoder.W_dec.norm(dim=1)
        assert torch.allclose(norms, norms[0].expand_as(norms), rtol=1e-4)
        encoder.cfg.rescale_acts_by_decoder_norm = True
    hook_name = encoder.cfg.metadata.hook_name
    config = SaeVisConfig(
        hook_point=hook_name,
        features=features,
        cache_dir=activations,
        feature_centric_layout=_panels(),
        **settings,
    )
    # It asks a model for nothing but this when all activations are there.
    model = SimpleNamespace(hook_dict={hook_name: None}, W_U=unembedding)
    return SaeVisRunner(config).run(encoder=encoder, model=model, tokens=tokens)


def found(data: Any) -> dict[int, Dashboard]:
    """Figures of each feature, from the data of a run."""
    figures = {}
    for feature, one in data.feature_data_dict.items():
        top = one.sequence_data.seq_group_data[0].seq_data
        places = [(s.original_index, s.qualifying_token_index) for s in top]
        # Its stretches leave out the first token of the prompt.
        values = [s.feat_acts[p - 1] for s, (_, p) in zip(top, places, strict=True)]
        # The bars are counts of active tokens; its density is rounded to 0.001%.
        n_active = int(sum(one.acts_histogram_data.bar_heights))
        figures[feature] = Dashboard(n_active, values, places)
    return figures


def _panels() -> Any:
    """Return what a page of Neuronpedia shows of a feature."""
    from sae_dashboard.components_config import (
        ActsHistogramConfig,
        Column,
        FeatureTablesConfig,
        LogitsHistogramConfig,
        LogitsTableConfig,
        SequencesConfig,
    )
    from sae_dashboard.layout import SaeVisLayoutConfig

    sequences = SequencesConfig(
        stack_mode="stack-all",
        buffer=None,
        compute_buffer=True,
        n_quantiles=5,
        top_acts_group_size=20,
        quantile_group_size=5,
    )
    others = (
        ActsHistogramConfig(n_bins=50),
        LogitsHistogramConfig(n_bins=50),
        LogitsTableConfig(n_rows=10),
        FeatureTablesConfig(n_rows=3),
    )
    return SaeVisLayoutConfig(columns=[Column(sequences, *others)])
