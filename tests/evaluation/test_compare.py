"""`sae compare`: what two dictionaries share, beside what chance would match."""

import shutil

import pytest
import torch

import sae
from sae.dictionary import save_dictionary
from sae.evaluation.compared import compared
from sae.evaluation.sample import sample_rows


@pytest.fixture(scope="module", name="run")
def run_fixture(tiny_run, tmp_path_factory):
    run = tmp_path_factory.mktemp("compare") / "run"
    shutil.copytree(tiny_run, run)
    return run


@pytest.fixture(scope="module", name="one")
def one_fixture(run):
    return sae.load(str(run / "dictionaries" / "strong"))


@pytest.fixture(scope="module", name="x")
def x_fixture(run, one):
    return sample_rows(one, sae.open_cache(run / "cache.zarr"))[0]


def test_a_permuted_copy_has_every_feature_at_its_new_number(one, x):
    order = torch.randperm(one.d_sae, generator=torch.Generator().manual_seed(0))
    found = compared(one, one.of_latents(order), x)
    for side in found.sides:
        assert set(side.kind) == {"shared"}
        assert side.cosine.min() > 0.999
    first = found.first
    # Feature j of the copy is feature order[j] of the original.
    assert order[first.partner].tolist() == first.feature.tolist()
    assert order[first.read_partner].tolist() == first.feature.tolist()


def test_a_feature_that_was_left_out_is_only_in_the_other(one, x):
    kept = torch.arange(1, one.d_sae)
    found = compared(one, one.of_latents(kept), x)
    alone = [n for n, kind in zip(found.first.feature, found.first.kind, strict=True)
             if kind != "shared"]  # fmt: skip
    assert [int(n) for n in alone] == ([0] if 0 in found.first.feature else [])
    assert set(found.second.kind) == {"shared"}


def test_a_match_at_equal_numbers_is_told_from_one_that_was_found(one, x):
    alike = compared(one, one, x).equal_numbers
    assert alike.share == 1
    assert alike.mean_without < 0.9
    order = torch.randperm(one.d_sae, generator=torch.Generator().manual_seed(0))
    found = compared(one, one.of_latents(order), x)
    n = len(found.first.feature)
    moved = float((order != torch.arange(one.d_sae))[found.first.feature].double().mean())
    # Only features that stayed where they were have to find another partner.
    assert found.equal_numbers.share == pytest.approx(1 - moved, abs=2 / n)
    assert found.equal_numbers.shared_without >= 0.8
    assert found.equal_numbers.by_chance == pytest.approx(1 / n, rel=0.5)


def test_sizes_that_differ_have_no_numbers_in_common(one, x):
    assert compared(one, one.of_latents(torch.arange(1, one.d_sae)), x).equal_numbers is None


def test_random_directions_match_no_better_than_their_own_null(one, x):
    generator = torch.Generator().manual_seed(5)
    drawn = torch.nn.functional.normalize(
        torch.randn(one.d_sae, one.d_in, generator=generator), dim=1
    )
    other = sae.Dictionary.from_weights(
        W_enc=drawn.t().contiguous(), b_enc=torch.zeros(one.d_sae), W_dec=drawn,
        b_dec=torch.zeros(one.d_in),
    )  # fmt: skip
    found = compared(one, other, x)
    highest = max(null.mean for null in found.nulls)
    assert float(found.first.cosine.mean()) < highest + 0.1
    assert found.first.share("shared") < 0.1


def test_dictionaries_that_never_fire_are_refused(one, x):
    silent = one.with_weights({"b_enc": torch.full((one.d_sae,), -1e6)})
    with pytest.raises(sae.UserError, match="no feature of the second dictionary fires on any"):
        compared(one, silent, x)


def test_the_command_writes_a_table_a_page_and_figures_side_by_side(run, capsys):
    before = sae.compare("weak", "strong", run=run)
    assert "There are no figures of weak, strong" in (before.folder / "index.html").read_text()
    sae.eval(run, n_behaviour_tokens=64)
    # Figures that were measured since belong to the page: it is made anew.
    found = sae.compare("weak", "strong", run=run)
    low, high = found.summary["intervals"][0]["explained_variance"]
    assert low < found.summary["figures"][0]["explained_variance"] < high
    assert found.folder == run / "compare" / "weak--strong"
    table = found.to_pandas()
    live = found.summary["n_live"]
    assert list(table.groupby("side", sort=False).size()) == live
    page = (found.folder / "index.html").read_text()
    assert "Do weak and strong find the same features?" in page
    assert "Explained variance" in page
    assert "By chance" in found._repr_html_()
    assert found.plot()._repr_png_().startswith(b"\x89PNG")
    capsys.readouterr()
    again = sae.compare(run / "dictionaries" / "weak", run / "dictionaries" / "strong")
    assert again.folder == found.folder
    assert "is finished already and is reused" in capsys.readouterr().err


def test_labels_of_an_atlas_stand_in_the_table_and_are_escaped(run, one):
    save_dictionary(one, run / "dictionaries" / "again")
    atlas = sae.analyze(run, dictionary="again", dials={"n_features": 0})
    labels = (atlas.folder / "labels.csv").read_text()
    first = labels.splitlines()[1].split(",")
    (atlas.folder / "labels.csv").write_text(labels.replace(first[1], "<b>mine</b>", 1))
    found = sae.compare("again", "strong", run=run)
    assert found.summary["notes"] == ["Both have the same weights."]
    assert "<b>mine</b>" in set(found.to_pandas()["label"])
    assert "<b>mine</b>" not in (found.folder / "index.html").read_text()


def test_what_cannot_be_compared_is_refused(run, one, tmp_path):
    save_dictionary(one, tmp_path / "alone")
    with pytest.raises(sae.UserError, match="is in no run; give run=FOLDER"):
        sae.compare(tmp_path / "alone", run / "dictionaries" / "weak")
    elsewhere = one.placed("blocks.0.hook_resid_post", "blocks.0.hook_resid_post")
    save_dictionary(elsewhere, tmp_path / "elsewhere")
    with pytest.raises(sae.UserError, match="and elsewhere of blocks"):
        sae.compare("weak", tmp_path / "elsewhere", run=run)
    with pytest.raises(sae.UserError, match="nothing"):
        sae.compare("nothing", "weak", run=run)
