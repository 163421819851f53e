"""`sae cache`: what it says of a cache, what it finds damaged, and what it makes of caches."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from support.files import reworded
from support.world import HOOK, cache_of, harvest_settings, sentences

import sae
from sae.base.progress import size
from sae.cache.create import create_cache
from sae.cache.layout import ActivationCache, open_cache
from sae.cache.text_writer import write_text
from sae.cache.writer import CacheWriter
from sae.cli import main
from sae.commands.cache import CacheVerifyConfig, verify
from sae.config.commands import family
from sae.config.keys import keys
from sae.models.site import Site
from sae.text.packing import RowBlock, TextPlan

VERBS = {command.name.split()[1]: command for command in family("cache")}
PLACES = {
    "info": "CACHE",
    "verify": "CACHE",
    "merge": "OUT CACHE CACHE ...",
    "sample": "CACHE",
    "export": "CACHE OUT",
    "import": "FOLDER OUT",
}
SEQUENCES, CONTEXT = 100, 8
HELD_OUT = np.arange(SEQUENCES) >= 80
HOOKS = {"h": 3, "out": 2}


def made(path: Path, **settings: Any) -> ActivationCache:
    """A cache of four chunks at two hooks, with three loud rows among those for training."""
    draw = torch.Generator().manual_seed(0)
    rows = {
        name: torch.randn(SEQUENCES, CONTEXT, width, generator=draw)
        for name, width in HOOKS.items()
    }
    rows["h"][[3, 40, 79], [2, 1, 7]] *= 1000
    tokens = np.full((SEQUENCES, CONTEXT), 70, dtype=np.int32)
    tokens[:, 0] = 0
    return cache_of(path, tokens, HELD_OUT, rows, **settings)


def unfinished(path: Path, n_chunks: int, *, text: bool = True) -> CacheWriter:
    """What is there of `made` when it has so many of its chunks."""
    whole = made(path.with_name("whole.zarr"))
    writer = create_cache(
        path,
        [Site(name, name, "output", width) for name, width in HOOKS.items()],
        TextPlan(80, 20, CONTEXT),
        dtype="float32",
        attributes={
            key: whole.attributes[key]
            for key in ("digest", "special_token_ids", "data", "model", "tokenizer_digest")
        },
    )
    if text:
        sides = [(side, whole.tokens[side == HELD_OUT]) for side in (False, True)]
        blocks = [RowBlock(side, ids, np.zeros_like(ids)) for side, ids in sides]
        write_text(writer, blocks, lambda: np.array([7], dtype=np.uint64))
    for chunk in writer.chunks()[:n_chunks]:
        writer.write(chunk, {name: whole.read(name, chunk) for name in HOOKS})
    return writer


def said(capsys: pytest.CaptureFixture[str], *words: object, status: int = 0) -> str:
    """What a command prints on standard output."""
    assert main(["cache", *map(str, words)]) == status
    return capsys.readouterr().out


def found_damaged(capsys: pytest.CaptureFixture[str], path: Path) -> str:
    """What `sae cache verify` prints of a damaged cache, without the command line around it."""
    assert not verify(CacheVerifyConfig(cache=str(path)))
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one sentence with which a command is refused."""
    assert main(["cache", *map(str, words)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("sae cache: ")
    return line


def as_json(capsys: pytest.CaptureFixture[str], location: object) -> dict[str, Any]:
    return json.loads(said(capsys, "info", location, "json=true"))


def change(path: Path, **attributes: Any) -> None:
    """Let a cache say something else of itself."""
    about = zarr.open_group(str(path), mode="r").attrs
    reworded(path, **{k: {**about[k], **v} for k, v in attributes.items()})


# The words


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_the_verbs_are_listed_with_an_example_each(words, capsys):
    listed = said(capsys, *words)
    assert set(VERBS) == {"info", "verify", "merge", "sample", "export", "import"}
    for verb, command in VERBS.items():
        assert f"  {verb} " in listed
        assert f"sae cache {verb} " in command.example
        assert command.example in listed


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_names_its_keys_with_values_and_an_example(verb, capsys):
    listed = said(capsys, verb, "--help")
    assert listed.startswith(f"sae cache {verb} {PLACES[verb]}")
    assert VERBS[verb].example in listed
    assert all(f"\n  {key.name}=" in listed for key in keys(VERBS[verb].config_class()))
    assert "\n  n=7\n" in said(capsys, "sample", "x", "n=7", "-h")


def test_the_help_of_sae_names_the_caches(capsys):
    assert main(["--help"]) == 0
    assert "sae cache --help" in capsys.readouterr().out
    assert main(["cach"]) == 2
    assert "nearest: cache" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["smaple", "x"], "smaple is no verb; nearest: sample; there are info, verify"),
        (["info"], "write sae cache info CACHE [json=...], such as: sae cache info"),
        (["info", "a", "b"], "b is one word too many; write sae cache info CACHE"),
        (["merge", "out"], "write sae cache merge OUT CACHE CACHE ..., such as: sae cache"),
        (["merge", "out", "a"], "give at least two caches"),
        (["info", "a", "jsn=true"], "jsn is no key of sae cache info; nearest: json"),
        (["info", "a", "json=maybe"], "json=maybe: give true or false"),
        (["info", "a", "--json"], "--json is no flag here; write sae cache info CACHE [json="),
        (["sample", "a", "n=some"], "n=some: give a whole number or null"),
        (["sample", "a", "n="], "n=: give a whole number or null"),
        (["export", "a", "b", "held_out=no"], "held_out=no: give true, false or all"),
        (["import", "a", "b"], "write sae cache import FOLDER OUT model_name=..."),
        (
            ["import", "a", "b", "model_name=x", "special_token_ids=0,a"],
            "special_token_ids=0,a: give one value, or a list as special_token_ids=[0,a]",
        ),
        (
            ["import", "a", "b", "model_name=x", "special_token_ids=[0,a]"],
            "special_token_ids=[0,a]: give a list of whole numbers, as special_token_ids=[1,2]",
        ),
        (["info", "nowhere"], "nowhere is not an activation cache; make one with: sae harvest"),
        (["verify", "x=y/nowhere"], "x is no key of sae cache verify"),
        (["verify", "./x=y/nowhere"], "./x=y/nowhere is not an activation cache"),
    ],
)
def test_a_wrong_word_is_refused_in_one_sentence(words, sentence, capsys):
    assert sentence in refused(capsys, *words)


