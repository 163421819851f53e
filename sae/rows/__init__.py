"""Rows of activations to train on and to measure: of a cache, of a model, or of one's own."""
