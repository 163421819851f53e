"""What a dictionary knows of where it comes from: read, written, judged, upgraded."""

import json
from dataclasses import fields, replace

import pytest
from support.files import unseal
from support.world import HOOK, random_dictionary, training_json

from sae.base.errors import UserError
from sae.base.json_object import JsonObject
from sae.core.scaling import SINK_NORM_MULTIPLE
from sae.dictionary import Record
from sae.dictionary.files import load_dictionary, read_record, save_dictionary
from sae.dictionary.metadata import dictionary_of, metadata_of
from sae.dictionary.record import Origin, TrainingRecord, upgraded_identity
from sae.models.record import ModelRecord
from sae.models.site import Site
from sae.text.record import TextRecord

SITE = Site(HOOK, "model.layers.1", "output", 32, in_stream=True)
MID = Site(
    "blocks.1.hook_resid_mid",
    "model.layers.1.post_attention_layernorm",
    "input",
    32,
    in_stream=True,
)
MODEL = ModelRecord("lm", "org/lm", "abc", False, "main", "bfloat16", "<s>")
TEXT = TextRecord(
    "text",
    0.1,
    3,
    {"name": "text", "held_out_fraction": 0.1, "documents": {"used": 3}, "column": "text"},
)
TRAINING = TrainingRecord(
    digest="0123",
    identity={"seed": 3, "hook_name_out": None, "extended_at": [7]},
    architecture="topk",
    sae={"k": 7, "aligned": False},
    optim={"lr": 1e-3},
    training_tokens=1000,
    train_batch_size_tokens=10,
    seed=3,
    versions={"sae-atlas": "1", "torch": "2"},
)
FULL = Record(
    model_name="org/lm",
    model=MODEL,
    context_size=64,
    prepend_bos=True,
    bos_token_id=0,
    exclude_special_tokens=False,
    dataset_path="text",
    text=TEXT,
    cache_digest="c0ffee",
    max_norm_multiple=None,
    training=TRAINING,
    imported=Origin("them/theirs", "saelens", {"training_tokens": 5}),
    transcoder=True,
    others={"neuronpedia_id": "x", "note": [1, {"a": None}]},
)


def through_json(record):
    return Record.from_json("file", json.loads(json.dumps(record.to_json())))


def test_reading_what_was_written_is_the_identity_whatever_is_known():
    assert all(getattr(FULL, f.name) != getattr(Record(), f.name) for f in fields(Record))
    assert through_json(FULL) == FULL
    assert through_json(Record()) == Record()
    assert Record().to_json() == {}
    for field in fields(Record):
        # Each alone, and all but each.
        alone = replace(Record(), **{field.name: getattr(FULL, field.name)})
        assert through_json(alone) == alone, field.name
        without = replace(FULL, **{field.name: getattr(Record(), field.name)})
        assert through_json(without) == without, field.name


@pytest.mark.parametrize(
    ("kind", "value"), [(ModelRecord, MODEL), (TextRecord, TEXT), (Site, SITE), (Site, MID)]
)
def test_a_part_comes_back_as_it_was(kind, value):
    said = json.loads(json.dumps(value.to_json()))
    assert kind.from_json(JsonObject("file", "part", said, "take it out")) == value


METADATA = {
    "model_name": "org/lm",
    "model_class_name": "AutoModelForCausalLM",
    "hook_name": MID.hook_name,
    "hf_hook_name": MID.path,
    "hook_name_out": SITE.hook_name,
    "hf_hook_name_out": SITE.path,
    "context_size": 32,
    "prepend_bos": True,
    "exclude_special_tokens": True,
    "dataset_path": "text",
    "training_architecture": "topk",
    "sae_lens_training_version": "6.5",
    "sae_atlas": training_json(
        model=ModelRecord("lm", "org/lm").to_json(),
        bos_token_id=0,
        cache_digest="abc",
        sites={"hook_name": MID.to_json(), "hook_name_out": SITE.to_json()},
    ),
}


