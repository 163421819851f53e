"""What a card says of how good a dictionary is: figures, and what they do not show."""

from collections.abc import Sequence

from sae.atlas import AtlasRecord
from sae.controls import CONTROLS
from sae.dictionary import Dictionary
from sae.dictionary.storage import FULL, INT8
from sae.figures import Figures, ShrinkingCost
from sae.metrics import METRICS
from sae.publishing.card.text import code, plain, table

_CE = "ce_loss_without_sae"
_CE_SAE = "ce_loss_with_sae"
_SHRUNK_METRICS = ("explained_variance", "l0", "mse", "cossim")
_SHRUNK_BEHAVIOUR = ("ce_loss_score", "kl_div_score")

_LIMITS = (
    "A feature's contexts and promoted tokens suggest what it stands for; they do not prove "
    "it.",
    "Probes on plain activations and plain prompts are strong baselines for detection and for "
    "steering.",
    "Figures are of text like that in the tables; other languages, domains and positions "
    "beyond the context were not measured.",
)


def figures_section(
    dictionary: Dictionary,
    measured: Sequence[Figures],
    shrunk: ShrinkingCost | None,
    text: str | None,
) -> str:
    """Return where figures were measured, on which text if that is known, and their table.

    Those of the dictionary come first, and behind them those of its controls.
    """
    dropped = shrunk is not None and shrunk.n_dropped > 0
    figures, *controls = measured
    values = figures.values
    rows = (
        (_told(key), *(_figure(one, key) for one in measured))
        for key in METRICS
        # What was dropped is in no file: that is said where it is told.
        if key in {*values, *figures.not_measurable}
        and not (dropped and key == "dead_fraction")
    )
    columns = ["metric", "value", *(_title(one) for one in controls)]
    of_text = "" if text is None else f" of {code(text)}"
    behaviour = ""
    if figures.n_behaviour_tokens:
        behaviour = f", and for CE and KL {figures.n_behaviour_tokens:,} tokens"
    density = ""
    if "dead_fraction" in values and not dropped:
        density = (
            f" Whether a feature lives is counted over {figures.n_density_rows:,} rows, "
            "training rows among them."
        )
    return f"""\
On held-out text{of_text}, special tokens left out: {figures.n_rows:,} rows{behaviour}.\
{density} {_beside(controls)}{_target(dictionary)}

{table(" | ".join(columns), rows)}
"""


def _figure(figures: Figures, key: str) -> str:
    if key in figures.not_measurable:
        return f"not measurable: {figures.not_measurable[key]}"
    if key not in figures.values:
        return "–"
    ends = figures.intervals.get(key)
    interval = "" if ends is None else f" ({ends[0]:.4g} to {ends[1]:.4g})"
    return f"{figures.values[key]:.4g}{interval}"


def _title(control: Figures) -> str:
    return "control" if control.control is None else CONTROLS[control.control].title


def _beside(controls: Sequence[Figures]) -> str:
    """Say what the controls are, or that none tells what untrained directions would score."""
    between = "Between brackets are 95% intervals."
    kinds = [CONTROLS[one.control] for one in controls if one.control is not None]
    if not kinds:
        return (
            f"{between} No control was trained beside it, so these figures do not tell what "
            "directions that were not learned would score."
        )
    said = "; ".join(f"{kind.title}: {kind.meaning}" for kind in kinds)
    return f"{between} Controls, which a figure has to beat to mean something: {said}."


def _told(key: str) -> str:
    metric = METRICS[key]
    return f"{metric.title}: {metric.meaning}, `{metric.formula}`"


def _target(dictionary: Dictionary) -> str:
    if not dictionary.is_transcoder:
        return ""
    return (
        f"\nHere x is the activation at {code(dictionary.hook_name_out)} and x̂ what is made "
        f"for it of the one at {code(dictionary.hook_name)}."
    )