def test_any_path_is_one_plain_word_and_may_be_given_by_its_key(tmp_path, capsys, monkeypatch):
    odd = "it's a=b, {c} \\ [d].zarr"
    made(tmp_path / odd)
    assert said(capsys, "verify", tmp_path / odd).startswith("intact")
    monkeypatch.chdir(tmp_path)
    assert said(capsys, "verify", odd).startswith("intact")
    made(tmp_path / "n=5")
    said(capsys, "sample", "n=5", "n=6", "out=small.zarr")
    assert open_cache("small.zarr").n_sequences == 6
    assert said(capsys, "verify", "cache=n\\=5").startswith("intact")


def test_a_verb_is_a_python_call_too(tmp_path):
    cache = made(tmp_path / "c.zarr")
    assert sae.cache_verify(cache=cache.location) is True
    asked = sae.CacheSampleConfig(cache=cache.location, out=str(tmp_path / "s.zarr"), n=5)
    assert sae.cache_sample(asked).n_sequences == 5


def test_a_value_that_a_verb_cannot_have_is_refused(tmp_path, capsys):
    made(tmp_path / "c.zarr")
    assert "seed=-1" in refused(capsys, "sample", tmp_path / "c.zarr", "seed=-1")
    assert "n=0" in refused(capsys, "sample", tmp_path / "c.zarr", "n=0")
    sentence = refused(capsys, "sample", tmp_path / "c.zarr", "n=101")
    assert "n=101 is more than the 100 sequences" in sentence


# info


