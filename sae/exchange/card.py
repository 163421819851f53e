"""The card of an exported dictionary: a README that the Hub reads, made of its own figures."""

from typing import Any

from sae.dictionary import ARCHITECTURES, Dictionary
from sae.exchange.formats import named_format, saelens
from sae.exchange.saelens import loads_in_saelens

_METRICS = {
    "explained_variance": "Explained variance, `1 − Σ‖x−x̂‖² / Σ‖x−x̄‖²`",
    "l0": "L0, mean number of active latents",
    "dead_fraction": "Dead latents, share active in no counted row",
    "ce_loss_score": "CE score, `(CE_zero − CE_sae) / (CE_zero − CE_clean)`",
    "ce_loss_score_mean_ablation": "CE score against mean ablation",
    "kl_div_score": "KL score, `(KL_zero − KL_sae) / KL_zero`",
    "mse": "Mean of ‖x−x̂‖², summed over the width",
    "cossim": "Mean cosine of x and x̂",
    "l2_ratio": "Mean of ‖x̂‖ / ‖x‖",
}

_TRAINED_ON = "It was trained on few tokens of a mixed text and on one layer of one model."
_LIMITS = """\
A feature's contexts and promoted tokens suggest what it stands for; they do not prove it.
Probes on plain activations and plain prompts are strong baselines for detection and for
steering.
"""


def model_card(
    dictionary: Dictionary,
    figures: dict[str, Any],
    subfolder: str,
    n_features: int,
    format: str = saelens.NAME,
) -> str:
    """The card's text, YAML front matter included.

    Args:
        figures: what `sae eval` wrote for this dictionary.
        subfolder: where in the export the dictionary is.
        n_features: rows of the feature table.
        format: what the dictionary is written in.
    """
    rows = "\n".join(
        f"| {meaning} | {figures[name]:.4g} |"
        for name, meaning in _METRICS.items()
        if name in figures
    )
    return f"""\
{_front_matter(dictionary, format)}
# {_title(dictionary)}

{dictionary.d_sae:,} latents {_widths(dictionary)}, {_origin(dictionary)}. {_rule(dictionary)}

`features.parquet` describes all {n_features:,} features (density, activations, promoted and
suppressed tokens, neighbours), `contexts.parquet` holds the text where each fires most.

## Load it

```python
import sae                                   # sae-atlas
dictionary = sae.load("{subfolder}")
{_load_elsewhere(dictionary, subfolder, format)}
import pandas                                # the feature table
features = pandas.read_parquet("features.parquet")
```

## Figures

On held-out text, special tokens left out: {figures["n_rows"]:,} rows, and for CE and KL
{figures["n_behaviour_tokens"]:,} tokens. Whether a latent lives is counted over
{figures["n_density_rows"]:,} rows, training rows among them.{_target(dictionary)}

| metric | value |
|---|---|
{rows}
{_training(dictionary)}
## What it is not good for

{_limits(dictionary)}"""


def _trained_here(dictionary: Dictionary) -> bool:
    return "training_tokens" in dictionary.metadata["sae_atlas"]


def _limits(dictionary: Dictionary) -> str:
    return (f"{_TRAINED_ON}\n" if _trained_here(dictionary) else "") + _LIMITS


def _origin(dictionary: Dictionary) -> str:
    ours = dictionary.metadata["sae_atlas"]
    if not _trained_here(dictionary):
        return f"which sae-atlas took over from `{ours['imported']['from']}`"
    return (
        f"trained with sae-atlas\n{ours['versions']['sae-atlas']} on "
        f"{ours['training_tokens']:,} rows of the text\n`{ours['data']['name']}`"
    )


def _training(dictionary: Dictionary) -> str:
    if not _trained_here(dictionary):
        return ""
    rows = "\n".join(f"| `{key}` | `{value}` |" for key, value in _settings(dictionary))
    return f"\n## Training\n\n| key | value |\n|---|---|\n{rows}\n"


def _title(dictionary: Dictionary) -> str:
    if dictionary.is_transcoder:
        return (
            f"A transcoder of {dictionary.model_name} from `{dictionary.hook_name}` "
            f"to `{dictionary.hook_name_out}`"
        )
    return f"A sparse autoencoder of {dictionary.model_name} at `{dictionary.hook_name}`"


def _widths(dictionary: Dictionary) -> str:
    if dictionary.is_transcoder:
        return (
            f"that read activations of width {dictionary.d_in} and write activations of width "
            f"{dictionary.d_out}"
        )
    return f"on activations of width {dictionary.d_in}"


def _rule(dictionary: Dictionary) -> str:
    """How activations and reconstruction are computed, from the weights' names."""
    formula = ARCHITECTURES[dictionary.architecture].formula
    k = "" if dictionary.k is None else f" and `k = {dictionary.k}`"
    skip = "" if dictionary.W_skip is None else " + x @ W_skip.T"
    return (
        f"It is a `{dictionary.architecture}` one: activations are `{formula}`, with "
        f"`pre = x @ W_enc + b_enc`{k}; the reconstruction is "
        f"`activations @ W_dec + b_dec{skip}`."
    )


def _load_elsewhere(dictionary: Dictionary, subfolder: str, format: str) -> str:
    if format == saelens.NAME and not loads_in_saelens(dictionary):
        return ""
    return "\n" + named_format(format).LOAD.format(folder=subfolder) + "\n"


def _target(dictionary: Dictionary) -> str:
    if not dictionary.is_transcoder:
        return ""
    return (
        f"\nHere x is the activation at `{dictionary.hook_name_out}` and x̂ what is made for it "
        f"of the one at `{dictionary.hook_name}`."
    )


def _front_matter(dictionary: Dictionary, format: str) -> str:
    """What the Hub reads of a card: the base model, and which tables to show."""
    in_saelens = format == saelens.NAME and loads_in_saelens(dictionary)
    library = "saelens" if in_saelens else "sae-atlas"
    kind = "transcoder" if dictionary.is_transcoder else "sparse-autoencoder"
    return f"""\
---
library_name: {library}
base_model: {dictionary.model_name}
tags:
- {kind}
- interpretability
- sae-atlas
configs:
- config_name: features
  data_files: features.parquet
- config_name: contexts
  data_files: contexts.parquet
---
"""


def _settings(dictionary: Dictionary) -> list[tuple[str, Any]]:
    ours = dictionary.metadata["sae_atlas"]
    flat = [("architecture", ours["architecture"])]
    for group in ("sae", "optim"):
        flat += [(f"{group}.{key}", value) for key, value in ours[group].items()]
    names = ("training_tokens", "train_batch_size_tokens", "max_norm_multiple", "seed")
    return flat + [(name, ours[name]) for name in names]
