"""The card of an exported dictionary: a README that the Hub reads, made of its own figures.

It is a model's card and a data set's at once. Whatever was written by others, such as names of
data and settings, is quoted, so that it shows as what it is.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae.dictionary import ARCHITECTURES, Dictionary
from sae.exchange.card_code import loading, queries
from sae.exchange.formats import saelens
from sae.exchange.saelens import loads_in_saelens
from sae.exchange.shrink import DIRECTIONS_FILE, FULL, INT8, Shrunk

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
# `datasets` reads all tables of a repository in one format, so that labels.csv is none of them.
_TABLES = ("features", "contexts")
_SHRUNK_METRICS = ("explained_variance", "l0", "mse", "cossim")
_SHRUNK_BEHAVIOUR = ("ce_loss_score", "kl_div_score")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_MARKS = re.compile(r"([\\`*_{}\[\]<>#|~&$])")

_LIMITS = """\
A feature's contexts and promoted tokens suggest what it stands for; they do not prove it, and
labels were made from them by a rule unless somebody wrote another one.
Probes on plain activations and plain prompts are strong baselines for detection and for
steering.
Figures are of text like that in the tables; other languages, domains and positions beyond the
context were not measured.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """What was decided about an export."""

    folder: str
    """Where in it the dictionary is."""
    format: str = saelens.NAME
    dtype: str = FULL
    """Of the weights in the files."""
    shrunk: Shrunk | None = None
    """What was made smaller, if anything was."""
    nested: tuple[int, ...] = ()
    """Of a Matryoshka dictionary: latents of each inner level that are left."""
    license: str | None = None
    """As the Hub writes it, such as `apache-2.0`."""
    repository: str | None = None
    """`ORG/NAME` on the Hub, if it goes there."""


def model_card(
    dictionary: Dictionary, figures: dict[str, Any], n_features: int, export: Export
) -> str:
    """The card's text, YAML front matter included.

    Args:
        figures: what `sae eval` wrote for this dictionary, before anything was made smaller.
        n_features: rows of the feature table.
    """
    rows = "\n".join(
        f"| {meaning} | {figures[name]:.4g} |"
        for name, meaning in _METRICS.items()
        if name in figures
    )
    load = loading(dictionary, export.folder, export.format, export.dtype, export.repository)
    return f"""\
{_front_matter(dictionary, export)}
# {_title(dictionary)}

{dictionary.d_sae:,} latents {_widths(dictionary)}, {_origin(dictionary)}. {_rule(dictionary)}
{_nested(export)}
{_files(dictionary, n_features, export)}
## Load it

{load}
## Ask the tables

{queries(export.repository)}
## Figures

On held-out text, special tokens left out: {figures["n_rows"]:,} rows, and for CE and KL
{figures["n_behaviour_tokens"]:,} tokens. Whether a latent lives is counted over
{figures["n_density_rows"]:,} rows, training rows among them.{_target(dictionary)}

| metric | value |
|---|---|
{rows}
{_smaller(figures, export)}{_training(dictionary)}
## Licence

{_licence(export)}
## What it is not good for

{_limits(dictionary, figures)}"""


def _code(value: Any) -> str:
    """`value` as inline code, whatever is in it; Markdown shows all of it and acts on none."""
    text = " ".join(str(value).encode("utf-8", "replace").decode().split()) or " "
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if "`" in (text[0], text[-1]) else ""
    return f"{fence}{space}{text}{space}{fence}"


def _cell(value: Any) -> str:
    """The same inside a table, where a bar would end it even in code."""
    return _code(value).replace("|", r"\|")


def _plain(value: str) -> str:
    """`value` as plain text, without the meaning that Markdown and HTML give to characters."""
    return _MARKS.sub(r"\\\1", " ".join(value.encode("utf-8", "replace").decode().split()))