def test_info_says_where_a_cache_is_from_and_what_it_holds(tiny_run, capsys):
    location = tiny_run / "cache.zarr"
    about = open_cache(location).attributes
    printed = said(capsys, "info", location)
    documents, data = about["data"]["documents"], about["data"]
    for fact in (
        f"{location}: complete; ",
        about["model"]["name"],
        f"run in float32, digest {about['model']['weight_digest']}",
        f"digest {about['tokenizer_digest']}; tokens that are no text: 0, 1",
        f"{data['name']}, digest {about['data_digest']}",
        f"{documents['used']} used, 0 repeated, 0 empty, {documents['unneeded']} unneeded",
        "256 of 32 tokens, 8,192 in all",
        "230 training, 26 held out, held_out_fraction=0.1",
        "float16, not compressed, format 2",
        f"sae-atlas {about['code_version']}, harvest",
        open_cache(location).digest,
        f"{HOOK}   output of model.layers.1, width 32",
        "ten times the median: 0 rows above are sinks",
    ):
        assert fact in printed, fact


def test_the_figures_of_info_are_those_of_the_rows(tmp_path, capsys):
    cache = made(tmp_path / "c.zarr")
    found = as_json(capsys, cache.location)
    files = [p for p in (tmp_path / "c.zarr").rglob("*") if p.is_file()]
    assert found["bytes"] == sum(p.stat().st_size for p in files)
    assert found["bytes_per_token"] == found["bytes"] / (SEQUENCES * CONTEXT)
    for hook, width in HOOKS.items():
        rows = torch.cat([cache.read(hook, c) for c in cache.chunks(hook)])[:80, 1:]
        x = rows.reshape(-1, width).double().numpy()
        norms = np.linalg.norm(x, axis=1)
        about = found["hooks"][hook]
        sinks = norms > 10 * np.median(norms)
        assert sinks.sum() == (3 if hook == "h" else 0)
        assert about["sink_rows"] == sinks.sum()
        assert about["training_rows"] == 80 * CONTEXT
        assert about["special_rows"] == 80
        assert about["padding_rows"] == 0
        assert about["mean_norm"] == pytest.approx(norms[~sinks].mean(), rel=1e-3)
        assert about["median_norm"] == pytest.approx(np.median(norms), rel=1e-3)
        assert about["greatest_norm"] == pytest.approx(norms.max(), rel=1e-3)
        assert about["least_norm"] == pytest.approx(norms.min(), rel=1e-3)
        edges, counts = (np.array(about["histogram"][k]) for k in ("edges", "counts"))
        np.testing.assert_allclose(np.diff(np.log(edges)), np.log(edges[1] / edges[0]))
        assert counts.sum() == len(norms)
        # A row on an edge may be on either side of it.
        assert np.abs(counts - np.histogram(norms, edges)[0]).sum() <= 4
        assert counts[edges[:-1] > 0.999 * about["sink_threshold"]].sum() == sinks.sum()
        i = int(np.abs(x.mean(0)).argmax())
        assert about["largest_mean"]["dimension"] == i
        assert about["largest_mean"]["mean"] == pytest.approx(x.mean(0)[i])
        assert about["largest_mean"]["standard_deviation"] == pytest.approx(x.std(0)[i])


def test_the_sink_threshold_stands_between_the_bars_of_rows_below_and_above(tmp_path, capsys):
    cache = made(tmp_path / "c.zarr")
    threshold = as_json(capsys, cache.location)["hooks"]["h"]["sink_threshold"]
    lines = said(capsys, "info", cache.location).split("\nh   ")[1].splitlines()
    (at,) = [i for i, line in enumerate(lines[:-20]) if "ten times the median" in line]
    assert f"{threshold:.4g} is ten times the median: 3 rows above are sinks" in lines[at]
    bars = [re.match(r" +(\S+) to (\S+) +([▏▎▍▌▋▊▉█]*) +([\d,]+)$", line) for line in lines]
    below, above = bars[:at], bars[at:]
    assert sum(int(b[4].replace(",", "")) for b in below if b) == 80 * 7 - 3
    counts = [int(b[4].replace(",", "")) for b in above[: above.index(None, 1)] if b]
    assert sum(counts) == 3
    longest = max((b for b in bars if b), key=lambda b: len(b[3]))
    assert longest[3] == "█" * 40
    # One row among hundreds is still seen.
    assert all(bool(b[3]) == (b[4] != "0") for b in bars if b)


