"""Figures of matplotlib that a notebook shows by themselves, without pyplot's global state."""

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine


class Picture(Figure):
    """A figure that is drawn in memory, and that a notebook shows as the value of a cell."""

    def __init__(
        self, width: float, height: float, layout: ConstrainedLayoutEngine | None = None
    ) -> None:
        """Begin an empty figure on white.

        Args:
            width: in inches.
            height: in inches.
            layout: how its parts find their places; matplotlib's own spacing by default.
        """
        spacing = layout or ConstrainedLayoutEngine()
        super().__init__(figsize=(width, height), dpi=160, facecolor="white", layout=spacing)
        FigureCanvasAgg(self)

    def _repr_png_(self) -> bytes:
        drawn = io.BytesIO()
        self.savefig(drawn, format="png")
        return drawn.getvalue()
