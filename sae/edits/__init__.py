"""Interventions as data: what changes in a forward pass, where, and at which positions.

`Edits` are data: a list of records that a file holds. `Planner` makes `Edit`s of them for one
model, and `edited` applies those: it is the only way to change a forward pass.
"""

from sae.edits.aim import Aim, Subject
from sae.edits.changes import Add, Change, Put, Reconstruction, Rows, Splice
from sae.edits.file import Edits, edits_of
from sae.edits.forward import Edit, edited
from sae.edits.library import Library
from sae.edits.parse import edit, record_of
from sae.edits.plan import Planner
from sae.edits.positions import ALL, ALL_BUT_FIRST, From, Last, Positions, Spans, Where, Window
from sae.edits.record import EditRecord, WhenRecord, WhereRecord

__all__ = [
    "ALL",
    "ALL_BUT_FIRST",
    "Add",
    "Aim",
    "Change",
    "Edit",
    "EditRecord",
    "Edits",
    "From",
    "Last",
    "Library",
    "Planner",
    "Positions",
    "Put",
    "Reconstruction",
    "Rows",
    "Spans",
    "Splice",
    "Subject",
    "WhenRecord",
    "Where",
    "WhereRecord",
    "Window",
    "edit",
    "edited",
    "edits_of",
    "record_of",
]
