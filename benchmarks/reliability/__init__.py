"""Kills, damages and full disks for every command and artefact, on a tiny random model.

`python -m benchmarks.reliability [minutes]` tries as many of all trials as the time allows,
drawn at random, and writes `docs/reliability.md` and `benchmarks/results/reliability.json`.
"""