def test_rows_of_zeros_and_rows_that_are_all_alike_have_a_histogram(tmp_path, capsys):
    tokens = np.full((40, 4), 7, dtype=np.int32)
    split = np.arange(40) >= 30
    for name, x in (("zeros", torch.zeros(40, 4, 2)), ("ones", torch.ones(40, 4, 2))):
        cache = cache_of(tmp_path / f"{name}.zarr", tokens, split, {"h": x})
        counts = as_json(capsys, cache.location)["hooks"]["h"]["histogram"]["counts"]
        assert sum(counts) == 120
        assert "120" in said(capsys, "info", cache.location)
    mixed = torch.ones(40, 4, 2)
    mixed[:10] = 0
    cache = cache_of(tmp_path / "mixed.zarr", tokens, split, {"h": mixed})
    counts = as_json(capsys, cache.location)["hooks"]["h"]["histogram"]["counts"]
    assert (counts[0] >= 40, sum(counts)) == (True, 120)


@pytest.mark.slow
@pytest.mark.parametrize("n_chunks", [0, 1, 3, 4])
def test_info_of_an_unfinished_cache_is_of_the_chunks_that_are_there(
    tmp_path, capsys, n_chunks
):
    unfinished(tmp_path / "c.zarr", n_chunks)
    printed = said(capsys, "info", tmp_path / "c.zarr")
    assert f"unfinished, {n_chunks} of 4 chunks there, all of its text" in printed
    about = as_json(capsys, tmp_path / "c.zarr")["hooks"]["h"]
    assert about["chunks_there"] == n_chunks
    assert about["training_rows"] == min(32 * n_chunks, 80) * CONTEXT
    if n_chunks == 0:
        assert "no training rows are there yet" in printed
        assert "median_norm" not in about
    else:
        assert sum(about["histogram"]["counts"]) == min(32 * n_chunks, 80) * 7
        assert about["sink_rows"] == (3 if n_chunks >= 3 else n_chunks)


def test_info_of_a_cache_whose_text_is_still_to_come_says_so(tmp_path, capsys):
    unfinished(tmp_path / "c.zarr", 0, text=False)
    printed = said(capsys, "info", tmp_path / "c.zarr")
    assert "0 of 4 chunks there, its text unfinished" in printed
    assert "not counted yet" in printed


@pytest.mark.parametrize("verb", ["info", "verify"])
def test_a_cache_that_is_not_laid_out_yet_is_refused(tmp_path, capsys, verb):
    group = zarr.create_group(str(tmp_path / "c.zarr"))
    group.attrs.update({"format": "sae-atlas activation cache", "format_version": 2})
    sentence = refused(capsys, verb, tmp_path / "c.zarr")
    assert "is not finished; run the same harvest again" in sentence


def test_info_names_damage_in_what_it_reads(tmp_path, capsys):
    made(tmp_path / "c.zarr")
    flip(tmp_path / "c.zarr" / "norms" / "out" / "c.2.0")
    sentence = refused(capsys, "info", tmp_path / "c.zarr")
    assert "norms/out is damaged in sequences 0 to 99" in sentence


def test_info_holds_no_whole_array_of_tokens_or_norms(tmp_path, capsys, monkeypatch):
    cache = made(tmp_path / "c.zarr")
    for name in ("tokens", "documents"):
        monkeypatch.setattr(ActivationCache, name, property(lambda _: pytest.fail("whole")))
    monkeypatch.setattr(ActivationCache, "norms", lambda *_: pytest.fail("whole"))
    assert "median" in said(capsys, "info", cache.location)


