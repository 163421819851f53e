"""Training rows straight from the model: a cache's, mixed, and found again after a kill."""

import json
import threading
import time
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from support.world import HOOK, harvest_settings, sentences

import sae
from sae.base.errors import UserError
from sae.cache.layout import open_cache
from sae.harvesting.config import HarvestConfig
from sae.rows import live as stage
from sae.rows.live import LiveRows
from sae.rows.shuffle import Rows
from sae.rows.source import Asked, CachedRows
from sae.text.source import DataConfig

OTHER = "blocks.0.mlp.hook_post"
BATCH = 64
EACH = {"max_norm_multiple": None, "seed": 7}


def of_text(model: Path, text: Path, **others: Any) -> dict[str, Any]:
    """A harvest of a whole text, some 12,000 tokens; one row a forward, so bits are alike."""
    asked = {"n_tokens": 1 << 20, "batch_size": 1}
    return harvest_settings(Path("unused"), model, text) | asked | others


def live(
    asked: dict[str, Any], folder: Path, output: str | None = None, **others: Any
) -> LiveRows:
    given = {"batch_size": BATCH, "mix_rows": 512, **EACH, **others}
    mix_rows, names = given.pop("mix_rows"), (asked["hook_names"][0], output)
    wanted = Asked(hook_name=names[0], hook_name_out=names[1], **given)
    return LiveRows(HarvestConfig(**asked), wanted, mix_rows, folder)


def cached(
    asked: dict[str, Any], folder: Path, output: str | None = None, **others: Any
) -> CachedRows:
    sae.harvest(**asked | {"run": str(folder)})
    given = {"batch_size": BATCH, **EACH, **others}
    cache = open_cache(folder / "cache.zarr")
    wanted = Asked(hook_name=asked["hook_names"][0], hook_name_out=output, **given)
    return CachedRows(cache, wanted)


def taken(rows: LiveRows, n: int, first: int = 0) -> list[Rows]:
    with closing(rows.batches(first)) as batches:
        return list(islice(batches, n))


def equal(some: list[Rows], others: list[Rows]) -> bool:
    pairs = zip(some, others, strict=True)
    return all(torch.equal(a, b) for x, y in pairs for a, b in zip(x, y, strict=True))


def in_order(rows: Rows) -> list[list[float]]:
    """Rows, both sides of a pair end to end, sorted."""
    return sorted(torch.cat([x.float() for x in rows], 1).tolist())


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("rows")]


@pytest.mark.slow
@pytest.mark.parametrize(
    "others",
    [
        {},
        {"dtype": "bfloat16", "one_document_a_row": True},
        {"dtype": "int8", "hook_names": [HOOK, OTHER], "context_size": 48},
    ],
    ids=["plain", "padded", "transcoder"],
)
def test_one_reading_of_the_text_gives_the_rows_of_a_cache_each_once(
    others, tmp_path, tiny_model, tiny_text, capsys
):
    asked = of_text(tiny_model, tiny_text, **others)
    output = OTHER if "hook_names" in others else None
    cache = cached(asked, tmp_path, output)
    expected, held_out = cache.sample(), cache.held_out(1 << 20)
    n = len(expected[0])
    assert n > 5_000
    # A batch of as many rows as the text has; the next one is the text's second reading.
    rows = live(asked, tmp_path, output, batch_size=n, mix_rows=n)
    assert equal([rows.sample()], [expected])
    first, second = taken(rows, 2)
    assert first[0].dtype == expected[0].dtype
    assert in_order(first) == in_order(second) == in_order(expected)
    assert not equal([first], [expected])
    assert not equal([first], [second])
    assert equal([rows.held_out(1 << 20)], [held_out])
    assert (
        capsys.readouterr().err.count("the end of the text is reached, and it is read again")
        == 1
    )


