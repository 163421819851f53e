"""Sites: found once in a model, kept with caches and dictionaries, and read in older files."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.families import BLOCKS, MODELS, PLACES, copied_in, random_model
from support.files import reworded
from support.world import HOOK, harvest_settings, random_dictionary, training_json

import sae
from sae.base.errors import UserError
from sae.cache.create import create_cache
from sae.cache.layout import open_cache
from sae.cache.text_writer import write_text
from sae.dictionary.files import load_dictionary, read_record, save_dictionary
from sae.dictionary.metadata import metadata_of
from sae.exchange.formats import write_dictionary
from sae.exchange.formats.sparsify import hookpoint
from sae.models.hooks import list_sites, locate, measured
from sae.models.site import Site
from sae.rows.source import Asked, CachedRows
from sae.text.packing import RowBlock, TextPlan

WITHIN = ("attn.hook_z", "mlp.hook_post")
BERT_POST = Site(
    "blocks.1.hook_resid_post", "encoder.layer.1.output.LayerNorm", "input", 32, in_stream=True
)


@pytest.fixture(scope="module")
def sites() -> dict[str, dict[str, Site]]:
    """The sites of block 1 of a model of each family, by hook name."""
    found = {}
    for family in PLACES:
        model = random_model(*MODELS[family])
        wanted = {f"blocks.1.{hook}" for hook in PLACES[family]}
        listed = [site for site in list_sites(model) if site.hook_name in wanted]
        found[family] = {site.hook_name: site for site in measured(model, listed)}
    return found


def cache_with(path, sites):
    """A finished cache of 40 rows of numbers at each site."""
    plan = TextPlan(8, 2, 4)
    about = {"digest": "made", "special_token_ids": [], "data": {"name": "made"}}
    model = {"name": "made", "weight_digest": "made", "dtype": "float32"}
    about |= {"model": model, "tokenizer_digest": "made", "bos_token_id": None}
    writer = create_cache(path, sites, plan, dtype="float32", attributes=about)
    rows = np.ones((10, 4), dtype=np.int32)
    blocks = [RowBlock(False, rows[:8], rows[:8]), RowBlock(True, rows[8:], rows[8:])]
    write_text(writer, blocks, lambda: np.array([7, 8], dtype=np.uint64))
    for chunk in writer.chunks():
        shape = (chunk.stop - chunk.start, 4)
        x = {site.hook_name: torch.ones(*shape, site.width) for site in sites}
        writer.write(chunk, x)
    writer.finish()
    return open_cache(path)


@pytest.mark.parametrize("family", PLACES)
def test_a_site_says_its_module_its_side_its_width_and_whether_it_is_in_the_stream(
    sites, family
):
    for hook, (module, side) in PLACES[family].items():
        width = 64 if hook == "mlp.hook_post" and family != "gpt2" else 32
        width = 128 if hook == "mlp.hook_post" and family == "gpt2" else width
        name, in_stream = f"blocks.1.{hook}", hook not in WITHIN
        kept = copied_in(family, hook, 1)
        expected = Site(name, module.format(1), side, width, in_stream, kept)
        assert sites[family][f"blocks.1.{hook}"] == expected


@pytest.mark.slow
@pytest.mark.parametrize("family", PLACES)
def test_a_site_is_the_same_in_a_cache_in_its_rows_and_in_their_dictionary(
    sites, family, tmp_path
):
    wanted = [*sites[family].values()]
    cache = cache_with(tmp_path / "c.zarr", wanted)
    assert cache.sites == wanted
    for site in wanted:
        assert cache.site(site.hook_name) == cache.site(site.path) == site
        rows = CachedRows(cache, Asked(hook_name=site.hook_name, batch_size=4))
        assert rows.places == (site,)
        dictionary = random_dictionary(d_in=site.width).placed(*rows.places)
        save_dictionary(dictionary, tmp_path / site.hook_name)
        again = load_dictionary(tmp_path / site.hook_name)
        assert again.reads[0].site == again.writes[0].site == site
        config = json.loads((tmp_path / site.hook_name / "cfg.json").read_text())
        assert config["metadata"]["hook_name"] == site.hook_name
        assert config["metadata"]["hf_hook_name"] == site.path
        assert site.path.endswith(".input") == (site.side == "input")


def test_a_transcoder_keeps_both_of_its_sites(sites, tmp_path):
    names = ("blocks.1.hook_resid_mid", "blocks.1.mlp.hook_post")
    read, write = (sites["llama"][name] for name in names)
    save_dictionary(random_dictionary(d_out=64).placed(read, write), tmp_path / "one")
    again = load_dictionary(tmp_path / "one")
    assert (again.reads[0].site, again.writes[0].site) == (read, write)
    metadata = metadata_of(again)
    assert metadata["hf_hook_name"] == "model.layers.1.post_attention_layernorm.input"
    assert metadata["hf_hook_name_out"] == "model.layers.1.mlp.down_proj.input"


@pytest.mark.slow
def test_once_harvested_no_stage_looks_for_a_site_again(
    tiny_model, tiny_text, tmp_path, monkeypatch
):
    settings = harvest_settings(tmp_path, tiny_model, tiny_text) | {"n_tokens": 2048}
    cache = sae.harvest(**settings)

    def lost(_):
        raise AssertionError("looked for again")

    monkeypatch.setattr("sae.models.hooks.list_sites", lost)
    small = {"training_tokens": 5_000, "train_batch_size_tokens": 100}
    trained = sae.train(run=str(tmp_path), name="x", sae=sae.StandardConfig(d_sae=48), **small)
    assert trained.reads[0].site == cache.site(HOOK)
    sae.eval(run=str(tmp_path), n_behaviour_tokens=64)
    sae.analyze(run=str(tmp_path), n_contexts=3)
    (steered,) = sae.steer(run=str(tmp_path), n_features=1, max_new_tokens=2)["features"]
    assert steered["norm_at_strength_one"] > 0
    sae.export(run=str(tmp_path))


def test_a_recorded_site_that_this_model_has_not_got_is_refused():
    model = random_model(*MODELS["gpt2"])
    site = Site(HOOK, "model.layers.1", "output", 32, in_stream=True)
    with pytest.raises(UserError, match=r"resid_post was read at model\.layers\.1, which this"):
        locate(model, site)


# Files from before sites were recorded, written here as they were then.


def as_before(cache_path, sites):
    """Give a cache the attributes that caches had: module, side and d_in of each hook."""
    hooks = {
        site.hook_name: {"module": site.module, "side": site.side, "d_in": site.width}
        for site in sites
    }
    reworded(cache_path, hooks=hooks)
    return open_cache(cache_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", PLACES)
def test_a_cache_from_before_has_the_sites_that_it_was_read_at(sites, family, tmp_path):
    wanted = [*sites[family].values()]
    cache_with(tmp_path / "c.zarr", wanted)
    cache = as_before(tmp_path / "c.zarr", wanted)
    assert cache.sites == wanted
    assert [cache.site(site.hook_name) for site in wanted] == wanted


def test_a_hook_of_a_cache_from_before_that_goes_by_its_path_is_not_in_the_stream(tmp_path):
    path = "model.layers.1.self_attn.q_proj"
    site = Site(path, path, "output", 32)
    cache_with(tmp_path / "c.zarr", [site])
    assert as_before(tmp_path / "c.zarr", [site]).sites == [site]


def dictionary_from_before(folder, site, **record):
    """A folder as it was written then: modules without an ending, and no `sae_atlas.sites`."""
    dictionary = random_dictionary(d_in=site.width)
    config = {
        "architecture": "standard",
        "d_in": site.width,
        "d_sae": 48,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": "6.0.0",
            "model_name": "org/lm",
            "model_class_name": "AutoModelForCausalLM",
            "hook_name": site.hook_name,
            "hf_hook_name": site.module,
            "context_size": 32,
            "prepend_bos": True,
            "exclude_special_tokens": True,
            "dataset_path": "text",
            "training_architecture": "standard",
            "sae_atlas": training_json(architecture="standard", sae={"d_sae": 48}, **record),
        },
    }
    folder.mkdir(parents=True)
    (folder / "cfg.json").write_text(json.dumps(config))
    weights = {name: w.contiguous() for name, w in dictionary.tensors.items()}
    save_file(weights, folder / "sae_weights.safetensors")


@pytest.mark.parametrize("family", PLACES)
def test_a_dictionary_from_before_has_the_site_that_its_rows_were_read_at(
    sites, family, tmp_path
):
    for site in sites[family].values():
        folder = tmp_path / site.hook_name
        dictionary_from_before(folder, site)
        found = load_dictionary(folder)
        assert found.reads[0].site == found.writes[0].site == site
        # Saved again it says so itself.
        save_dictionary(found, tmp_path / "again" / site.hook_name)
        again = json.loads((tmp_path / "again" / site.hook_name / "cfg.json").read_text())
        assert again["metadata"]["sae_atlas"]["sites"] == {"hook_name": site.to_json()}


def test_the_identity_of_a_training_from_before_has_the_keys_of_today(tmp_path):
    identity = {"hook_name": HOOK, "output_hook_name": None, "seed": 0}
    site = Site(HOOK, "model.layers.1", "output", 32, in_stream=True)
    dictionary_from_before(tmp_path / "one", site, identity=identity)
    expected = {"hook_name": HOOK, "hook_name_out": None, "seed": 0}
    assert read_record(tmp_path / "one").training.identity == expected
    assert load_dictionary(tmp_path / "one").record.training.identity == expected


@pytest.mark.parametrize(
    ("path", "module", "side"),
    [
        ("model.layers.1", "model.layers.1", "output"),
        ("model.layers.1.output", "model.layers.1", "output"),
        ("model.layers.1.self_attn.o_proj.input", "model.layers.1.self_attn.o_proj", "input"),
        # Modules of BERT are called that themselves.
        ("encoder.layer.1.output", "encoder.layer.1.output", "output"),
        ("bert.encoder.layer.1.attention.output", None, "output"),
        ("encoder.layer.1.input", "encoder.layer.1", "input"),
        ("encoder.layer.1.output.dense.input", "encoder.layer.1.output.dense", "input"),
        ("encoder.layer.1.output.output", "encoder.layer.1.output", "output"),
    ],
)
def test_a_path_in_a_file_of_others_says_the_side_where_no_module_is_called_that(
    path, module, side
):
    found = random_dictionary(hook_name="somewhere", hf_hook_name=path).reads[0].site
    assert found == Site("somewhere", module or path, side, 32)


# BERT's stream after a block is the input of a norm: the side has to be said.


def test_berts_stream_is_an_input_in_every_file_that_can_say_so(sites, tmp_path):
    site = sites["bert"]["blocks.1.hook_resid_post"]
    assert site == BERT_POST
    dictionary = random_dictionary("jumprelu").placed(site)
    write_dictionary(dictionary, tmp_path / "gemma", "gemma_scope_2")
    config = json.loads((tmp_path / "gemma/config.json").read_text())
    assert config["hf_hook_point_in"] == "encoder.layer.1.output.LayerNorm.input"
    assert config["hf_hook_point_out"] == "encoder.layer.1.output.LayerNorm.input"
    save_dictionary(dictionary, tmp_path / "saelens")
    metadata = json.loads((tmp_path / "saelens/cfg.json").read_text())["metadata"]
    assert metadata["hf_hook_name"] == "encoder.layer.1.output.LayerNorm.input"
    # What another tool leaves of it still says the side.
    del metadata["sae_atlas"]
    again = random_dictionary(**{**metadata, "sae_lens_version": "6"})
    assert again.reads[0].site == site


def test_sparsify_whose_tools_hook_outputs_alone_is_told_no_module_that_is_read_at(sites):
    at_input = random_dictionary("topk").placed(BERT_POST)
    assert hookpoint(at_input) == "blocks.1.hook_resid_post"
    for family, site in (("bert", "hook_attn_out"), ("llama", "hook_mlp_out")):
        output = sites[family][f"blocks.1.{site}"]
        below = output.module.removeprefix("model.")
        assert hookpoint(random_dictionary("topk").placed(output)) == below
    block = sites["gpt2"]["blocks.1.hook_resid_post"]
    assert hookpoint(random_dictionary("topk").placed(block)) == "h.1"
    assert BLOCKS["gpt2"] == "transformer.h"
    assert hookpoint(random_dictionary("topk").placed("x", replace(block))) == "h.1"


def test_tools_that_hook_outputs_alone_are_told_the_block_before_or_a_name_they_refuse(sites):
    for family, before in (("llama", "layers.0"), ("gpt2", "h.0"), ("bert", "encoder.layer.0")):
        site = sites[family]["blocks.1.hook_resid_pre"]
        assert hookpoint(random_dictionary("topk").placed(site)) == before
    first = replace(site, hook_name="blocks.0.hook_resid_pre", module="encoder.layer.0")
    assert hookpoint(random_dictionary("topk").placed(first)) == "blocks.0.hook_resid_pre"
    middle = sites["llama"]["blocks.1.hook_resid_mid"]
    assert hookpoint(random_dictionary("topk").placed(middle)) == "blocks.1.hook_resid_mid"


@pytest.mark.parametrize(
    ("family", "hook", "submodule"),
    [
        ("llama", "hook_mlp_out", "mlp_out_layer_1"),
        ("llama", "hook_attn_out", "attention_out_layer_1"),
        ("gpt2", "hook_attn_out", "attention_out_layer_1"),
        ("gpt2", "hook_resid_post", "resid_post_layer_1"),
        # Gemma 2 norms what they return, and in BERT the sum is before a norm.
        ("gemma2", "hook_mlp_out", "blocks.1.hook_mlp_out"),
        ("gemma2", "hook_attn_out", "blocks.1.hook_attn_out"),
        ("bert", "hook_resid_post", "blocks.1.hook_resid_post"),
    ],
)
def test_dictionary_learning_is_told_a_module_only_where_its_output_is_meant(
    sites, family, hook, submodule, tmp_path
):
    dictionary = random_dictionary().placed(sites[family][f"blocks.1.{hook}"])
    write_dictionary(dictionary, tmp_path / "one", "dictionary_learning")
    config = json.loads((tmp_path / "one/config.json").read_text())
    assert config["trainer"]["submodule_name"] == submodule