def test_names_that_would_command_a_terminal_are_escaped(tmp_path, capsys):
    cache = made(tmp_path / "c.zarr")
    change(tmp_path / "c.zarr", data={"name": "nice\x1b[2Jtext\u202e"}, model={"name": "a\rb"})
    printed = said(capsys, "info", cache.location)
    assert r"nice\x1b[2Jtext\u202e" in printed
    assert r"a\rb" in printed
    assert not set(printed) & {"\x1b", "\r", "\u202e"}


def test_sizes_are_for_people():
    assert [size(n) for n in (0, 999, 1000, 834_000, 1.25e9, 3e12)] == [
        "0 B",
        "999 B",
        "1 kB",
        "834 kB",
        "1.25 GB",
        "3 TB",
    ]


# verify


def flip(file: Path, at: int = 5) -> None:
    raw = bytearray(file.read_bytes())
    raw[at % len(raw)] ^= 0x10
    file.write_bytes(raw)


def chunk_files(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("c.*") if p.is_file())


def test_an_intact_cache_has_status_0_and_says_how_much_was_read(tmp_path, capsys):
    cache = made(tmp_path / "c.zarr")
    printed = said(capsys, "verify", cache.location)
    files = chunk_files(tmp_path / "c.zarr")
    n_bytes = sum(p.stat().st_size - 4 for p in files)
    wanted = rf"intact: {re.escape(size(n_bytes))} in {len(files)} chunks, read in \S+ s at "
    assert re.match(wanted + r"\S+ [kMG]B/s\n$", printed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{}, {"dtype": "int8"}, {"compression": "zstd", "dtype": "float16"}]
)
def test_one_flipped_byte_in_any_chunk_of_any_array_is_found_and_named(
    tmp_path, capsys, settings
):
    path = tmp_path / "c.zarr"
    made(path, **settings)
    files = chunk_files(path)
    kinds = {file.relative_to(path).parts[0] for file in files}
    assert kinds >= {"tokens", "documents", "held_out", "document_digests", "statistics"}
    assert ("scales" in kinds) == (settings.get("dtype") == "int8")
    for i, file in enumerate(files):
        whole = file.read_bytes()
        flip(file, at=i * 7919)
        first, *rest = found_damaged(capsys, path).splitlines()
        array = str(file.parent.relative_to(path))
        assert re.match(rf"{array}: \w+ \d+ to \d+: is damaged \(", first), file
        number = int(file.name.split(".")[1])
        if array.startswith(("activations", "norms", "scales")):
            places = f"sequences {32 * number} to {min(32 * number + 32, SEQUENCES) - 1}"
            assert f"{array}: {places}:" in first
        assert rest[0].startswith("damaged: 1 chunk, ")
        assert "run the same sae harvest again" in rest[0]
        file.write_bytes(whole)
    assert said(capsys, "verify", path).startswith("intact")


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_deleted_or_shortened_chunk_of_any_array_is_found_and_named(
    tmp_path, capsys, compression
):
    path = tmp_path / "c.zarr"
    made(path, compression=compression)
    for file in chunk_files(path):
        whole, array = file.read_bytes(), str(file.parent.relative_to(path))
        file.unlink()
        printed = found_damaged(capsys, path)
        assert re.match(rf"{array}: \w+ \d+ to \d+: is not there\n", printed)
        for cut in (whole[:-7], b""):
            file.write_bytes(cut)
            printed = found_damaged(capsys, path)
            assert re.match(rf"{array}: \w+ \d+ to \d+: is damaged \(", printed)
        file.write_bytes(whole)


def test_several_damages_are_all_named(tmp_path, capsys):
    path = tmp_path / "c.zarr"
    made(path)
    flip(path / "activations" / "h" / "c.1.0.0")
    (path / "activations" / "h" / "c.3.0.0").unlink()
    flip(path / "statistics" / "out" / "mean" / "c.0")
    printed = said(capsys, "verify", path, status=1).splitlines()
    assert [line.split(": ")[0] for line in printed[:3]] == [
        "activations/h",
        "activations/h",
        "statistics/out/mean",
    ]
    assert printed[3].startswith("damaged: 3 chunks")


