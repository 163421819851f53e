"""An atlas: what is known of every feature of one dictionary, as a folder that any tool reads.

features.parquet   a record a feature: density, activations, logits, norms, neighbours, ...
contexts.parquet   a record a context: feature, group, rank, position, tokens, activations
labels.csv         what each feature is called, editable by hand
atlas.json         which dictionary, text and settings it was made from
index.html, data/  the pages

`schema` says which columns the two tables have, and both are written and read through it.
"""