def _files(dictionary: Dictionary, n_features: int, export: Export) -> str:
    rows = {
        f"{export.folder}/": f"encoder and decoder, as {export.format} has them, "
        f"{export.dtype}",
        DIRECTIONS_FILE: f"`W_dec` ({dictionary.d_sae}, {dictionary.d_out}): what each feature "
        "adds to the activations; `b_dec`",
        "features.parquet": f"all {n_features:,} features: density, activations, promoted and "
        "suppressed tokens, neighbours",
        "contexts.parquet": "the text where each feature fires most, fires less and is silent",
        "labels.csv": "what each feature is called, and explanations that people wrote",
    }
    if export.shrunk is not None and export.shrunk.n_dropped:
        rows["feature_map.csv"] = "the numbers that the features had before"
    lines = (f"| {_cell(name)} | {meaning} |" for name, meaning in rows.items())
    return "| file | what it holds |\n|---|---|\n" + "\n".join(lines) + "\n"


def _smaller(figures: dict[str, Any], export: Export) -> str:
    """What was made smaller and what that cost; nothing where nothing was."""
    shrunk = export.shrunk
    if shrunk is None:
        return ""
    said = []
    if export.dtype == INT8:
        said.append(
            "Weights are stored as `int8`, with a scale for each column of `W_enc` and row of "
            "`W_dec`."
        )
    elif export.dtype != FULL:
        said.append(
            f"Weights are stored as `{export.dtype}`; tools that compute in it too lose more "
            "than what is measured here."
        )
    if shrunk.n_dropped:
        said.append(
            f"{shrunk.n_dropped:,} of {shrunk.d_sae:,} latents are left out: they fired in "
            "none of the rows that the tables count. On other text some of them might have."
        )
    tokens, note = "", ""
    if shrunk.n_behaviour_tokens:
        tokens = f", and for CE and KL {shrunk.n_behaviour_tokens:,} tokens"
        note = "\nOn so few tokens a small change of CE may be chance, up or down.\n"
    elif "ce_loss_score" in figures:
        note = "\nWhat it costs the model's CE was not measured: the model was not to be had.\n"
    return f"""
## Made smaller

{" ".join(said)} The figures above are of the dictionary before that. Measured on
{shrunk.n_rows:,} held-out rows{tokens}, sums in float32:

| metric | before | as it is here |
|---|---|---|
{_shrunk_rows(shrunk)}
{note}"""


def _shrunk_rows(shrunk: Shrunk) -> str:
    sides = shrunk.before, shrunk.after
    rows = [(_METRICS[name], [side[name] for side in sides]) for name in _SHRUNK_METRICS]
    if shrunk.n_behaviour_tokens:
        added = [side["ce_loss_with_sae"] - side["ce_loss_without_sae"] for side in sides]
        rows.append(("CE added, nats a token, `CE_sae − CE_clean`", added))
        rows += [(_METRICS[name], [side[name] for side in sides]) for name in _SHRUNK_BEHAVIOUR]
    return "\n".join(
        f"| {meaning} | {before:.6g} | {after:.6g} |" for meaning, (before, after) in rows
    )


def _licence(export: Export) -> str:
    own = (
        "Its maker chose none: ask before you pass it on."
        if export.license is None
        else f"{_code(export.license)}."
    )
    return (
        f"{own} The model and the text have licences of their own; the tables quote the text.\n"
    )


def _limits(dictionary: Dictionary, figures: dict[str, Any]) -> str:
    lost = []
    if "explained_variance" in figures:
        lost.append(f"{1 - figures['explained_variance']:.1%} of the variance")
    if "ce_loss_score" in figures:
        lost.append(f"{1 - figures['ce_loss_score']:.1%} of what the activations do for CE")
    measured = (
        f"It loses {' and '.join(lost)}: what is in there, no feature shows.\n" if lost else ""
    )
    return measured + _trained_on(dictionary) + _LIMITS