@pytest.mark.slow
@pytest.mark.parametrize(
    "array", ["tokens", "norms/h", "activations/out", "statistics/out/mean"]
)
def test_an_array_that_is_gone_or_cannot_be_opened_is_named(tmp_path, capsys, array):
    path = tmp_path / "c.zarr"
    made(path)
    about = path / array / "zarr.json"
    about.write_text("{")
    printed = said(capsys, "verify", path, status=1)
    assert f"{array}: all of it: has a damaged zarr.json" in printed
    about.unlink()
    assert f"{array}: all of it: is not there" in said(capsys, "verify", path, status=1)
    assert f"{array} is missing or damaged" in refused(capsys, "info", path)


@pytest.mark.parametrize("content", ["", "null", '{"zarr_format": 3}'])
@pytest.mark.parametrize("group", ["activations", "statistics/out"])
def test_a_group_that_cannot_be_opened_is_named_though_only_others_read_it(
    tmp_path, capsys, group, content
):
    path = tmp_path / "c.zarr"
    made(path)
    (path / group / "zarr.json").write_text(content)
    printed = said(capsys, "verify", path, status=1)
    assert printed.startswith(f"{group}: its zarr.json: is damaged or not there\ndamaged: 1 ")


def test_an_array_that_has_lost_sequences_is_named(tmp_path, capsys):
    path = tmp_path / "c.zarr"
    made(path)
    zarr.open_group(str(path), mode="r+")["norms/h"].resize((64, CONTEXT))
    printed = said(capsys, "verify", path, status=1)
    assert "norms/h: all of it: has 64 sequences where 100 should be" in printed


def test_an_unfinished_cache_is_not_damaged_but_not_whole(tmp_path, capsys):
    path = tmp_path / "c.zarr"
    unfinished(path, 3)
    printed = said(capsys, "verify", path, status=1)
    assert "activations/h: 1 chunks are not written yet" in printed
    assert "unfinished, nothing of it damaged: " in printed
    assert "run the same sae harvest again to complete it" in printed
    assert not re.search(r"^(tokens|held_out|statistics)", printed, re.MULTILINE)
    flip(path / "norms" / "h" / "c.1.0")
    printed = said(capsys, "verify", path, status=1)
    assert printed.startswith("norms/h: sequences 32 to 63: is damaged")


def test_what_verify_advises_repairs_the_cache(tmp_path, tiny_model, tiny_text, capsys):
    settings = harvest_settings(tmp_path, tiny_model, tiny_text)
    sae.harvest(**settings)
    path = tmp_path / "cache.zarr"
    flip(path / "activations" / HOOK / "c.2.0.0")
    (path / "tokens" / "c.0.0").unlink()
    said(capsys, "verify", path, status=1)
    sae.harvest(**settings)
    assert said(capsys, "verify", path).startswith("intact")


def test_verify_as_a_process_ends_with_its_status(tmp_path, command):
    made(tmp_path / "c.zarr")
    flip(tmp_path / "c.zarr" / "tokens" / "c.0.0")
    done = command("cache", "verify", str(tmp_path / "c.zarr"))
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("tokens: sequences 0 to 99: is damaged")


# merge and sample


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> list[Path]:
    """Two harvests whose texts share documents; not to be changed."""
    folder = tmp_path_factory.mktemp("pair")
    found = []
    for name, texts in (
        ("one", sentences(120, seed=1)),
        ("two", sentences(60, seed=1) + sentences(80, seed=2)),
    ):
        text = folder / name / "text"
        text.mkdir(parents=True)
        lines = [json.dumps({"text": t}) for t in texts]
        (text / "notes.jsonl").write_text("\n".join(lines))
        sae.harvest(**harvest_settings(folder / name, tiny_model, text) | {"n_tokens": 3000})
        found.append(folder / name / "cache.zarr")
    return found


