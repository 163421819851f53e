"""What a run found, as one page and one picture."""