def _trained_on(dictionary: Dictionary) -> str:
    if not _trained_here(dictionary):
        return ""
    n_rows = dictionary.metadata["sae_atlas"]["training_tokens"]
    return f"It was trained on {n_rows:,} rows of one place in one model, at one seed.\n"


def _trained_here(dictionary: Dictionary) -> bool:
    return "training_tokens" in dictionary.metadata["sae_atlas"]


def _origin(dictionary: Dictionary) -> str:
    ours = dictionary.metadata["sae_atlas"]
    if not _trained_here(dictionary):
        return f"which sae-atlas took over from {_code(ours['imported']['from'])}"
    return (
        f"trained with sae-atlas\n{ours['versions']['sae-atlas']} on "
        f"{ours['training_tokens']:,} rows of the text\n{_code(ours['data']['name'])}"
    )


def _training(dictionary: Dictionary) -> str:
    if not _trained_here(dictionary):
        return ""
    rows = "\n".join(f"| {_cell(k)} | {_cell(v)} |" for k, v in _settings(dictionary))
    return f"\n## Training\n\n| key | value |\n|---|---|\n{rows}\n"


def _title(dictionary: Dictionary) -> str:
    model = _plain(dictionary.model_name)
    if dictionary.is_transcoder:
        return (
            f"A transcoder of {model} from {_code(dictionary.hook_name)} to "
            f"{_code(dictionary.hook_name_out)}"
        )
    return f"A sparse autoencoder of {model} at {_code(dictionary.hook_name)}"


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


def _nested(export: Export) -> str:
    if not export.nested:
        return ""
    widths = [f"{width:,}" for width in export.nested]
    said = " or ".join(filter(None, (", ".join(widths[:-1]), widths[-1])))
    return (
        f"Latents are nested (Matryoshka): the first {said} alone, with all else the same, are "
        "a dictionary too.\n"
    )


def _target(dictionary: Dictionary) -> str:
    if not dictionary.is_transcoder:
        return ""
    return (
        f"\nHere x is the activation at `{dictionary.hook_name_out}` and x̂ what is made for it "
        f"of the one at `{dictionary.hook_name}`."
    )


def _front_matter(dictionary: Dictionary, export: Export) -> str:
    """What the Hub reads of a card: the base model, the licence, and which tables to show."""
    in_saelens = export.format == saelens.NAME and loads_in_saelens(dictionary, export.dtype)
    data = dictionary.metadata["sae_atlas"].get("data", {}).get("name", "")
    lines = [f"library_name: {'saelens' if in_saelens else 'sae-atlas'}"]
    if _on_the_hub(dictionary.model_name):
        lines.append(f'base_model: "{dictionary.model_name}"')
    if export.license is not None:
        lines.append(f'license: "{export.license}"')
    if "/" in data and _on_the_hub(data):
        lines += ["datasets:", f'- "{data}"']
    kind = "transcoder" if dictionary.is_transcoder else "sparse-autoencoder"
    lines += ["tags:", *(f"- {tag}" for tag in (kind, "interpretability", "sae-atlas"))]
    lines.append("configs:")
    for name in _TABLES:
        lines += [f"- config_name: {name}", f"  data_files: {name}.parquet"]
    return "\n".join(["---", *lines, "---", ""])


def _on_the_hub(name: str) -> bool:
    """Whether `name` reads as one of the Hub's and is no folder here."""
    return _HUB_ID.fullmatch(name) is not None and not Path(name).exists()


def _settings(dictionary: Dictionary) -> list[tuple[str, Any]]:
    ours = dictionary.metadata["sae_atlas"]
    flat = [("architecture", ours["architecture"])]
    for group in ("sae", "optim"):
        flat += [(f"{group}.{key}", value) for key, value in ours[group].items()]
    names = ("training_tokens", "train_batch_size_tokens", "max_norm_multiple", "seed")
    return flat + [(name, ours[name]) for name in names]