@pytest.mark.slow
def test_a_broken_row_is_refused_before_a_model_is_loaded_or_skipped_and_said(
    tmp_path, tiny_model, capsys
):
    good, broken = tmp_path / "good.jsonl", tmp_path / "broken.jsonl"
    lines = [json.dumps({"text": text}) for text in sentences(20)]
    good.write_text("\n".join(lines))
    broken.write_text("\n".join([lines[0], "{", *lines[1:]]))
    with pytest.raises(UserError, match=r"broken\.jsonl, line 2 is not readable as json"):
        live(of_text(tiny_model, broken), tmp_path)
    skipping = DataConfig(name=str(broken), on_error="skip")
    some = live(of_text(tiny_model, good), tmp_path, mix_rows=64)
    others = live(of_text(tiny_model, broken, data=skipping), tmp_path, mix_rows=64)
    n = -(-2 * len(some.sample()[0]) // BATCH)
    assert equal(taken(some, n), taken(others, n))
    assert f"1 unreadable were passed over, first {broken}, line 2" in capsys.readouterr().err


@pytest.mark.slow
def test_rows_with_large_norms_are_left_out_as_from_a_cache(tmp_path, tiny_model, tiny_text):
    asked = of_text(tiny_model, tiny_text)
    cache = cached(asked, tmp_path, max_norm_multiple=1.1)
    expected, everything = cache.sample(), live(asked, tmp_path).sample()
    n = len(expected[0])
    assert 0.2 < n / len(everything[0]) < 0.98
    rows = live(asked, tmp_path, batch_size=n, mix_rows=n, max_norm_multiple=1.1)
    # The cache's median is right to one part in 4,096: a few rows are at that bound.
    some = len({*map(tuple, in_order(rows.sample()))} ^ {*map(tuple, in_order(expected))})
    assert some < 0.01 * n
    (x,) = rows.held_out(1 << 20)
    bound = 1.1 * float(everything[0].float().norm(dim=1).median())
    assert len(x)
    assert all(float(r.float().norm(dim=1).max()) <= bound for (r,) in [*taken(rows, 2), (x,)])


@pytest.mark.slow
def test_an_encoder_gives_the_rows_of_its_cache(
    tmp_path,
    encoder,
    tiny_text,
):
    asked = of_text(encoder, tiny_text)
    (expected,) = cached(asked, tmp_path).sample()
    rows = live(asked, tmp_path, batch_size=len(expected), mix_rows=len(expected))
    (found,) = taken(rows, 1)
    assert in_order(found) == in_order((expected,))
    assert rows.record.model.class_name == "AutoModel"


@pytest.mark.slow
def test_the_record_is_that_of_a_cache_without_its_digest(tmp_path, tiny_model, tiny_text):
    asked = of_text(tiny_model, tiny_text, hook_names=[HOOK, OTHER])
    for output in (None, OTHER):
        rows, kept = live(asked, tmp_path, output), cached(asked, tmp_path, output)
        assert rows.places == kept.places
        assert len(rows.places) == (1 if output is None else 2)
        expected = kept.record
        # How many documents there were is known at the text's end.
        about = {k: v for k, v in expected.text.settings.items() if k != "documents"}
        text = replace(expected.text, n_documents=None, settings=about)
        assert rows.record == replace(expected, text=text, cache_digest=None)
        assert expected.cache_digest is not None


def test_the_identity_is_json_and_changes_with_all_that_decides_the_rows(
    tmp_path, tiny_model, tiny_text
):
    asked = of_text(tiny_model, tiny_text, hook_names=[HOOK])
    same = live(asked, tmp_path).identity
    assert json.loads(json.dumps(same)) == same
    assert live(asked | {"batch_size": 8, "n_tokens": 999}, tmp_path).identity == same
    model = asked["model"]
    data = asked["data"]
    found = [
        live(asked | {"dtype": "int8"}, tmp_path),
        live(asked | {"context_size": 16}, tmp_path),
        live(asked | {"one_document_a_row": True}, tmp_path),
        live(asked | {"hook_names": [OTHER]}, tmp_path),
        live(asked | {"model": replace(model, bos_token="</s>")}, tmp_path),
        live(asked | {"data": replace(data, held_out_fraction=0.2)}, tmp_path),
        live(asked, tmp_path, OTHER),
        live(asked, tmp_path, seed=8),
        live(asked, tmp_path, mix_rows=513),
        live(asked, tmp_path, batch_size=63),
        live(asked, tmp_path, max_norm_multiple=10.0),
    ]
    digests = {json.dumps(rows.identity) for rows in found} | {json.dumps(same)}
    assert len(digests) == 12


# The text has about 8,000 rows to train on: the last points are in its second reading.
@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 5, 40, 130, 200])
def test_a_later_process_goes_on_bit_for_bit(at, tmp_path, tiny_model, tiny_text, whole):
    asked = of_text(tiny_model, tiny_text, batch_size=4, hook_names=[HOOK, OTHER])
    rows = live(asked, tmp_path, OTHER, max_norm_multiple=1.3)
    with closing(rows.batches(0)) as batches:
        before = list(islice(batches, at))
        # The thread is ahead of what was taken by then, and it does not count.
        time.sleep(0.1)
        rows.save(at)
        next(batches)
    assert equal(before, whole[:at])
    later = live(asked, tmp_path, OTHER, max_norm_multiple=1.3)
    assert equal(taken(later, len(whole) - at, at), whole[at:])
    assert equal([later.sample(), later.held_out(99)], [rows.sample(), rows.held_out(99)])


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_text: Path
) -> list[Rows]:
    """What nothing interrupted, of which no two batches are the same."""
    asked = of_text(tiny_model, tiny_text, batch_size=4, hook_names=[HOOK, OTHER])
    folder = tmp_path_factory.mktemp("whole")
    found = taken(live(asked, folder, OTHER, max_norm_multiple=1.3), 210)
    assert len({float(x.float().sum()) for x, _ in found}) == len(found)
    return found


