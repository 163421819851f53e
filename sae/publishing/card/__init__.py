"""The card of an exported dictionary: a README that the Hub reads, made of its own figures.

It is a model's card and a data set's at once. Whatever was written by others, such as names of
data and settings, is quoted, so that it shows as what it is.
"""

from dataclasses import dataclass, field

from sae.atlas import AtlasRecord, Example
from sae.base import UNKNOWN
from sae.dictionary import Dictionary, Record, TrainingRecord
from sae.dictionary.files import loads_in_saelens
from sae.dictionary.storage import FULL
from sae.exchange.formats import named_format
from sae.exchange.formats.saelens import SAELens
from sae.exchange.public import on_the_hub, public
from sae.exchange.stamp import DIRECTIONS_FILE
from sae.figures import Figures, ShrinkingCost
from sae.publishing.card.figures import dials, figures_section, limits, smaller_section
from sae.publishing.card.loading import input_section, loading, queries
from sae.publishing.card.text import (
    cell,
    code,
    example_table,
    plain,
    table,
)
from sae.text.record import TextRecord

# `datasets` reads all tables of a repository in one format, so that labels.csv is none of them.
_TABLES = ("features", "contexts")


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """What was decided about an export."""

    folder: str
    """Path of the dictionary inside the folder."""
    format: str = SAELens.name
    dtype: str = FULL
    """Type of the weights in the files."""
    shrunk: ShrinkingCost | None = None
    """What was made smaller, if anything was."""
    nested: tuple[int, ...] = ()
    """Latents that are left of each inner level of a Matryoshka dictionary."""
    license: str | None = None
    """Licence in the Hub's spelling, such as `apache-2.0`."""
    repository: str | None = None
    """`ORG/NAME` on the Hub, if it goes there."""
    controls: tuple[Figures, ...] = ()
    """Figures of its controls."""
    atlas: AtlasRecord | None = None
    """What the tables are from."""
    examples: list[Example] = field(default_factory=list)
    """Features to show, by the numbers that they have here."""


def model_card(
    dictionary: Dictionary, figures: Figures, n_features: int, export: Export
) -> str:
    """Return the card's text, YAML front matter included.

    Args:
        figures: what `sae eval` wrote for this dictionary, before anything was made smaller.
        n_features: rows of the feature table.
    """
    load = loading(dictionary, export.folder, export.format, export.dtype, export.repository)
    text = None if figures.data is None else public(figures.data)
    return f"""\
{_front_matter(dictionary, export)}
# {_title(dictionary)}

{dictionary.d_sae:,} latents {_widths(dictionary)}. {_origin(dictionary, export.atlas)}
{_formula(dictionary)}
{_nested(export)}
{_found(n_features, export)}\
## Files

{_files(dictionary, n_features, export)}
## Load it

{load}
## Get activations

{input_section(dictionary)}
## Ask the tables

{queries(export.repository)}
## Figures

{figures_section(dictionary, (figures, *export.controls), export.shrunk, text)}\
{smaller_section(figures, export.shrunk, export.dtype)}{_training(dictionary)}
## Licence

{_licence(export)}
## What it is not good for

{limits(figures, one_seed=_trained_here(dictionary) is not None)}"""


def _found(n_features: int, export: Export) -> str:
    said = [text for text in (_chosen(n_features, export), dials(export.atlas)) if text]
    return "".join(f"{text}\n\n" for text in ("## What it found", *said)) if said else ""


def _chosen(n_features: int, export: Export) -> str:
    if not export.examples:
        return ""
    n = len(export.examples)
    chosen = f"The {n} features of {n_features:,} that fire the strongest, not typical ones."
    if any(one.promoted for one in export.examples):
        chosen = (
            f"The {n} clearest of {n_features:,} features, not typical ones: in most of their "
            "texts a token that they promote stands where they fire, or right after."
        )
    return f"""\
{chosen}
The token where a feature fires most is bold, `↵` is a line break. Labels were made by a rule,
unless somebody wrote another one.

{example_table(export.examples)}"""


def _files(dictionary: Dictionary, n_features: int, export: Export) -> str:
    title = named_format(export.format).title
    rows = {
        f"{export.folder}/": f"encoder and decoder for {title}, {export.dtype}",
        DIRECTIONS_FILE: f"`W_dec` ({dictionary.d_sae}, {dictionary.d_out}): what each feature "
        "adds to the activations; `b_dec`",
        "features.parquet": f"all {n_features:,} features: density, activations, promoted and "
        "suppressed tokens, neighbours",
        "contexts.parquet": "the text where each feature fires most, fires less and is silent",
        "labels.csv": "what each feature is called, and explanations that people wrote",
    }
    if export.shrunk is not None and export.shrunk.n_dropped:
        rows["feature_map.csv"] = "the numbers that the features had before"
    told = ((cell(name), meaning) for name, meaning in rows.items())
    return table("file | what it holds", told) + "\n"


def _licence(export: Export) -> str:
    own = (
        "None is stated here. Ask whoever made it before you pass it on."
        if export.license is None
        else f"{code(export.license)}."
    )
    return (
        f"{own} The model and the text have licences of their own; the tables quote the text.\n"
    )


def _trained_here(dictionary: Dictionary) -> TrainingRecord | None:
    """Return how it was trained; None if it came from elsewhere and that is not known."""
    record = dictionary.record
    return None if record.imported is not None else record.training


