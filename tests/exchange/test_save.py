"""Turning one format into another, without a run."""

import pytest
import torch
from support.world import random_dictionary

import sae
from sae.base.errors import UserError
from sae.exchange.formats import WRITTEN


@pytest.mark.parametrize("metadata", [{}, {"model_name": "org/lm", "hook_name": "blocks.1.x"}])
def test_what_is_saved_in_one_format_after_the_other_computes_the_same(metadata, tmp_path):
    given = found = random_dictionary("topk", **metadata)
    for step, format in enumerate(("sparsify", "openmoss", "dictionary_learning", "saelens")):
        sae.save(found, str(tmp_path / f"{step}"), format)
        found = sae.load(str(tmp_path / f"{step}"))
    x = torch.randn(100, given.d_in, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.encode(x), given.encode(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found(x), given(x), rtol=1e-4, atol=1e-5)


def test_saving_without_a_format_makes_a_folder_of_saelens(tmp_path):
    given = random_dictionary("gated")
    sae.save(given, str(tmp_path / "new" / "one"))
    assert (tmp_path / "new/one/cfg.json").is_file()
    assert sae.load(str(tmp_path / "new/one")).digest == given.digest


def test_a_folder_that_holds_something_is_not_written_to(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    for path in (tmp_path, tmp_path / "letter.txt"):
        with pytest.raises(UserError, match="is there already; give a new folder"):
            sae.save(random_dictionary("topk"), str(path))
    assert (tmp_path / "letter.txt").read_text() == "dear"


def test_a_format_without_a_place_for_it_is_refused_and_nothing_written(tmp_path):
    assert "gemma_scope" in WRITTEN
    with pytest.raises(
        UserError, match=r"cannot hold a topk autoencoder .* have a threshold each"
    ):
        sae.save(random_dictionary("topk"), str(tmp_path / "one"), "gemma_scope")
    assert list(tmp_path.iterdir()) == []