def test_writing_what_was_read_is_the_identity_in_memory_and_on_disk(tmp_path):
    dictionary = random_dictionary(**METADATA)
    assert metadata_of(dictionary) == METADATA
    assert (dictionary.reads[0].site, dictionary.writes[0].site) == (MID, SITE)
    for i in range(2):
        save_dictionary(dictionary, tmp_path / str(i))
        dictionary = load_dictionary(tmp_path / str(i))
        assert read_record(tmp_path / str(i)).training == dictionary.record.training
        said = metadata_of(dictionary)
        assert said.pop("sae_lens_version") == "6.0.0"
        assert said == METADATA
    first, second = (tmp_path / name / "cfg.json" for name in "01")
    assert first.read_bytes() == second.read_bytes()


def test_what_files_say_is_a_copy_that_changes_nothing():
    dictionary = random_dictionary(**METADATA)
    said = metadata_of(dictionary)
    said["model_name"] = "another"
    said["sae_atlas"]["training_tokens"] = 3
    said["sae_atlas"]["sites"].clear()
    assert metadata_of(dictionary) == METADATA


ODD = {
    "model_name": 5,
    "context_size": "32",
    "prepend_bos": "yes",
    "exclude_special_tokens": 1,
    "dataset_path": ["a", "b"],
    "transcoder": "no",
    "model_class_name": 7,
    "training_architecture": {"a": 1},
    "anything": None,
}


def test_what_others_wrote_in_another_type_is_passed_on_and_not_used(tmp_path):
    dictionary = random_dictionary(hook_name=HOOK, **ODD)
    assert dictionary.record == Record(others=ODD)
    assert (dictionary.model_name, dictionary.is_transcoder) == ("unknown", False)
    save_dictionary(dictionary, tmp_path / "one")
    again = load_dictionary(tmp_path / "one")
    assert metadata_of(again).items() >= ODD.items()


@pytest.mark.parametrize("key", ["hook_name", "hf_hook_name"])
def test_a_hook_of_another_type_makes_no_site(key):
    names = {"hook_name": HOOK, "hf_hook_name": "model.layers.1"}
    assert random_dictionary(**names).reads[0].site == SITE
    odd = random_dictionary(**{**names, key: 7})
    assert odd.hook_name == (HOOK if key == "hf_hook_name" else "7")
    # Nothing is known of the place but what the file calls it.
    assert (odd.reads[0].site is None) == (key == "hf_hook_name")


def test_half_a_character_and_no_number_are_mended_everywhere():
    odd = {"note": "a\ud800b", "deep": [{"x": float("nan")}], "model_name": "o\udc00k"}
    record = Record.from_json("file", odd)
    assert record.others == {"note": "a?b", "deep": [{"x": None}]}
    assert record.model_name == "o?k"


CURE = "take sae_atlas out of the file"
TEXT_WANTED, NUMBER_WANTED = "where sae-atlas writes text", "where sae-atlas writes a number"
DAMAGED = [
    (None, "sae_atlas=None, where sae-atlas writes an object"),
    (training_json(training_tokens=5.0), "training_tokens=5.0, where .* a whole number"),
    (training_json(seed=True), "seed=True, where .* a whole number"),
    (training_json(digest=None), f"digest=None, {TEXT_WANTED}"),
    (training_json(identity=[]), r"identity=\[\], where .* an object"),
    (training_json(sae="x"), "sae='x', where .* an object"),
    (training_json(optim=None), "optim=None, where .* an object"),
    (training_json(versions={}), f"versions.sae-atlas=None, {TEXT_WANTED}"),
    (training_json(max_norm_multiple="ten"), f"max_norm_multiple='ten', {NUMBER_WANTED}"),
    ({"cache_digest": 7}, f"cache_digest=7, {TEXT_WANTED}"),
    ({"bos_token_id": "<s>"}, "bos_token_id='<s>', where .* a whole number"),
    ({"model": {"name": "x", "dtype": "y"}}, f"model.weight_digest=None, {TEXT_WANTED}"),
    ({"model": {**MODEL.to_json(), "causal": 1}}, "causal=1, where .* true or false"),
    ({"data": []}, r"data=\[\], where .* an object"),
    ({"data": {"held_out_fraction": True}}, f"held_out_fraction=True, {NUMBER_WANTED}"),
    ({"imported": {"from": "x", "record": 5}}, "imported.record=5, where .* an object"),
    ({"sites": 3}, "sites=3, where .* an object"),
    ({"sites": {"hook_name": 3}}, "sites.hook_name=3, where .* an object"),
    (
        {"sites": {"hook_name": SITE.to_json() | {"width": "x"}}},
        "width='x', where .* a whole number",
    ),
    (
        {"sites": {"hook_name": SITE.to_json() | {"side": "above"}}},
        "sites.hook_name.side='above', where sae-atlas writes input or output",
    ),
    (
        {"sites": {"hook_name": SITE.to_json() | {"width": 31}}},
        "sites.hook_name has width=31, but the weights have 32",
    ),
    (
        {"sites": {"hook_name": MID.to_json()}},
        f"hook_name={HOOK}, but sae_atlas.sites.hook_name says {MID.hook_name}",
    ),
]


