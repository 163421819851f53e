"""Text on its way into a cache: patterns, chats, the web, workers, padding, an early end."""

import csv
import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import psutil
import pytest
import torch
import zarr
import zstandard
from support.world import HOOK, harvest_settings, sentences

import sae
from sae.base.errors import UserError
from sae.cache import create, text_writer
from sae.cache.layout import open_cache
from sae.cache.writer import CacheWriter
from sae.models.hooks import find_site
from sae.models.load import ModelConfig, load_model
from sae.models.site import Site
from sae.rows.shuffle import select_rows
from sae.text.packing import Marks, TextCounts, TextPlan, document_digest, is_held_out, pack
from sae.text.source import DataConfig, check_source, documents
from sae.text.tokens import tokenized

FRACTION = 0.25
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role not in ['user', 'assistant'] %}"
    "{{ raise_exception('no role ' + m.role + '\\nis known') }}{% endif %}"
    "[{{ m.role }}] {{ m.content }}\n{% endfor %}"
)


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_folder)


def jsonl(texts: list[Any], column: str = "text") -> bytes:
    return "".join(json.dumps({column: text}) + "\n" for text in texts).encode()


def small(run: Path, model: Path, text: Path | str, **others: Any) -> dict[str, Any]:
    given = harvest_settings(run, model, Path(text)) | {"data": DataConfig(name=str(text))}
    return given | {"n_tokens": 2048, "context_size": 16, "text_workers": 0} | others


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


# Patterns, columns, chats


def test_a_pattern_finds_files_of_all_kinds_in_nested_folders_in_the_order_of_names(tmp_path):
    texts = sentences(5)
    (tmp_path / "x" / "deep").mkdir(parents=True)
    (tmp_path / "y").mkdir()
    (tmp_path / "x" / "1.jsonl.gz").write_bytes(gzip.compress(jsonl(texts[:1])))
    (tmp_path / "x" / "deep" / "2.jsonl.zst").write_bytes(zstandard.compress(jsonl(texts[1:2])))
    (tmp_path / "y" / "3.txt").write_text(texts[2])
    (tmp_path / "y" / "4.json").write_text(json.dumps([{"text": texts[3]}]))
    with (tmp_path / "z.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text"], [texts[4]]])
    (tmp_path / "y" / "picture.jpg").write_bytes(b"no text")

    def found(pattern: str) -> list[Any]:
        return list(documents(DataConfig(name=str(tmp_path / pattern))))

    assert found("**/*") == texts
    assert found("**/*.zst") == texts[1:2]
    assert found("[xy]/*") == [texts[0], *texts[2:4]]
    assert found("?.csv") == texts[4:]
    with pytest.raises(UserError, match=r"\*\*/\*\.parquet matches no file"):
        found("**/*.parquet")
    with pytest.raises(UserError, match=r"\*\.jpg holds no text; give files ending in"):
        found("**/*.jpg")