@pytest.mark.slow
def test_going_on_with_other_forward_passes_and_workers_gives_the_same_rows(
    tmp_path, tiny_model, tiny_text
):
    asked = of_text(tiny_model, tiny_text, batch_size=4)
    rows = live(asked, tmp_path)
    with closing(rows.batches(0)) as batches:
        next(batches)
        rows.save(1)
        expected = [next(batches) for _ in range(100)]
    # Nothing tells these from the first ones, but the last digit of some numbers.
    others = live(asked | {"batch_size": 7, "text_workers": 1}, tmp_path)
    for (x,), (y,) in zip(expected, taken(others, 100, 1), strict=True):
        torch.testing.assert_close(x.float(), y.float(), atol=0.01, rtol=0.01)
    assert not threads()


def test_states_are_kept_until_they_are_forgotten(tmp_path, tiny_model, tiny_text):
    rows = live(of_text(tiny_model, tiny_text), tmp_path)
    with closing(rows.batches(0)) as batches:
        for n in (1, 2, 3):
            next(batches)
            rows.save(n)
        with pytest.raises(ValueError, match="3 batches were given, and not 2"):
            rows.save(2)
    expected = taken(rows, 4)
    for n in (1, 2, 3):
        assert equal(taken(rows, 1, n), [expected[n]])
    (state,) = tmp_path.glob(".stream-*")
    (state / ".stream_0000000001.pt.0123abcd.partial").write_bytes(b"half of it")
    # Of two trainings, one of which is behind; the checkpoints are what counts.
    for name in ("ahead/step_0000000003.pt", "behind/step_0000000001.pt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    rows.forget()
    left = ["stream_0000000001.pt", "stream_0000000003.pt"]
    assert sorted(path.name for path in state.glob("stream*")) == left
    taken(rows, 1)
    assert sorted(path.name for path in state.glob("*stream*")) == left
    with pytest.raises(UserError, match=r"stream_0000000002\.pt is missing, and batch"):
        rows.batches(2)


def test_a_state_that_is_damaged_or_not_there_is_refused(tmp_path, tiny_model, tiny_text):
    asked = of_text(tiny_model, tiny_text)
    rows = live(asked, tmp_path)
    with closing(rows.batches(0)) as batches:
        next(batches)
        rows.save(1)
    with pytest.raises(UserError, match=r"stream_0000000001\.pt is missing"):
        live(asked, tmp_path, seed=8).batches(1)
    (path,) = tmp_path.glob(".stream-*/stream_0000000001.pt")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"stream_0000000001\.pt is damaged"):
        live(asked, tmp_path).batches(1)


@pytest.mark.parametrize("change", ["another word", "shorter"])
def test_a_text_that_has_changed_before_the_position_is_refused(change, tmp_path, tiny_model):
    lines = [json.dumps({"text": text}) for text in sentences(200, seed=3)]
    file = tmp_path / "text" / "notes.jsonl"
    file.parent.mkdir()
    file.write_text("\n".join(lines))
    asked = of_text(tiny_model, file.parent)
    rows = live(asked, tmp_path)
    with closing(rows.batches(0)) as batches:
        for _ in range(60):
            next(batches)
        rows.save(60)
    others = [*lines[:5], json.dumps({"text": "Another."}), *lines[5:]]
    file.write_text("\n".join(lines[:60] if change == "shorter" else others))
    with pytest.raises(UserError, match="is not the text with which this training was begun"):
        taken(live(asked, tmp_path), 1, 60)


