"""Interventions as data: what changes in a forward pass, where, and at which positions.

`Edits` are data: a list of records that a file holds. `Planner` makes `Edit`s of them for one
model, and `edited` applies those: it is the only way to change a forward pass.
"""

from sae.edits.changes import Add, Change, Put, Reconstruction, Rows, Splice
from sae.edits.file import Edits, edits_of
from sae.edits.forward import Edit, edited
from sae.edits.parse import edit
from sae.edits.positions import ALL, ALL_BUT_FIRST, From, Last, Positions, Spans, Where, Window
from sae.edits.record import EditRecord, WhenRecord, WhereRecord

__all__ = [
    "ALL",
    "ALL_BUT_FIRST",
    "Add",
    "Change",
    "Edit",
    "EditRecord",
    "Edits",
    "From",
    "Last",
    "Positions",
    "Put",
    "Reconstruction",
    "Rows",
    "Spans",
    "Splice",
    "WhenRecord",
    "Where",
    "WhereRecord",
    "Window",
    "edit",
    "edited",
    "edits_of",
]