def dials(atlas: AtlasRecord | None) -> str:
    """Return how many features are dials, at what cost and by what chance.

    Nothing where none was to be scored; where none could be, why.
    """
    if atlas is None or not atlas.n_scored:
        why = None if atlas is None else atlas.without_dials
        return "" if why is None else f"No feature was scored as a dial: {plain(why)}."
    said = (
        f"Of {atlas.n_scored:,} features that were scored by what they do to the model's "
        f"output, {atlas.n_dials:,} are dials"
    )
    if atlas.n_nulls is not None:
        lucky = atlas.n_scored / (2 * atlas.n_nulls + 1)
        chance = f"{lucky:.0f}" if lucky >= 1 else f"{lucky:.1g}"
        said += (
            ": they make the tokens that they promote at least twice as likely, and raise "
            f"them more than any of {atlas.n_nulls} random directions and {atlas.n_nulls} "
            f"random features at equal cost, as at most about {chance} would by chance"
        )
    if atlas.n_dials and atlas.median_dial_cost is not None and atlas.max_cost is not None:
        said += (
            f"; their recommended doses cost {atlas.median_dial_cost:.2g} nats a token of KL "
            f"on neutral text (median, {atlas.max_cost:.2g} were allowed)"
        )
    return f"{said}."


def smaller_section(figures: Figures, shrunk: ShrinkingCost | None, dtype: str) -> str:
    """Return what was made smaller and what that cost; nothing where nothing was."""
    if shrunk is None:
        return ""
    said = []
    if dtype == INT8:
        said.append(
            "Weights are stored as `int8`, with a scale for each column of `W_enc` and row of "
            "`W_dec`."
        )
    elif dtype != FULL:
        said.append(
            f"Weights are stored as `{dtype}`; tools that compute in it too lose more "
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
    elif _CE in figures.values:
        note = "\nWhat it costs the model's CE was not measured: the model was not to be had.\n"
    return f"""
## Made smaller

{" ".join(said)} The figures above are of the dictionary before that. Measured on
{shrunk.n_rows:,} held-out rows{tokens}, sums in float32:

{_shrunk_table(shrunk)}
{note}"""


def _shrunk_table(shrunk: ShrinkingCost) -> str:
    sides = shrunk.before, shrunk.after
    rows = [(_told(key), [side[key] for side in sides]) for key in _SHRUNK_METRICS]
    if shrunk.n_dropped:
        share = shrunk.n_dropped / shrunk.d_sae
        rows.insert(2, ("Dead features, share active in no row of the tables", [share, 0.0]))
    if shrunk.n_behaviour_tokens:
        added = [side[_CE_SAE] - side[_CE] for side in sides]
        rows.append(("CE added, nats a token, `CE_sae − CE_clean`", added))
        measured = (key for key in _SHRUNK_BEHAVIOUR if all(key in side for side in sides))
        rows += [(_told(key), [side[key] for side in sides]) for key in measured]
    told = ((meaning, *(f"{number:.6g}" for number in pair)) for meaning, pair in rows)
    return table("metric | before | as it is here", told)


def limits(figures: Figures, *, one_seed: bool) -> str:
    """Return what the dictionary does not show, in words."""
    said, values = [], figures.values
    explained = values.get("explained_variance")
    if explained is not None and explained < 0:
        said.append(
            "It reconstructs worse than the mean activation would (explained variance "
            f"{explained:.2f})."
        )
    elif explained is not None:
        said.append(f"{1 - explained:.1%} of the variance is not in any feature.")
    if _CE in values and _CE_SAE in values:
        clean, replaced = values[_CE], values[_CE_SAE]
        verb = "rises" if replaced > clean else "goes"
        zeros = values.get("ce_loss_with_ablation")
        worse = zeros is not None and replaced >= zeros
        than = f", no better than with zeros there ({zeros:.2f})" if worse else ""
        said.append(
            f"With the reconstruction in place the model's loss {verb} from {clean:.2f} to "
            f"{replaced:.2f} nats a token{than}."
        )
    if one_seed:
        said.append("All of it is of one place in one model, trained at one seed.")
    return "".join(f"- {sentence}\n" for sentence in (*said, *_LIMITS))
