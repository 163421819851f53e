"""What is said of one figure."""

from dataclasses import dataclass
from typing import Literal

Place = Literal["table", "picture", "tile"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One figure of a dictionary, as people read it."""

    key: str
    title: str
    meaning: str
    """What it is, as a phrase that a newcomer understands."""
    formula: str
    scale: str
    """What 0 and 1, or less and more, say about a dictionary."""
    higher_is_better: bool | None = None
    """None where neither is: the best is in between, or it says nothing of the dictionary."""
    form: str = ".3f"
    """How it is written, in Python's way."""
    short: str = ""
    """A title for a narrow column, if the title is long."""
    where: tuple[Place, ...] = ()
    """Where it is shown besides the CSV, the cards, the report's table and `docs/metrics.md`.
    `table`: in the table on the terminal. `picture`: a panel over L0, in `pareto.png` and on
    the pages. `tile`: at the head of a report, for the recommended dictionary."""
