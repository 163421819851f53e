"""Dictionaries as files: SAELens's folder, which is ours too, and the card for the Hub."""