def _origin(dictionary: Dictionary, atlas: AtlasRecord | None) -> str:
    record, training = dictionary.record, _trained_here(dictionary)
    if training is not None:
        version = training.versions.get("sae-atlas")
        of = "" if version is None else f" {code(version)}"
        return f"It was trained with sae-atlas{of} on {_rows_seen(record, training, atlas)}."
    origin = record.imported
    came = "" if origin is None else f"It came from {code(public(origin.source))}. "
    said = []
    if record.others.get("sae_lens_training_version"):
        said.append(f"with SAELens {code(record.others['sae_lens_training_version'])}")
    if record.dataset_path not in (None, "", UNKNOWN):
        said.append(f"on the text {code(public(str(record.dataset_path)))}")
    if said:
        return f"{came}Its files say that it was trained {' '.join(said)}."
    return f"{came}Where it was trained is not known here."


def _rows_seen(record: Record, training: TrainingRecord, atlas: AtlasRecord | None) -> str:
    """How many rows it was trained on, of what text, and how often each was seen."""
    trained, text = training.training_tokens, record.text or TextRecord()
    held_out = text.held_out_fraction
    rows, seen = f"{trained:,} rows", ""
    same_cache = atlas is not None and atlas.cache_digest == record.cache_digest
    n_rows = atlas.n_rows if atlas is not None and same_cache else None
    if n_rows is not None and held_out is not None:
        # The atlas read the very rows that were trained on, and those that were held out.
        n_training = round(n_rows * (1 - held_out))
        if trained > n_training:
            rows = f"about {n_training:,} rows"
            seen = f", each seen {trained / n_training:.1f} times"
    of_text = "" if text.name is None else f" of {code(public(text.name))}"
    if text.n_documents is not None:
        rows_of = f"{text.n_documents:,} document{'s' if text.n_documents != 1 else ''}"
        of_text += (
            f" ({rows_of}, {held_out:.0%} of the text held out)"
            if held_out
            else f" ({rows_of})"
        )
    return f"{rows}{of_text}{seen}"


def _training(dictionary: Dictionary) -> str:
    record, training = dictionary.record, _trained_here(dictionary)
    if training is None:
        return ""
    flat: list[tuple[str, object]] = [("architecture", training.architecture)]
    for group, settings in (("sae", training.sae), ("optim", training.optim)):
        flat += [(f"{group}.{key}", value) for key, value in settings.items()]
    flat += [
        ("training_tokens", training.training_tokens),
        ("train_batch_size_tokens", training.train_batch_size_tokens),
        ("max_norm_multiple", record.max_norm_multiple),
        ("seed", training.seed),
    ]
    given = ((cell(k), cell(v)) for k, v in flat if v is not None and v is not False)
    return f"\n## Training\n\n{table('key | value', given)}\n"


def _title(dictionary: Dictionary) -> str:
    model = plain(public(dictionary.model_name))
    if dictionary.is_transcoder:
        return (
            f"A transcoder of {model} from {code(dictionary.hook_name)} to "
            f"{code(dictionary.hook_name_out)}"
        )
    return f"A sparse autoencoder of {model} at {code(dictionary.hook_name)}"


def _widths(dictionary: Dictionary) -> str:
    if dictionary.is_transcoder:
        return (
            f"that read activations of width {dictionary.d_in} and write activations of width "
            f"{dictionary.d_out}"
        )
    return f"on activations of width {dictionary.d_in}"


def _formula(dictionary: Dictionary) -> str:
    activation = dictionary.activation
    numbers = "".join(f" and `{name} = {n}`" for name, n in activation.numbers.items())
    skip = "" if dictionary.W_skip is None else " + x @ W_skip.T"
    (by, back) = (port.normalisation for port in dictionary.ports)
    rows = "" if by is None else f", of rows that are first made `{by.formula}`"
    undone = "" if back is None else ", undone for each row"
    return (
        f"It is a `{activation.name}` one: activations are `{activation.formula}`, with "
        f"`pre = x @ W_enc + b_enc`{numbers}{rows}; the reconstruction is "
        f"`activations @ W_dec + b_dec{skip}`{undone}."
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


def _front_matter(dictionary: Dictionary, export: Export) -> str:
    """Return what the Hub reads: the base model, the licence, and which tables to show."""
    in_saelens = export.format == SAELens.name and loads_in_saelens(dictionary, export.dtype)
    text = dictionary.record.text
    data = "" if text is None else text.name or ""
    lines = [f"library_name: {'saelens' if in_saelens else 'sae-atlas'}"]
    if on_the_hub(dictionary.model_name):
        lines.append(f'base_model: "{dictionary.model_name}"')
    if export.license is not None:
        lines.append(f'license: "{export.license}"')
    if "/" in data and on_the_hub(data):
        lines += ["datasets:", f'- "{data}"']
    kind = "transcoder" if dictionary.is_transcoder else "sparse-autoencoder"
    lines += ["tags:", *(f"- {tag}" for tag in (kind, "interpretability", "sae-atlas"))]
    lines.append("configs:")
    for name in _TABLES:
        lines += [f"- config_name: {name}", f"  data_files: {name}.parquet"]
        # What `load_dataset` gives without a name.
        lines += ["  default: true"] * (name == _TABLES[0])
    return "\n".join(["---", *lines, "---", ""])
