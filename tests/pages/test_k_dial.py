"""Sparsity as a dial of the served page, on a real topk dictionary."""

import pytest

import sae
from sae.pages.server.live import LiveAtlas, Shelf
from sae.pages.server.requests import ReadRequest, Work
from sae.run import Run


@pytest.fixture
def atlas(tiny_run, tmp_path):
    (tmp_path / "cache.zarr").symlink_to(tiny_run / "cache.zarr")
    small = {"training_tokens": 2_560, "train_batch_size_tokens": 256}
    topk = sae.HierarchicalTopKConfig(d_sae=48, k=8)
    sae.train(run=str(tmp_path), name="topk", sae=topk, **small)
    nothing = sae.DialConfig(n_features=0)
    found = sae.analyze(run=str(tmp_path), dictionary="topk", dials=nothing)

    def read(model, dictionary, request):
        return {"k": dictionary.activation.k}

    work = Work(read, *(lambda *_: {} for _ in range(5)))
    return LiveAtlas("topk", found, Shelf(Run.at(tmp_path), "cpu", work))


@pytest.mark.slow
def test_the_page_is_told_the_k_and_may_read_with_another(atlas):
    atlas.prepare()
    assert atlas.status == {"model": "ready", "why": "", "k": "8"}
    assert atlas.read(ReadRequest("the river"))["k"] == 8
    assert atlas.read(ReadRequest("the river", k=3))["k"] == 3