def test_the_thread_ends_with_the_iterator(tmp_path, tiny_model, tiny_text):
    rows = live(of_text(tiny_model, tiny_text), tmp_path)
    batches = rows.batches(0)
    assert not threads()
    next(batches)
    assert len(threads()) == 1
    batches.close()
    assert not threads()
    batches = rows.batches(0)
    next(batches)
    del batches
    assert not threads()


def test_memory_is_that_of_the_buffer_and_of_some_blocks_ahead(
    tmp_path, tiny_model, tiny_text, monkeypatch
):
    rows = live(of_text(tiny_model, tiny_text), tmp_path, mix_rows=BATCH)
    calls, compute = [], stage.activations

    def counted(*given: Any, **settings: Any) -> Any:
        calls.append(given)
        return compute(*given, **settings)

    monkeypatch.setattr(stage, "activations", counted)
    with closing(rows.batches(0)) as batches:
        next(batches)
        time.sleep(0.3)
        # Two blocks of at most 32 rows fill the buffer, or three; two wait; one is in hand.
        assert 4 <= len(calls) <= 7


def test_an_error_of_the_thread_surfaces_in_the_trainer(
    tmp_path, tiny_model, tiny_text, monkeypatch
):
    rows = live(of_text(tiny_model, tiny_text), tmp_path)
    calls, compute = [], stage.activations

    def failing(*given: Any, **settings: Any) -> Any:
        calls.append(given)
        if len(calls) == 60:
            raise RuntimeError("out of memory, say")
        return compute(*given, **settings)

    monkeypatch.setattr(stage, "activations", failing)
    with pytest.raises(RuntimeError, match="out of memory, say"):
        taken(rows, 100)
    assert len(calls) == 60
    assert not threads()


def refused(sentence: str, *given: Any, **others: Any) -> None:
    with pytest.raises(UserError, match=sentence):
        live(*given, **others)


def test_what_is_impossible_is_refused_before_weights_are_loaded(
    tmp_path, tiny_model, tiny_text, monkeypatch
):
    def loaded(*_: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(stage, "load_model", loaded)
    asked = of_text(tiny_model, tiny_text)
    wrong = asked | {"hook_names": ["blocks.7.hook_resid_post"]}
    refused("layer 7 is out of range", wrong, tmp_path)
    refused("layer 7 is out of range", asked, tmp_path, "blocks.7.hook_resid_post")
    refused("is hook_name itself; leave it out", asked, tmp_path, HOOK)
    refused("mix_rows=63 is less than one batch of", asked, tmp_path, mix_rows=63)
    refused("longer than the model's 128", asked | {"context_size": 256}, tmp_path)
    gone = replace(asked["data"], name=str(tmp_path / "gone"))
    refused("gone does not exist", asked | {"data": gone}, tmp_path)
    sizes = {"batch_size": 20_000, "mix_rows": 20_000}
    refused("rows to train on, less than one batch of", asked, tmp_path, **sizes)
    config = HarvestConfig(**asked | {"hook_names": [HOOK, OTHER]})
    given = {"batch_size": BATCH, **EACH}
    with pytest.raises(UserError, match="names several; choose one"):
        LiveRows(config, Asked(**given), 512, tmp_path)
    with pytest.raises(UserError, match="needs hook_name="):
        LiveRows(config, Asked(hook_name_out=OTHER, **given), 512, tmp_path)


def test_a_text_whose_rows_are_no_batch_once_marks_are_left_out_is_refused(
    tmp_path, tiny_model
):
    text = tmp_path / "text"
    text.mkdir()
    (text / "a.jsonl").write_text(
        "\n".join(json.dumps({"text": t}) for t in sentences(40, seed=2))
    )
    asked = of_text(tiny_model, text)
    n = len(live(asked, tmp_path).sample()[0])
    assert len(live(asked, tmp_path, batch_size=n, mix_rows=n).sample()[0]) == n
    rows = live(asked, tmp_path, batch_size=n + 1, mix_rows=n + 1)
    with pytest.raises(UserError, match=f"has {n:,} rows to train on, less than one batch"):
        rows.sample()