@pytest.mark.parametrize(("ours", "sentence"), DAMAGED, ids=[said for _, said in DAMAGED])
def test_a_record_of_ours_that_is_damaged_is_refused_and_says_what_to_do(
    ours, sentence, tmp_path
):
    save_dictionary(random_dictionary(hook_name=HOOK), tmp_path / "one")
    path = tmp_path / "one" / "cfg.json"
    config = json.loads(path.read_text())
    config["metadata"]["sae_atlas"] = ours
    unseal(path.parent)
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"one/cfg.json: .*{sentence}.*; {CURE}$"):
        load_dictionary(tmp_path / "one")


def test_what_is_wrong_with_the_record_is_said_before_weights_are_read(tmp_path):
    save_dictionary(random_dictionary(hook_name=HOOK, sae_atlas={}), tmp_path / "one")
    path = tmp_path / "one" / "cfg.json"
    config = json.loads(path.read_text())
    config["metadata"]["sae_atlas"] = {"cache_digest": 7}
    unseal(path.parent)
    path.write_text(json.dumps(config))
    (tmp_path / "one" / "sae_weights.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="cache_digest=7"):
        load_dictionary(tmp_path / "one")


def test_a_record_from_before_encoders_is_of_a_causal_model_by_one_name():
    said = {"name": "gpt2", "weight_digest": "abc", "dtype": "float32", "revision": None}
    found = ModelRecord.from_json(JsonObject("file", "model", said, CURE))
    assert found == ModelRecord("gpt2", "gpt2", "abc")
    assert (found.causal, found.class_name) == (True, "AutoModelForCausalLM")
    assert ModelRecord("x", "x", causal=False).class_name == "AutoModel"


def test_norms_were_limited_unless_a_record_says_otherwise():
    assert Record.from_json("file", {}).max_norm_multiple == SINK_NORM_MULTIPLE
    for said in (None, 3, 4.5):
        found = Record.from_json("file", {"sae_atlas": {"max_norm_multiple": said}})
        assert found.max_norm_multiple == said


def test_keys_of_an_identity_that_had_other_names_are_renamed_and_others_stay():
    before = {"output_hook_name": "b", "hook_name": "a", "sae.k": 7}
    after = {"hook_name_out": "b", "hook_name": "a", "sae.k": 7}
    assert upgraded_identity(before) == after
    assert upgraded_identity(after) == after
    ours = training_json(identity=before)
    record = Record.from_json("file", {"sae_atlas": ours})
    assert record.training.identity == after
    assert record.to_json()["sae_atlas"]["identity"] == after


def test_a_site_without_a_width_takes_that_of_the_weights(tmp_path):
    said = {"hook_name": HOOK, "sae_atlas": {"sites": {"hook_name": SITE.to_json()}}}
    said["sae_atlas"]["sites"]["hook_name"]["width"] = 0
    one = random_dictionary()
    found = dictionary_of(one.tensors, one.activation, tmp_path, said)
    assert found.reads[0].site == SITE
