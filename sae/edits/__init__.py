"""Interventions as data: what changes in a forward pass, where, and at which positions."""

from sae.edits.changes import Add, Change, Put, Reconstruction, Splice
from sae.edits.edit import Edit, edited
from sae.edits.positions import ALL_BUT_FIRST, Where

__all__ = [
    "ALL_BUT_FIRST",
    "Add",
    "Change",
    "Edit",
    "Put",
    "Reconstruction",
    "Splice",
    "Where",
    "edited",
]
