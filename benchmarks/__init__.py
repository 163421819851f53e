"""Measurements: each module compares in one run, and writes JSON and a table."""
