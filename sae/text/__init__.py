"""Text: where documents come from, and how they become sequences of tokens."""