@pytest.mark.slow
def test_a_merge_on_the_command_line_says_what_both_caches_share(pair, tmp_path, capsys):
    printed = said(capsys, "merge", tmp_path / "both.zarr", *pair)
    one, two, both = map(open_cache, (*pair, tmp_path / "both.zarr"))
    shared = len(np.intersect1d(one.document_digests, two.document_digests))
    assert shared > 0
    assert f"{shared} of them in more than one cache" in printed
    held_out = int(one.held_out.sum() + two.held_out.sum())
    assert f"{both.n_sequences - held_out} training and {held_out} held-out" in printed
    assert both.n_sequences == one.n_sequences + two.n_sequences
    assert said(capsys, "verify", tmp_path / "both.zarr").startswith("intact")
    info = said(capsys, "info", tmp_path / "both.zarr")
    assert f"{two.n_sequences} of the {two.n_sequences} sequences of cache {two.digest}" in info
    assert f"{shared} shared" in info
    flip(tmp_path / "both.zarr" / "norms" / HOOK / "c.1.0")
    advice = said(capsys, "verify", tmp_path / "both.zarr", status=1)
    assert "run the same sae cache merge again" in advice
    said(capsys, "merge", tmp_path / "both.zarr", *pair)
    assert said(capsys, "verify", tmp_path / "both.zarr").startswith("intact")


@pytest.mark.slow
def test_a_dictionary_is_trained_on_a_merge_as_on_a_harvest(pair, tmp_path, capsys):
    said(capsys, "merge", tmp_path / "both.zarr", *pair)
    settings = {
        "run": str(tmp_path),
        "cache": str(tmp_path / "both.zarr"),
        "sae": sae.StandardConfig(d_sae=16),
        "training_tokens": 2048,
        "train_batch_size_tokens": 256,
    }
    sae.train(**settings)
    (figures,) = sae.eval(run=str(tmp_path), cache=settings["cache"])
    assert figures.id


def test_caches_of_other_models_are_not_merged(pair, tmp_path, capsys):
    shutil.copytree(pair[1], tmp_path / "c.zarr")
    change(tmp_path / "c.zarr", model={"weight_digest": "another"})
    sentence = refused(capsys, "merge", tmp_path / "out.zarr", pair[0], tmp_path / "c.zarr")
    assert "differ in their model's weights" in sentence
    assert sentence.endswith("and another")


def test_a_sample_prints_contexts_as_text_with_their_documents(pair, tiny_model, capsys):
    from transformers import AutoTokenizer

    cache = open_cache(pair[0])
    printed = said(capsys, "sample", pair[0], "n=4", "seed=3")
    assert printed == said(capsys, "sample", pair[0], "n=4", "seed=3")
    assert printed != said(capsys, "sample", pair[0], "n=4", "seed=4")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    found = re.findall(r"^sequence (\d+), (training|held out), documents? (.*)$", printed, re.M)
    assert len(found) == 4
    assert {side for _, side, _ in found} == {"training", "held out"}
    together = " ".join(printed.split())
    for number, side, documents in found:
        i = int(number)
        assert cache.held_out[i] == (side == "held out")
        text = " ".join(tokenizer.decode(cache.tokens[i].tolist()).split())
        assert text in together
        owner = int(cache.documents[i, 0])
        assert documents.startswith(f"{owner} ({int(cache.document_digests[owner]):016x})")
        norms = cache.norms(HOOK)[i][cache.text_rows()[i]]
        assert (
            f"norms of {len(norms)} tokens from {norms.min():.4g} to {norms.max():.4g}, "
            f"median {np.median(norms):.4g}, 0 of them attention sinks"
        ) in printed


def test_five_contexts_are_printed_unless_another_number_is_given(pair, capsys):
    assert said(capsys, "sample", pair[0]).count("sequence ") == 5


@pytest.mark.parametrize("model", [{"name": "not/there"}, {}])
def test_token_ids_are_shown_where_the_tokenizer_is_not_to_be_had(
    pair, tmp_path, capsys, model
):
    shutil.copytree(pair[0], tmp_path / "c.zarr")
    change(tmp_path / "c.zarr", model=model)
    if not model:
        reworded(tmp_path / "c.zarr", tokenizer_digest="another")
    assert main(["cache", "sample", str(tmp_path / "c.zarr"), "n=1"]) == 0
    printed = capsys.readouterr()
    assert "sample: token ids are shown, because " in printed.err
    number = int(re.match(r"sequence (\d+)", printed.out)[1])
    ids = " ".join(map(str, open_cache(pair[0]).tokens[number]))
    assert ids in " ".join(printed.out.split())


