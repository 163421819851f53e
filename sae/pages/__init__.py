"""What a run found, as pages and pictures."""
