"""Effects of patching as a picture."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from matplotlib.image import imread
from support.atlas_samples import HOSTILE
from support.patching_sample import sample_patching

from sae.pages.patching_picture import draw_patching

BLUE, ORANGE = (10, 79, 143), (179, 71, 0)


def drawn(summary: dict, table: pa.Table, path: Path) -> np.ndarray:
    draw_patching(summary, table, path)
    return np.rint(255 * imread(path)[..., :3]).astype(int)


def of(image: np.ndarray, hue: tuple[int, int, int]) -> np.ndarray:
    """Which pixels have this colour."""
    return (abs(image - hue) <= 1).all(2)


def only(table: pa.Table, **wanted: object) -> pa.Table:
    for name, value in wanted.items():
        table = table.filter(pc.equal(table[name], value))
    return table


def with_effect(table: pa.Table, effect: float) -> pa.Table:
    place = table.schema.get_field_index("effect")
    return table.set_column(place, "effect", pa.array([effect] * len(table)))


@pytest.fixture(name="sample", scope="module")
def sample_fixture():
    return sample_patching()


def test_every_kind_of_site_has_a_panel(sample, tmp_path):
    summary, table = sample
    whole = drawn(summary, table, tmp_path / "whole.png")
    sites = ["residual", "attention", "mlp"]
    less = table.filter(pc.is_in(table["site"], pa.array(sites)))
    without_heads = drawn(summary, less, tmp_path / "less.png")
    assert whole.shape[1] > without_heads.shape[1] > 0


@pytest.mark.parametrize(("effect", "hue"), [(1.0, BLUE), (7.0, BLUE), (-3.0, ORANGE)])
def test_effects_beyond_the_scale_have_its_last_colour(sample, tmp_path, effect, hue):
    summary, table = sample
    table = only(table, site="mlp", method="exact", patch="denoising", group=0)
    image = drawn(summary, with_effect(table, effect), tmp_path / "one.png")
    assert of(image, hue).mean() > 0.35


def test_what_was_not_measured_is_grey_and_an_effect_of_zero_is_white(sample, tmp_path):
    summary, table = sample
    table = with_effect(only(table, site="mlp", method="exact", group=0), 0.0)
    grey = (223, 228, 226)
    assert of(drawn(summary, table, tmp_path / "all.png"), grey).mean() < 0.02
    half = table.filter(pc.less(table["layer"], 15))
    assert of(drawn(summary, half, tmp_path / "half.png"), grey).mean() > 0.15


def test_without_exact_effects_the_attribution_that_agrees_best_is_drawn(sample, tmp_path):
    summary, table = sample
    table = table.filter(pc.not_equal(table["method"], "exact"))
    image = drawn(summary, table, tmp_path / "all.png")
    relp = drawn(summary, only(table, method="relp"), tmp_path / "relp.png")
    plain = drawn(summary, only(table, method="plain"), tmp_path / "plain.png")
    assert np.array_equal(image, relp)
    assert not np.array_equal(image, plain)


def test_noising_is_drawn_where_there_is_nothing_else(sample, tmp_path):
    summary, table = sample
    draw_patching(summary, only(table, patch="noising"), tmp_path / "noising.png")
    assert (tmp_path / "noising.png").exists()


def test_long_prompts_stand_below_one_another(sample, tmp_path):
    summary, table = sample
    group = summary["groups"][0]
    tokens = [f" token{i}" for i in range(60)]
    summary = {**summary, "groups": [{**group, "tokens": tokens, "differing": [3]}]}
    one = only(table, method="exact", patch="denoising", group=0, position=3)
    place = one.schema.get_field_index("position")
    far = one.set_column(place, "position", pa.array([59] * len(one)))
    image = drawn(summary, pa.concat_tables([one, far]), tmp_path / "long.png")
    assert image.shape[0] > image.shape[1]


def test_any_text_can_be_drawn(sample, tmp_path):
    for text in (HOSTILE, "$x_{", "日本語", "\n", ""):
        summary, table = sample_patching(text, n_features=3)
        assert (drawn(summary, table, tmp_path / "text.png") < 250).any()


def test_without_a_map_there_is_no_picture(sample, tmp_path):
    summary, table = sample
    draw_patching(summary, only(table, site="feature"), tmp_path / "none.png")
    draw_patching({**summary, "groups": []}, table.slice(0, 0), tmp_path / "none.png")
    assert list(tmp_path.iterdir()) == []
