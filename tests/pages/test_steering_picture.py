"""Effect against cost as a picture."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from support.steering_sample import sample_steering

from sae.pages.steering_picture import draw_steering


@pytest.fixture
def summary():
    return sample_steering()["summary"]


def ink(path: Path) -> int:
    """How many pixels are not white."""
    return int((imread(path)[..., :3].min(2) < 0.99).sum())


def test_every_arm_is_drawn_and_what_is_missing_is_left_out(summary, tmp_path):
    whole, less = tmp_path / "whole.png", tmp_path / "less.png"
    draw_steering(summary, whole)
    for arm in summary["arms"][1:]:
        arm["figures"]["kl"] = None
    summary["arms"][0]["figures"]["gain"] = {"mean": 0.1, "low": None, "high": None}
    draw_steering(summary, less)
    assert 0 < ink(less) < ink(whole)
    assert np.array_equal(imread(whole).shape[:2], imread(less).shape[:2])
