"""Transcoders from the cache of two hooks to evaluation, of every architecture."""

import pytest
import torch
from support.world import harvest_settings

import sae
from sae.architectures import ARCHITECTURES
from sae.base.files import read_json_lines

READ, WRITE = "blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out"


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model, tiny_text):
    run = tmp_path_factory.mktemp("transcoders") / "run"
    sae.harvest(**{**harvest_settings(run, tiny_model, tiny_text), "hook_names": [READ, WRITE]})
    return run


def settings(run, name, **changes):
    sparsity = {"k": 8} if "topk" in name else {"target_l0": 8.0}
    return {
        "run": str(run),
        "hook_name": READ,
        "hook_name_out": WRITE,
        "sae": ARCHITECTURES[name](d_sae=64, **{**sparsity, **changes}),
        "training_tokens": 60_000,
        "train_batch_size_tokens": 256,
    }


@pytest.mark.slow
@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_transcoder_predicts_the_output_of_the_mlp_from_its_input(run, name, skip):
    label = f"{name}-{skip}"
    made = sae.train(**settings(run, name, skip_connection=skip), name=label)
    assert made.is_transcoder
    assert (made.hook_name, made.hook_name_out) == (READ, WRITE)
    assert (made.W_skip is not None) == skip
    loaded = sae.load(str(run / "dictionaries" / label))
    cache = sae.open_cache(run / "cache.zarr")
    x, y = (cache.read(hook, slice(0, 40)).float().flatten(0, 1) for hook in (READ, WRITE))
    x, y = (rows[torch.from_numpy(cache.text_rows()[:40]).flatten()] for rows in (x, y))
    error = (loaded(x) - y).square().sum() / (y - y.mean(0)).square().sum()
    assert error < 0.6
    lines = read_json_lines(run / "training" / label / "metrics.jsonl")
    assert lines[-1]["losses/mse_loss"] < lines[0]["losses/mse_loss"]


@pytest.mark.slow
def test_a_transcoder_is_evaluated_at_its_output(run):
    sae.train(**settings(run, "topk"), name="evaluated")
    (figures,) = sae.eval(
        run=str(run), dictionary="evaluated", n_behaviour_tokens=256, density_rows=500
    )
    assert figures.values["explained_variance"] > 0.3
    assert figures.values["l0"] <= 8
    assert figures.hook_name_out == WRITE


def test_an_output_hook_is_part_of_the_name_so_both_can_live_in_one_run(run):
    from sae.commands.train import TrainConfig

    transcoder = TrainConfig(**settings(run, "topk"))
    autoencoder = TrainConfig(**{**settings(run, "topk"), "hook_name_out": None})
    assert transcoder.id != autoencoder.id