def test_a_text_that_would_command_a_terminal_is_escaped(tmp_path, tiny_model, capsys):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    ids = tokenizer("\x1b[31m\u202eor", add_special_tokens=False)["input_ids"]
    tokens = np.tile(np.array(ids, dtype=np.int32), (20, 1))
    x = {"h": torch.ones(20, len(ids), 2)}
    cache_of(tmp_path / "c.zarr", tokens, np.arange(20) >= 10, x)
    change(
        tmp_path / "c.zarr",
        model={"name": str(tiny_model), "revision": None, "dtype": "float32"},
    )
    reworded(tmp_path / "c.zarr", tokenizer_digest="unknown")
    printed = said(capsys, "sample", tmp_path / "c.zarr", "n=1")
    assert r"\x1b[31m\u202eor" in printed
    assert not set(printed) & {"\x1b", "\u202e"}


def test_a_sample_is_written_as_a_smaller_cache(pair, tmp_path, capsys):
    out = tmp_path / "small.zarr"
    printed = said(capsys, "sample", pair[0], f"out={out}", "n=20", "seed=1")
    assert "18 training and 2 held-out sequences" in printed
    assert "more than one" not in printed
    small, whole = open_cache(out), open_cache(pair[0])
    rows = {row.tobytes() for row in whole.tokens}
    assert small.n_sequences == 20
    assert {row.tobytes() for row in small.tokens} <= rows
    assert said(capsys, "verify", out).startswith("intact")
    assert "20 of the " in said(capsys, "info", out)
    flip(out / "documents" / "c.0.0")
    advice = said(capsys, "verify", out, status=1)
    assert "run the same sae cache sample again" in advice


def test_a_written_sample_has_a_thousand_sequences_unless_told_otherwise(
    pair, tmp_path, capsys
):
    sentence = refused(capsys, "sample", pair[0], f"out={tmp_path / 'o.zarr'}")
    assert "n=1000 is more than the" in sentence


# export and import


def test_a_cache_goes_out_and_comes_back_by_the_command_line(
    pair, tmp_path, tiny_model, capsys
):
    cache, folder, out = open_cache(pair[0]), tmp_path / "set", tmp_path / "back.zarr"
    printed = said(capsys, "export", pair[0], folder, f"hook_names=[{HOOK}]", "held_out=all")
    assert printed == f"{folder}: {cache.n_sequences} sequences\n"
    words = [f"model_name={tiny_model}", "held_out_fraction=0.3", "special_token_ids=[0,1]"]
    printed = said(capsys, "import", folder, out, *words)
    back = open_cache(out)
    rows = back.attributes["rows"]
    assert rows["n_held_out"] + rows["n_training"] == cache.n_sequences
    assert f"{rows['n_training']} training and {rows['n_held_out']} held-out" in printed
    assert back.attributes["special_token_ids"] == [0, 1]
    assert {r.tobytes() for r in back.tokens} == {r.tobytes() for r in cache.tokens}
    assert "digest unknown" in said(capsys, "info", out)
    flip(out / "norms" / HOOK / "c.0.0")
    assert "run the same sae cache import again" in said(capsys, "verify", out, status=1)


def test_the_training_side_is_exported_unless_the_other_is_asked_for(pair, tmp_path, capsys):
    rows = open_cache(pair[0]).attributes["rows"]
    printed = said(capsys, "export", pair[0], tmp_path / "one")
    assert printed.endswith(f": {rows['n_training']} sequences\n")
    printed = said(capsys, "export", pair[0], tmp_path / "two", "held_out=true")
    assert printed.endswith(f": {rows['n_held_out']} sequences\n")
