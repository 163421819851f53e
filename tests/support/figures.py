"""Figures of dictionaries that were never trained."""

from typing import Any

from sae.figures import Figures
from sae.pages.pareto import Pareto


def made_figures(name: str, l0: float = 30.0, variance: float = 0.8, **others: Any) -> Figures:
    """Figures as an evaluation might find them, or with `others` in their place."""
    flat = {
        "id": name,
        "architecture": "standard",
        "d_sae": 64,
        "hook_name": "blocks.1.hook_resid_post",
        "l0": l0,
        "explained_variance": variance,
        "dead_fraction": 0.25,
    }
    return Figures.from_json(flat | others)


def compared(*dictionaries: Figures, max_l0: float = 60.0) -> Pareto:
    """The dictionaries as one run's."""
    about = {"run": "runs/made", "model_name": "maker/model", "d_in": 8}
    return Pareto(**about, max_l0=max_l0, dictionaries=dictionaries)