def test_a_cache_inside_the_folder_of_its_text_is_refused(tmp_path, tiny_model):
    (tmp_path / "notes.jsonl").write_bytes(jsonl(sentences(50)))
    with pytest.raises(UserError, match=r"would be inside data\.name=.*be read as text"):
        sae.harvest(**small(tmp_path / "run", tiny_model, tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["notes.jsonl"]
    sae.harvest(**small(tmp_path / "run", tiny_model, tmp_path / "notes.jsonl"))


@pytest.mark.parametrize("values", [[0, 7], [7, 0], [0.5], [True], [["a", "b"]], [{"a": 1}]])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_column_that_holds_no_text_is_refused_and_named(tmp_path, values, suffix):
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = tmp_path / f"a.{suffix}"
    if suffix == "jsonl":
        file.write_bytes(jsonl(values, "score"))
    else:
        pq.write_table(pa.table({"score": values}), file)
    kind = type(values[0]).__name__
    said = rf"data\.column=score of .*a\.{suffix}, (line|row) 1 holds {kind}"
    with pytest.raises(UserError, match=said):
        check_source(DataConfig(name=str(file), column="score"))


CHATS = [
    [{"role": "user", "content": f"Say {text}"}, {"role": "assistant", "content": text}]
    for text in sentences(40, words=8)
]


def chat_file(folder: Path, chats: list[Any]) -> DataConfig:
    (folder / "chats.jsonl").write_bytes(jsonl(chats, "messages"))
    return DataConfig(name=str(folder), column="messages", held_out_fraction=FRACTION)


@pytest.mark.parametrize("n_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_conversations_go_through_the_chat_template_and_begin_once(
    tmp_path, tokenizer, n_workers
):
    tokenizer.chat_template = TEMPLATE
    config = chat_file(tmp_path, [*CHATS, [], None])
    found = list(tokenized(documents(config), tokenizer, n_workers))
    texts = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in CHATS]
    assert [digest for digest, _ in found[:-2]] == [document_digest(text) for text in texts]
    assert [tokenizer.decode(ids) for _, ids in found[:-2]] == texts
    assert [len(ids) for _, ids in found[-2:]] == [0, 0]
    counts = TextCounts()
    plan = TextPlan(2, 1, 400)
    blocks = list(pack(found, plan, Marks((0,)), counts, held_out_fraction=FRACTION))
    for block in blocks:
        tokens, owners = block.tokens.reshape(-1), block.documents.reshape(-1)
        begins = np.flatnonzero(np.diff(owners, prepend=-1))
        assert (tokens[begins] == 0).all()
        assert (tokens[begins[1:] + 1] != 0).all()
        assert tokenizer.decode(tokens[1:4]).startswith("[user")


def test_conversations_without_a_usable_template_are_refused_in_one_sentence(
    tmp_path, tokenizer, tiny_model
):
    folder = tmp_path / "chats"
    folder.mkdir()
    config = chat_file(folder, CHATS)
    with pytest.raises(
        UserError, match=r"tokenizer of the model has no chat template; use an instr"
    ):
        sae.harvest(**small(tmp_path / "run", tiny_model, folder) | {"data": config})
    tokenizer.chat_template = TEMPLATE
    odd = chat_file(folder, [*CHATS, [{"role": "wizard", "content": "hm"}]])
    with pytest.raises(UserError, match="chat template refused a conversation: no role wizard"):
        list(tokenized(documents(odd), tokenizer, 0))
    tokenizer.chat_template = "{% for m in %}"
    with pytest.raises(UserError, match="chat template refused a conversation") as caught:
        list(tokenized(documents(config), tokenizer, 0))
    assert "\n" not in str(caught.value)


# The web


class Web(ThreadingHTTPServer):
    """Gives files; breaks off at a byte of them for so many times."""

    daemon_threads = True
    files: dict[str, bytes]
    ranges = True
    breaks = 0
    breaks_at = 0
    broken = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may hang up."""


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Web

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        start, stop = self._answer()
        web, content = self.server, self.server.files.get(self.path, b"")
        if start <= web.breaks_at < stop and web.broken < web.breaks:
            web.broken += 1
            stop = web.breaks_at
            self.close_connection = True
        self.wfile.write(content[start:stop])

    def _answer(self) -> tuple[int, int]:
        content, asked = self.server.files.get(self.path), self.headers.get("Range")
        if content is None:
            self.send_error(404)
            return 0, 0
        start, stop = 0, len(content)
        if asked and self.server.ranges:
            first, last = asked.removeprefix("bytes=").split("-")
            start, stop = int(first), min(stop, int(last) + 1) if last else stop
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        else:
            self.send_response(200)
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        return start, stop


# Larger than what is read at once, so that a break is in the middle of reading.
WEB_TEXTS = [f"{text} {i}" for i, text in enumerate(sentences(2500, seed=5, words=80))] * 8


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    for name in ("READ", "OPEN"):
        monkeypatch.setattr(datasets.config, f"STREAMING_{name}_MAX_RETRIES", 4)
        monkeypatch.setattr(datasets.config, f"STREAMING_{name}_RETRY_INTERVAL", 0.01)
    with Web(("127.0.0.1", 0), Answer) as server:
        server.files = {"/notes.jsonl": jsonl(WEB_TEXTS)}
        server.files["/notes.jsonl.gz"] = gzip.compress(server.files["/notes.jsonl"], 1)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["/notes.jsonl", "/notes.jsonl.gz"])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_on_the_web_gives_every_document_once_in_order(web, name, ranges):
    web.ranges = ranges
    assert list(documents(DataConfig(name=web.address + name))) == WEB_TEXTS


@pytest.mark.slow
@pytest.mark.parametrize("name", ["/notes.jsonl", "/notes.jsonl.gz"])
@pytest.mark.parametrize("share", [0.0001, 0.5, 0.98])
def test_a_server_that_breaks_off_and_comes_back_gives_every_document_once(web, name, share):
    web.breaks, web.breaks_at = 3, int(share * len(web.files[name]))
    assert list(documents(DataConfig(name=web.address + name))) == WEB_TEXTS
    assert web.broken == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["/notes.jsonl", "/notes.jsonl.gz"])
@pytest.mark.parametrize("breaks", [3, 10**6])
def test_a_server_without_ranges_that_breaks_off_never_gives_a_shorter_text(web, name, breaks):
    web.ranges, web.breaks, web.breaks_at = False, breaks, int(0.98 * len(web.files[name]))
    found: list[Any] = []
    try:
        found = list(documents(DataConfig(name=web.address + name)))
    except UserError as error:
        found = [str(error)]
    assert found == WEB_TEXTS or "the network is gone" in found[0]
    assert web.broken


def test_what_cannot_be_had_from_the_web_is_refused_in_one_sentence(web):
    for address in (f"{web.address}/nothing.jsonl", "http://127.0.0.1:9/notes.jsonl"):
        with pytest.raises(UserError, match="could not be had: it is not there, or") as caught:
            check_source(DataConfig(name=address))
        assert address in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="has an unknown ending; give a file ending in"):
        check_source(DataConfig(name=f"{web.address}/notes.html"))


@pytest.mark.slow
def test_a_harvest_whose_server_goes_away_goes_on_when_it_is_back(tmp_path, web, tiny_model):
    name = f"{web.address}/notes.jsonl"
    # More rows than the text has; ten megabytes and more are asked for at once.
    given = small(tmp_path / "run", tiny_model, name, n_tokens=1_000_000, context_size=64)
    given["hook_names"] = ["blocks.0.hook_resid_pre"]
    rows = [{"text": text, "unused": "-" * 12_000} for text in WEB_TEXTS[:2500]]
    web.files["/notes.jsonl"] = "".join(json.dumps(row) + "\n" for row in rows).encode()
    sae.harvest(**given | {"run": str(tmp_path / "whole")})
    web.breaks, web.breaks_at = 10**6, len(web.files["/notes.jsonl"]) - 1000
    with pytest.raises(UserError, match=r"network is gone \(.*what is finished is kept"):
        sae.harvest(**given)
    with pytest.raises(UserError, match="not finished"):
        open_cache(tmp_path / "run" / "cache.zarr")
    assert len(list((tmp_path / "run/cache.zarr/activations").rglob("c.*"))) > 4
    web.breaks = 0
    sae.harvest(**given)
    assert tree(tmp_path / "run" / "cache.zarr") == tree(tmp_path / "whole" / "cache.zarr")


# Workers


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("notes")
    (folder / "notes.jsonl").write_bytes(jsonl(sentences(1200, seed=3, words=40)))
    return folder


@pytest.mark.slow
def test_two_processes_that_tokenise_give_the_same_bytes(tmp_path, tiny_model, notes):
    for n in (0, 2):
        given = small(tmp_path / str(n), tiny_model, notes, n_tokens=40_000)
        sae.harvest(**given | {"text_workers": n})
    assert tree(tmp_path / "0" / "cache.zarr") == tree(tmp_path / "2" / "cache.zarr")


def harvest_in_child(given: dict[str, Any]) -> None:
    sae.harvest(**given)


def live_children(process: psutil.Process) -> list[psutil.Process]:
    return [p for p in process.children(recursive=True) if p.status() != "zombie"]


@pytest.mark.slow
def test_a_killed_harvest_leaves_no_process_behind(tmp_path, tiny_model, notes, processes):
    text = tmp_path / "endless.jsonl"
    text.write_bytes((notes / "notes.jsonl").read_bytes() * 100)
    given = small(tmp_path, tiny_model, text, n_tokens=10**6, batch_size=1, text_workers=2)
    child = processes.Process(target=harvest_in_child, args=(given,))
    child.start()
    process, seen, tokens = psutil.Process(child.pid), [], tmp_path / "cache.zarr/tokens"
    while child.is_alive() and (len(seen) < 2 or not any(tokens.glob("c.*"))):
        seen = live_children(process)
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    gone, left = psutil.wait_procs(seen, timeout=30)
    assert not [p for p in left if p.status() != "zombie"]
    assert len(gone) + len(left) >= 2


@pytest.mark.slow
def test_a_script_without_a_main_guard_may_tokenise_in_other_processes(
    tmp_path, tiny_model, notes
):
    given = small(tmp_path / "run", tiny_model, notes, text_workers=1)
    given["model"], given["data"] = str(tiny_model), str(notes)
    call = ", ".join(f"{name}={value!r}" for name, value in given.items())
    call = call.replace("model=", "model=sae.ModelConfig(name=").replace(", data=", "), data=")
    call = call.replace("data=", "data=sae.DataConfig(name=").replace(", hook_", "), hook_")
    script = tmp_path / "script.py"
    script.write_text(f"import sae\nprint('once')\nsae.harvest({call})\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "once\n"), done.stderr


# One document a row


class SimpleSide:
    """Rows of (token, document) of one side, filled in the simplest way."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.rows: list[list[tuple[int, int]]] = [[]]

    @property
    def full(self) -> bool:
        return len(self.rows) > self.room

    def add(self, ids: list[int], document: int, marks: Marks, width: int) -> int:
        """Append a document; how many of its tokens found no room."""
        for i, token in enumerate(ids):
            if self.full:
                return len(ids) - i
            if not self.rows[-1] and i:
                self.rows[-1] += [(mark, document) for mark in marks.begin]
            self.rows[-1].append((token, document))
            if len(self.rows[-1]) == width:
                self.rows.append([])
        return 0

    def pad(self, marks: Marks, width: int) -> None:
        if self.rows[-1] and not self.full:
            self.rows[-1] += [(marks.pad, -1)] * (width - len(self.rows[-1]))
            self.rows.append([])


def expected_rows(
    texts: list[Any], plan: TextPlan, marks: Marks, *, alone: bool
) -> tuple[dict[bool, list[list[tuple[int, int]]]], dict[str, int]]:
    """Rows on each side, and what became of the documents."""
    sides = {False: SimpleSide(plan.n_training), True: SimpleSide(plan.n_held_out)}
    counts = dict.fromkeys(("used", "repeated", "empty", "unneeded", "tokens_cut"), 0)
    seen: set[int] = set()
    for digest, ids in texts:
        side = sides[is_held_out(digest, FRACTION)]
        if all(s.full for s in sides.values()):
            break
        if not len(ids) or digest in seen or side.full:
            counts["repeated" if digest in seen else "unneeded" if len(ids) else "empty"] += 1
        else:
            marked = [*marks.begin, *ids.tolist(), *marks.end]
            cut = side.add(marked, counts["used"], marks, plan.context_size)
            counts["tokens_cut"] += cut
            counts["used"] += 1
            if alone:
                side.pad(marks, plan.context_size)
        seen |= {digest} if len(ids) else set()
    counts["tokens_cut"] += sum(len(side.rows[-1]) for side in sides.values())
    return {held_out: side.rows[:-1] for held_out, side in sides.items()}, counts


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_rows_and_counts_are_those_of_the_simplest_packing(tokenizer, alone, seed):
    draw = random.Random(seed)
    texts = [s for n in (1, 9, 60) for s in sentences(60, seed=10 * seed + n, words=n)]
    texts += [*draw.choices(texts, k=60), *[""] * 9]
    draw.shuffle(texts)
    encoded = list(tokenized(texts, tokenizer, 0))
    begin, end = draw.choice([(0,), (5,), (3, 5), ()]), draw.choice([(1,), (1, 2), ()])
    marks = Marks(begin, end, draw.choice([0, 1, 7]))
    plan = TextPlan(draw.choice([40, 9999]), draw.choice([9, 9999]), draw.randint(3, 40))
    counts, read = TextCounts(), []

    def source() -> Iterator[Any]:
        for document in encoded:
            read.append(document)
            yield document

    settings = {"held_out_fraction": FRACTION, "one_document_a_row": alone}
    blocks = list(pack(source(), plan, marks, counts, **settings))
    rows, expected = expected_rows(encoded, plan, marks, alone=alone)
    assert counts.summary() == expected
    assert sum(v for k, v in expected.items() if k != "tokens_cut") == len(read)
    for held_out, side in rows.items():
        mine = [b for b in blocks if b.held_out == held_out]
        found = np.stack([np.concatenate([b.tokens for b in mine])] * 2, axis=2)
        found[..., 1] = np.concatenate([b.documents for b in mine])
        np.testing.assert_array_equal(found, np.array(side))


def test_with_one_document_a_row_all_documents_can_be_read_back(tokenizer):
    texts = sentences(90, seed=4, words=30) + sentences(40, seed=5, words=3)
    counts = TextCounts()
    blocks = list(
        pack(
            tokenized(texts, tokenizer, 0),
            TextPlan(999, 999, 24),
            Marks((0,), (), 1),
            counts,
            held_out_fraction=FRACTION,
            one_document_a_row=True,
        )
    )
    found = {}
    for block in blocks:
        for row, owners in zip(block.tokens, block.documents, strict=True):
            there = owners >= 0
            assert len(set(owners[there].tolist())) == 1
            assert (row[~there] == 1).all()
            assert (np.diff(there.astype(int)) <= 0).all()
            found.setdefault(int(owners[0]), []).extend(row[there][1:].tolist())
    assert [tokenizer.decode(found[i]) for i in sorted(found)] == texts
    assert counts.summary() | {"tokens_cut": 0} == counts.summary()
    assert counts.used == len(texts)


def run_alone(model: Any, tokens: np.ndarray) -> torch.Tensor:
    """What a plain hook sees of one row in a whole forward pass without a mask."""
    seen: list[torch.Tensor] = []
    point = find_site(model.module, HOOK)
    place = model.module.get_submodule(point.module)
    handle = place.register_forward_hook(
        lambda _, given, made: seen.append(given[0] if point.side == "input" else made)
    )
    with handle, torch.no_grad():
        model.module(torch.from_numpy(tokens).long()[None])
    return (seen[0][0] if isinstance(seen[0], tuple) else seen[0])[0]


@pytest.mark.parametrize("kind", ["causal", "encoder"])
def test_activations_beside_padding_are_those_of_the_document_run_alone(
    tmp_path, tiny_text, kind, request
):
    name = request.getfixturevalue("tiny_model" if kind == "causal" else "encoder")
    given = small(tmp_path, name, tiny_text, one_document_a_row=True, dtype="float32")
    cache = sae.harvest(**given | {"n_tokens": 6000, "context_size": 64})
    model = load_model(ModelConfig(name=str(name)))
    tokens, owners = cache.tokens, cache.documents
    there = owners >= 0
    assert 0.1 < (~there).mean() < 0.9
    assert (tokens[~there] == model.marks.pad).all()
    assert (tokens[:, 0] == model.bos_token_id).all()
    begins = np.diff(owners[:, 0], prepend=-1) != 0
    # On either side documents come in order; one that is longer goes on in further rows.
    assert begins.mean() > 0.5
    if model.marks.end:
        ends = np.append(begins[1:], True)
        last = there.sum(1) - 1
        assert (tokens[np.arange(len(tokens)), last][ends] == model.marks.end[0]).mean() > 0.9
    read = cache.read(HOOK, slice(0, cache.n_sequences))
    for row in range(0, cache.n_sequences, 7):
        n = int(there[row].sum())
        torch.testing.assert_close(read[row, :n], run_alone(model, tokens[row, :n]))
    for held_out in (False, True):
        kept = select_rows(cache, HOOK, held_out=held_out, max_norm_multiple=None).keep
        assert not (kept & ~there).any()
        assert (kept.sum(1) > 0).sum() == (cache.held_out == held_out).sum()
    kept = select_rows(cache, HOOK, held_out=False, max_norm_multiple=None).keep
    rows = read[torch.from_numpy(kept)].double().numpy()
    statistics = cache.statistics(HOOK)
    np.testing.assert_allclose(statistics["mean"], rows.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(statistics["variance"], rows.var(0), rtol=1e-5, atol=1e-6)
    assert cache.attributes["hooks"][HOOK]["training_rows"]["text"] == len(rows)


# A text that ends early

WIDTH = 8


class Killed(BaseException):
    """Ends a process as a kill does: nothing that handles errors sees it."""


def empty_cache(path: Path, plan: TextPlan) -> CacheWriter:
    about = {"digest": "x", "special_token_ids": [0], "data": {"name": "made"}}
    about |= {"model": {"weight_digest": "made"}, "tokenizer_digest": "made"}
    shapes = [Site("h", "h", "output", 4)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(create, "_MOST_SEQUENCES_A_CHUNK", 500)
        return create.create_cache(path, shapes, plan, dtype="float32", attributes=about)


def stream_into(path: Path, texts: list[Any]) -> TextPlan:
    """Stream documents into the cache at `path`, then fill and finish it."""
    writer = CacheWriter(path)
    counts = TextCounts()
    blocks = pack(
        texts,
        writer.planned,
        Marks((0,)),
        counts,
        held_out_fraction=FRACTION,
    )
    text_writer.write_text(writer, blocks, counts.digests, counts.summary)
    writer.refresh()
    for chunk in writer.missing(verify=True):
        tokens = writer.tokens(chunk)
        assert tokens is not None
        x = torch.from_numpy(tokens[..., None] * np.arange(1, 5, dtype=np.float32))
        writer.write(chunk, {"h": x})
    writer.finish()
    return writer.plan


@pytest.fixture(scope="module")
def short(tokenizer_folder: Path) -> list[Any]:
    """Documents that do not fill the rows."""
    from transformers import AutoTokenizer

    texts = sentences(420, seed=11, words=45)
    return list(tokenized(texts, AutoTokenizer.from_pretrained(tokenizer_folder), 0))


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, short: list[Any]) -> Path:
    """The cache of a text that ended early, and that was not interrupted."""
    path = tmp_path_factory.mktemp("ended") / "cache.zarr"
    empty_cache(path, SPACIOUS)
    stream_into(path, short)
    return path


# The held-out rows move up by less than there are of them, over a border of chunks.
SPACIOUS = TextPlan(3400, 1300, WIDTH)


def test_a_text_that_ends_early_gives_the_cache_that_was_asked_for_exactly(
    tmp_path, short, ended
):
    cache = open_cache(ended)
    rows = cache.attributes["rows"]
    assert rows["n_training"] < SPACIOUS.n_training
    assert SPACIOUS.n_training - rows["n_training"] < rows["n_held_out"]
    exact = TextPlan(rows["n_training"], rows["n_held_out"], WIDTH)
    empty_cache(tmp_path / "exact.zarr", exact)
    assert stream_into(tmp_path / "exact.zarr", short) == exact
    mine, others = tree(ended), tree(tmp_path / "exact.zarr")
    assert {k for k in mine if mine[k] != others.get(k)} == {"zarr.json"}
    assert mine.keys() == others.keys()
    about = json.loads(mine["zarr.json"]), json.loads(others["zarr.json"])
    for found in about:
        found["attributes"].pop("planned_rows")
        found["attributes"].pop("seal")
        # What does not fit a plan is not needed; what the last row is too short for is cut.
        found["attributes"]["data"].pop("documents")
    assert about[0] == about[1]


class Steps:
    """Calls `before` ahead of every step that changes arrays or attributes."""

    def __init__(self, before: Callable[[Callable[[], None]], None]) -> None:
        self.before = before
        self.put, self.resize = zarr.Array.__setitem__, zarr.Array.resize

    def watch(self, patched: pytest.MonkeyPatch) -> None:
        places = [
            (zarr.Array, "__setitem__", self._half_put),
            (zarr.Array, "resize", self._chunks_gone_and_not_the_shape),
            (CacheWriter, "declare", None),
            (text_writer, "store_whole", None),
        ]
        for owner, name, half in places:
            patched.setattr(owner, name, self._watched(getattr(owner, name), half))

    def _watched(self, original: Callable[..., Any], half: Callable[..., None] | None) -> Any:
        def call(*args: Any, **others: Any) -> Any:
            self.before(lambda: half(*args, **others) if half else None)
            return original(*args, **others)

        return call

    def _half_put(self, array: Any, place: Any, value: Any) -> None:
        """What a death between two chunks leaves."""
        border = -(-(place.start + 1) // array.chunks[0]) * array.chunks[0]
        if border < place.stop and not np.isscalar(value):
            self.put(array, slice(place.start, border), value[: border - place.start])

    def _chunks_gone_and_not_the_shape(self, array: Any, shape: tuple[int, ...]) -> None:
        about = Path(str(array.store_path).removeprefix("file://")) / "zarr.json"
        before = about.read_bytes()
        self.resize(array, shape)
        about.write_bytes(before)


@pytest.mark.slow
@pytest.mark.parametrize("half", [False, True])
def test_killed_at_any_step_of_streaming_and_moving_a_text_goes_on_to_the_same_bytes(
    tmp_path, short, ended, monkeypatch, half
):
    path, goal, died = tmp_path / "cache.zarr", 0, True

    def die(leave_half: Callable[[], None]) -> None:
        nonlocal step
        step += 1
        if step > goal:
            if half:
                leave_half()
            raise Killed

    while died:
        shutil.rmtree(path, ignore_errors=True)
        empty_cache(path, SPACIOUS)
        with monkeypatch.context() as patched:
            step = 0
            Steps(die).watch(patched)
            try:
                stream_into(path, short)
                died = False
            except Killed:
                died = True
        stream_into(path, short)
        assert tree(path) == tree(ended), f"killed at step {goal}"
        # Behind these steps the text is complete, and chunks are filled one like another.
        goal += (1 if half else 3) if goal < 40 else 11
    assert goal > 60


@pytest.mark.slow
def test_at_no_step_are_rows_taken_for_final_that_change_later(
    tmp_path, short, ended, monkeypatch
):
    path = tmp_path / "cache.zarr"
    last, seen = open_cache(ended), set()
    empty_cache(path, SPACIOUS)
    # One that has just looked, one that has known the cache for long, one that began with it.
    known = [CacheWriter(path), CacheWriter(path)]
    # Around the end of the training rows, as it was planned and as it is.
    chunks = known[0].chunks()[4:8]

    def look(_: Any) -> None:
        known[1].refresh()
        for writer in (CacheWriter(path), *known):
            for chunk in chunks:
                tokens = writer.tokens(chunk)
                if tokens is not None:
                    seen.add(chunk.start)
                    assert len(tokens) == len(last.tokens[chunk])
                    np.testing.assert_array_equal(tokens, last.tokens[chunk])
                    there = writer.documents(chunk)
                    np.testing.assert_array_equal(there, last.documents[chunk])
                    if not writer.text_complete:
                        assert not last.held_out[chunk].any()

    with monkeypatch.context() as patched:
        Steps(look).watch(patched)
        stream_into(path, short)
    assert seen
    assert tree(path) == tree(ended)


@pytest.mark.slow
def test_a_text_that_has_changed_since_the_kill_is_refused_at_any_step(
    tmp_path, short, ended, monkeypatch
):
    path = tmp_path / "cache.zarr"
    more = [(digest ^ 1, ids) for digest, ids in short]
    changed = [[*short[:200], *more[:9], *short[200:]], short[:-30], short[1:], short + more]
    for goal in range(14, 40, 3):
        empty_cache(path, SPACIOUS)
        step = 0

        def die(_: Any, goal: int = goal) -> None:
            nonlocal step
            step += 1
            if step > goal:
                raise Killed

        with monkeypatch.context() as patched:
            Steps(die).watch(patched)
            with pytest.raises(Killed):
                stream_into(path, short)
        before = tree(path)
        for texts in changed:
            with pytest.raises(UserError, match="begun with another text"):
                stream_into(path, texts)
            shutil.rmtree(path)
            for name, content in before.items():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                (path / name).write_bytes(content)
        stream_into(path, short)
        assert tree(path) == tree(ended), f"killed at step {goal}"
        shutil.rmtree(path)
