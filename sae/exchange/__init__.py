"""Dictionaries, activations and feature tables in the forms of other tools, there and back."""
