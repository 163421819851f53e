"""Harvesting: text through a model, activations of some sites into a cache."""
