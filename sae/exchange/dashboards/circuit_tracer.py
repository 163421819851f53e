"""An atlas as the feature files of circuit-tracer's pages, one JSON a feature.

The form is that of `circuit_tracer/frontend/feature_models.py`: examples in groups, promoted
and suppressed tokens, lowest and highest activation, how often the feature fires. What
`quantile_values` holds is written down nowhere; it stays empty. A file is named by the number
that its graphs have for a feature of a layer, Cantor's pairing of the two.
"""

from itertools import groupby
from pathlib import Path

from sae.exchange.dashboards.place import Place
from sae.exchange.dashboards.rows import TOP, Dashboard, Exported, json_bytes, write_features

_BLOCK = 256


def write_feature_files(atlas: Exported, place: Place, folder: Path) -> None:
    """Write a file for each feature, dead ones too."""
    scan = f"{place.model_id}/{place.source}"
    write_features(
        atlas,
        folder,
        _BLOCK,
        lambda _, block: (
            (f"{paired(place.layer, one.feature)}.json", json_bytes(_feature(scan, one)))
            for one in block
        ),
    )


def paired(layer: int, feature: int) -> int:
    """Return one number for two: (l + f)(l + f + 1) / 2 + f."""
    both = layer + feature
    return both * (both + 1) // 2 + feature


def _feature(scan: str, one: Dashboard) -> dict[str, object]:
    groups = groupby(one.contexts, lambda context: (context.bin_min, context.bin_max))
    quantiles = [
        {
            "quantile_name": "Top activations" if low == TOP else f"{low:.4g} to {high:.4g}",
            "examples": [
                {
                    "tokens": context.tokens,
                    "tokens_acts_list": context.values,
                    "train_token_ind": context.peak,
                    "is_repeated_datapoint": False,
                }
                for context in contexts
            ],
        }
        for (low, high), contexts in groups
    ]
    return {
        "transcoder_id": scan,
        "index": one.feature,
        "examples_quantiles": quantiles,
        "top_logits": one.fields["pos_str"],
        "bottom_logits": one.fields["neg_str"],
        "act_min": 0.0,
        "act_max": one.highest,
        "quantile_values": [],
        "histogram": one.fields["freq_hist_data_bar_heights"],
        "activation_frequency": one.fields["frac_nonzero"],
    }
