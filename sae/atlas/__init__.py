"""An atlas: what is known of every feature of one dictionary, as a folder that any tool reads.

features.parquet   a record a feature: density, activations, logits, norms, neighbours, ...
contexts.parquet   a record a context: feature, group, rank, position, tokens, activations
labels.csv         what each feature is called, editable by hand
atlas.json         which dictionary, text and settings it was made from
index.html, data/  the pages

`schema` says which columns the two tables have, and both are written and read through it.
"""

from sae.atlas.atlas import Atlas, labels_at
from sae.atlas.labels import (
    LABELS_FILE,
    Labels,
    carry_labels,
    read_labels,
    replace_atlas,
    set_label,
    write_labels,
)
from sae.atlas.record import FORMAT, RECORD_FILE, AtlasRecord, read_record, write_record
from sae.atlas.schema import CONTEXTS, DIALS, FEATURES, GROUPS, N_BANDS, N_LISTED
from sae.atlas.subset import Example, ExampleContext, clearest_features
from sae.atlas.table import columns_of, flat_and_ends, list_array, list_lengths

__all__ = [
    "CONTEXTS",
    "DIALS",
    "FEATURES",
    "FORMAT",
    "GROUPS",
    "LABELS_FILE",
    "N_BANDS",
    "N_LISTED",
    "RECORD_FILE",
    "Atlas",
    "AtlasRecord",
    "Example",
    "ExampleContext",
    "Labels",
    "carry_labels",
    "clearest_features",
    "columns_of",
    "flat_and_ends",
    "labels_at",
    "list_array",
    "list_lengths",
    "read_labels",
    "read_record",
    "replace_atlas",
    "set_label",
    "write_labels",
    "write_record",
]
