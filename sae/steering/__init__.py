"""Turning features up and down while a model writes, and measuring what that does."""
