"""Interventions as data: what changes in a forward pass, where, and at which positions."""
