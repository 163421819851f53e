"""What each feature of a dictionary stands for: where it fires, and what it promotes."""
