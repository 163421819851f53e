"""`sae serve`: a real server on a free port, asked as a browser or an attacker would."""

import asyncio
import contextlib
import gzip
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from support.files import flip, unseal
from support.server import Server, serving
from support.small_atlas import DEAD, TEXT, copy_of, ready, write_small_atlas
from support.world import HOOK

import sae
from sae.atlas.record import EDITED
from sae.base import seal
from sae.base.errors import UserError
from sae.cli import main
from sae.commands.serve import ServeConfig, pages_of
from sae.lenses import Question, ask_of_feature, ask_of_state, places_of_state, source_of
from sae.models.hooks import find_site
from sae.models.load import ModelConfig, load_model
from sae.pages.server.app import Dropped, Worker
from sae.pages.server.guard import name_check
from sae.pages.server.listening import address_of, listen
from sae.rows.reading import activations
from sae.steering.arms import random_direction
from sae.steering.generate import generate_beside, with_baseline
from sae.text.token_texts import TokenTexts
from sae.writing import Sampling, SharedNoise


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_run) -> Path:
    run = copy_of(tiny_run, tmp_path_factory.mktemp("served") / "my run", "strong")
    (run / "report.html").write_text("<!doctype html><p>report")
    (run / "pareto.png").write_bytes(b"\x89PNG" + bytes(9000))
    (run / "secret.js").write_text("secret")
    (run / "secret.html").write_text("secret")
    data = run / "atlas/strong/data"
    (data / ".hidden.js").write_text("secret")
    (data / "table.csv").write_text("secret")
    (data / "link.js").symlink_to(run / "secret.js")
    (data / "out").symlink_to(run)
    return run


@pytest.fixture(scope="module")
def server(run) -> Iterator[Server]:
    with serving(run) as found:
        yield found


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_model(ModelConfig(name=str(tiny_model), device="cpu"))


# Files


def test_the_only_atlas_is_where_the_address_leads_and_its_page_knows_that_it_is_served(server):
    status, headers, _ = server.ask("/")
    assert (status, headers["Location"]) == (302, "/atlas/strong/")
    assert server.ask("/atlas/strong")[1]["Location"] == "/atlas/strong/"
    status, headers, page = server.ask("/atlas/strong/")
    assert status == 200
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert page.startswith(b'<!doctype html>\n<html lang="en" data-live>')


def test_a_page_may_run_its_own_scripts_and_no_others(server):
    _, headers, _ = server.ask("/atlas/strong/")
    policy = headers["Content-Security-Policy"]
    (scripts,) = (p for p in policy.split("; ") if p.startswith("script-src"))
    # The digest of `"own"`, of which the page consists.
    assert scripts == "script-src 'self' 'sha256-wKfy+z7c5rM0UDvLJcpWDMQOy1iw7zrvLgmSHU0HzAc='"
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    for name, value in (
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
        ("Cross-Origin-Resource-Policy", "same-origin"),
    ):
        assert headers[name] == value
        assert server.ask("/nowhere")[1][name] == value


def test_data_is_sent_compressed_and_again_only_if_it_has_changed(server, run):
    path, file = "/atlas/strong/data/index.js", run / "atlas/strong/data/index.js"
    status, headers, plain = server.ask(path)
    assert (status, plain) == (200, file.read_bytes())
    assert headers["Content-Type"] == "text/javascript; charset=utf-8"
    status, headers, packed = server.ask(path, Accept_Encoding="gzip, deflate")
    assert headers["Content-Encoding"] == "gzip"
    assert len(packed) < len(plain) / 2
    assert gzip.decompress(packed) == plain
    same = {"Accept_Encoding": "gzip", "If_None_Match": headers["ETag"]}
    assert server.ask(path, **same)[0::2] == (304, b"")
    assert server.ask(path, If_Modified_Since=headers["Last-Modified"])[0] == 304
    os.utime(file, ns=(1, 1))
    assert server.ask(path, **same)[0] == 200


def test_the_report_and_its_picture_are_served_and_a_head_has_no_body(server, run):
    assert server.ask("/report.html")[2] == b"<!doctype html><p>report"
    assert server.ask("/pareto.png")[1]["Content-Type"] == "image/png"
    status, headers, body = server.ask("/pareto.png", method="HEAD")
    assert (status, headers["Content-Length"], body) == (200, "9004", b"")
    assert server.ask("/favicon.ico")[0] == 204


@pytest.mark.parametrize(
    "path",
    [
        "/secret.html",
        "/atlas/",
        "/atlas/strong/atlas.json",
        "/atlas/strong/features.parquet",
        "/atlas/strong/labels.csv",
        "/atlas/strong/index.html",
        "/atlas/strong/data/",
        "/atlas/strong/data/features",
        "/atlas/strong/data/table.csv",
        "/atlas/strong/data/.hidden.js",
        "/atlas/strong/data/%2ehidden.js",
        "/atlas/strong/data/link.js",
        "/atlas/strong/data/out/secret.js",
        "/atlas/strong/data/features/../index.js",
        "/atlas/strong/data/../../../secret.js",
        "/atlas/strong/data/..%2f..%2f..%2fsecret.js",
        "/atlas/strong/data/%2e%2e/%2e%2e/%2e%2e/secret.js",
        "/atlas/strong/data/%2e%2e%5c%2e%2e%5csecret.js",
        "/atlas/strong/data//etc/passwd",
        "/atlas/strong/data/%2fetc%2fpasswd",
        "/atlas/strong/data/index.js%00.png",
        "/atlas/strong/data/%zz%ff%ed%a0%80.js",
        f"/atlas/strong/data/{'a' * 300}.js",
        f"/atlas/strong/data/{'a' * 300}/index.js",
        f"/atlas/strong/data/{'/'.join(['a' * 200] * 30)}.js",
        f"/atlas/{'a' * 300}/",
        "/atlas/..%2f/data/secret.js",
        "/atlas/%2e%2e/data/secret.js",
        "/atlas/weak/",
        "/cache.zarr/zarr.json",
        "/training/strong/metrics.jsonl",
        "/dictionaries/strong/cfg.json",
        "/../secret.html",
        "//etc/passwd",
        "/%2e%2e/secret.html",
    ],
)
def test_nothing_else_of_the_run_can_be_reached(server, path):
    status, _, body = server.ask(path)
    # Some ways lead, after what every HTTP library does to `..`, to a file that is served.
    allowed = status == 200 and body.startswith(b'atlas.take("index"')
    assert status == 404 or allowed, (status, body)
    assert b"secret" not in body.replace(b"secret.js", b"")
    assert list(json.loads(body)) == ["error"] or allowed


def test_several_atlases_are_listed_beside_those_that_cannot_be_shown(tmp_path, tiny_run):
    run = copy_of(tiny_run, tmp_path / "<b>run", "strong", "weak")
    (run / "atlas" / "half").mkdir()
    (run / "report.html").write_text("")
    with serving(run) as server:
        status, _, body = server.ask("/")
        page = body.decode()
        assert status == 200
        assert '<a href="/atlas/strong/">strong</a>' in page
        assert '<a href="/atlas/weak/">weak</a>' in page
        assert "<dt>features</dt><dd>64</dd>" in page
        assert "atlas/half" in page
        assert '<a href="/report.html">' in page
        assert "<title>&lt;b&gt;run</title>" in page
        assert server.ask("/atlas/half/")[0] == 404


# Who may ask


@pytest.mark.parametrize(
    "name",
    [
        "evil.example",
        "evil.example:80",
        "",
        "127.0.0.1.evil.example",
        "evil@127.0.0.1",
        "127.0.0.1@evil.example",
        "localhost.",
        "localhost/evil.example",
        "localhost?evil",
        "localhost#evil",
        "localhost, evil.example",
        "localhost evil",
        "localhost:",
        "localhost:abc",
        "localhost:-1",
        "localhost:0",
        "localhost:99999",
        "[::1]evil.example",
        "[::1]:",
        "[127.0.0.1]",
        "::1",
    ],
)
def test_a_foreign_name_that_points_here_is_refused(server, name):
    assert "does not go by the name" in server.refused("/atlas/strong/", None, 403, Host=name)


@pytest.mark.parametrize(
    ("request_line", "headers", "status"),
    [
        # Whoever is asked as a proxy is asked for another name than that in the header.
        ("GET http://evil.example/atlas/strong/data/index.js HTTP/1.1", "HOST", 400),
        ("GET http://x@127.0.0.1/atlas/strong/data/index.js HTTP/1.1", "HOST", 400),
        ("GET / HTTP/1.1", "HOST\nHost: evil.example", 400),
        ("GET / HTTP/1.1", "Host: evil.example\nHOST", 400),
        ("GET / HTTP/1.1", "HOST\nSec-Fetch-Site: none\nSec-Fetch-Site: cross-site", 400),
        ("GET / HTTP/1.0", "Accept: */*", 403),
        ("POST /atlas/strong/api/read HTTP/1.1", "HOST\nOrigin: null\nOrigin: null", 400),
    ],
)
def test_a_request_that_can_be_read_in_two_ways_is_refused(
    server, request_line, headers, status
):
    found = server.raw(f"{request_line}\n{headers}\nConnection: close\n\n".encode())
    # The library finds some by itself, and answers in the oldest version.
    refusals = f"HTTP/1.{request_line[-1]} {status}".encode(), b"HTTP/1.0 400"
    assert found.startswith(refusals)
    assert b"atlas.take" not in found


def test_a_compressed_body_or_a_date_that_is_none_is_no_defect(server, capfd):
    json_body = "HOST\nContent-Type: application/json\nConnection: close\nContent-Length: 2"
    post = f"POST /atlas/strong/api/read HTTP/1.1\n{json_body}\n"
    found = server.raw(f"{post}Content-Encoding: gzip\n\n{{}}".encode())
    assert b"415 Unsupported" in found
    assert b"must not be compressed" in found
    far = "Mon, 01 Jan 99999999999 00:00:00 GMT"
    assert server.ask("/atlas/strong/data/index.js", If_Modified_Since=far)[0] == 200
    assert server.raw(b"this is no HTTP\n\n").startswith(b"HTTP/1.0 400")
    assert server.raw(b"GET / HTTP/1.1\nHOST\nX: " + b"y" * 9000 + b"\n\n")[9:12] == b"400"
    # Requests of strangers fill no terminal.
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_whoever_sends_half_a_request_or_reads_no_answer_is_let_go(run, monkeypatch):
    for module in ("guard", "listening"):
        monkeypatch.setattr(f"sae.pages.server.{module}.PATIENCE", 0.5)
    post = b"POST /atlas/strong/api/read HTTP/1.1\nHOST\nContent-Type: application/json\n"
    with serving(run) as server:
        for half in (b"", b"GET / HTT", b"GET / HTTP/1.1\nHOST\nX: "):
            assert server.raw(half) == b""
        late = server.raw(post + b"Content-Length: 9\n\n{")
        assert late.startswith(b"HTTP/1.1 408 ")
        assert b"was not complete after 0.5 seconds" in late
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.settimeout(0.2)
            deaf.connect(("127.0.0.1", server.port))
            ask = b"GET /atlas/strong/data/index.js HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
            with pytest.raises(ConnectionError):
                send_for_ever(deaf, ask * 500)


def send_for_ever(connection: socket.socket, data: bytes) -> None:
    """Until the other side ends it, in 40 seconds at most."""
    for _ in range(200):
        with contextlib.suppress(TimeoutError):
            connection.sendall(data)


def test_more_connections_than_there_can_be_are_told_so_and_do_no_harm(server):
    with contextlib.ExitStack() as stack:
        many = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 10))
            for _ in range(150)
        ]
        assert many[-1].recv(100).startswith(b"HTTP/1.1 503 ")
        assert server.ask("/favicon.ico")[0] == 503
    for _ in range(100):
        if server.ask("/favicon.ico")[0] == 204:
            break
        time.sleep(0.02)
    assert server.ask("/favicon.ico")[0] == 204


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST", "127.0.0.1", "[::1]"])
def test_the_server_goes_by_its_own_names_and_through_a_tunnel_with_another_port(server, name):
    for host in (f"{name}:{server.port}", f"{name}:9999"):
        origin = f"http://{host}"
        assert server.ask("/atlas/strong/", Host=host)[0] == 200
        found = server.ask("/atlas/strong/api/read", {"text": "cats"}, Host=host, Origin=origin)
        assert found[0] == 200


def test_beyond_loopback_the_server_goes_by_addresses_and_its_own_names_alone():
    own = name_check("0.0.0.0")
    assert own("192.168.1.7")
    assert own("fe80::1")
    assert own(socket.gethostname().lower())
    assert not own("evil.example")
    assert not name_check("127.0.0.1")("192.168.1.7")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://localhost:3000"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}, 403),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
    ],
)
def test_a_page_of_another_site_can_change_nothing(server, run, headers, status):
    before = (run / "atlas/strong/labels.csv").read_bytes()
    body = {"feature": 1, "label": "owned"}
    assert server.refused("/atlas/strong/api/label", body, status, **headers)
    assert (run / "atlas/strong/labels.csv").read_bytes() == before


def test_a_page_of_another_site_cannot_load_data_but_may_link_here(server):
    path = "/atlas/strong/data/index.js"
    for site in ("cross-site", "same-site"):
        assert server.refused(path, None, 403, Sec_Fetch_Site=site, Sec_Fetch_Mode="no-cors")
    link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
    assert server.ask("/atlas/strong/", **link)[0] == 200


def test_other_methods_and_large_requests_are_refused(server):
    assert server.ask("/atlas/strong/", method="DELETE")[0] == 405
    assert server.ask("/atlas/strong/api/read")[0] == 405
    large = {"text": "x" * (1 << 20)}
    assert "too large" in server.refused("/atlas/strong/api/read", large, 413)


# Reading


def read(server: Server, text: str, **more) -> dict:
    return server.json("/atlas/strong/api/read", {"text": text, **more})


def test_the_model_is_ready_soon(server):
    assert ready(server) == {"model": "ready", "why": ""}


def test_only_a_topk_dictionary_has_a_k_that_can_be_turned(server):
    sentence = server.refused("/atlas/strong/api/read", {"text": "cats", "k": 3})
    assert "k=3 has an effect only on TopK dictionaries" in sentence
    sentence = server.refused("/atlas/strong/api/read", {"text": "cats", "k": 0})
    assert "k is 0; give a whole number from 1" in sentence


def test_what_is_read_equals_the_activations_of_the_cache(server, run, model):
    cache = sae.open_cache(run / "cache.zarr")
    dictionary = sae.load(str(run / "dictionaries/strong"))
    for row in range(len(cache.tokens)):
        tokens = cache.tokens[row]
        special = np.flatnonzero(np.isin(tokens, model.special_token_ids))
        end = special[1] if len(special) > 1 else len(tokens)
        text = model.tokenizer.decode(tokens[1:end])
        again = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        if special[0] == 0 and end > 16 and again == tokens[1:end].tolist():
            break
    expected = dictionary.encode(cache.read(HOOK, slice(row, row + 1))[0, 1:end].float())
    point = find_site(model.module, HOOK)
    ids = tokens[None, :end]
    (exact,) = activations(ids, ids >= 0, model=model, sites=[point], batch_size=1)
    exact = dictionary.encode(exact[HOOK][0, 1:])
    feature = int(expected.sum(0).argmax())
    found = read(server, text, feature=feature)
    assert "".join(found["tokens"]) == text
    assert len(found["features"]) == len(found["acts"]) == end - 1
    # The cache holds half precision.
    torch.testing.assert_close(
        torch.tensor(found["acts"]), expected[:, feature], rtol=5e-3, atol=5e-3
    )
    torch.testing.assert_close(torch.tensor(found["acts"]), exact[:, feature])
    for strongest, row_acts in zip(found["features"], exact, strict=True):
        features, values = zip(*strongest, strict=True)
        best = row_acts.topk(12)
        n = int((best.values > 0).sum())
        assert len(strongest) == n
        torch.testing.assert_close(torch.tensor(values), best.values[:n])
        torch.testing.assert_close(row_acts[list(features)], torch.tensor(values))


def test_special_tokens_in_a_text_have_no_features(server):
    found = read(server, "cats</s> dog", feature=0)
    at = found["tokens"].index("</s>")
    assert found["features"][at] == []
    assert found["acts"][at] == 0
    assert all(found["features"][:at])
    assert all(found["features"][at + 1 :])


def test_half_a_character_and_markup_are_text_like_any_other(server):
    found = read(server, "\ud800<script>")
    assert "".join(found["tokens"]).endswith("<script>")
    assert len(found["features"]) == len(found["tokens"])


def test_a_text_as_long_as_the_model_can_read_is_read_and_one_token_more_is_not(server, model):
    # Its 128 positions hold the beginning token as well.
    word = " cats"
    assert len(model.tokenizer(word * 127, add_special_tokens=False)["input_ids"]) == 127
    assert len(read(server, word * 127)["tokens"]) == 127
    sentence = server.refused("/atlas/strong/api/read", {"text": word * 128})
    assert sentence.startswith("the text has 129 tokens, but the model reads only 128 at once")


# Steering


def steer(server: Server, **more) -> dict:
    body = {"text": TEXT, "feature": 3, "strength": 2, "max_new_tokens": 12}
    return server.json("/atlas/strong/api/steer", body | more)


def test_strength_zero_writes_the_plain_text_three_times(server):
    found = steer(server, strength=0)
    assert found["plain"] == found["steered"] == found["random"]
    assert found["prompt"] == TEXT
    assert found["norm"] == 0
    assert found["plain"]["perplexity"] > 1


def test_a_turned_feature_changes_the_text_and_the_seed_decides_it(server):
    found = steer(server, strength=8)
    assert found["steered"]["text"] != found["plain"]["text"]
    assert found["random"]["text"] != found["plain"]["text"]
    assert steer(server, strength=8) == found
    other = steer(server, strength=8, seed=1)
    assert other["plain"]["text"] != found["plain"]["text"]
    # The dial does not move the text beside it.
    assert steer(server, strength=-3)["plain"] == found["plain"]
    cold = [steer(server, temperature=0, seed=s)["plain"]["text"] for s in (0, 1)]
    assert cold[0] == cold[1] != found["plain"]["text"]


def test_the_baseline_is_a_random_direction_of_equal_norm(server, run):
    row = sae.load(str(run / "dictionaries/strong")).W_dec[3]
    assert steer(server)["norm"] == pytest.approx(2 * 3.0 * float(row.norm()), rel=1e-5)
    steered, random = with_baseline(3.0 * row, -2.0, 5)
    assert float(random.norm()) == pytest.approx(float(steered.norm()), rel=1e-5)
    torch.testing.assert_close(random, -2.0 * random_direction(3.0 * row, 5))


def test_shared_noise_draws_from_the_softmax():
    scores = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    sampling = Sampling(max_new_tokens=1, temperature=0.5, seed=0)
    noise, n = SharedNoise(sampling, lambda: None), 4000
    drawn = torch.stack([noise(scores, scores).argmax() for _ in range(n)])
    expected = (scores[0] / 0.5).softmax(0)
    found = torch.bincount(drawn, minlength=4) / n
    assert ((found - expected).abs() < 4 * (expected * (1 - expected) / n).sqrt()).all()


@pytest.mark.parametrize("hook", ["blocks.1.mlp.hook_post", "blocks.1.hook_mlp_out"])
def test_a_direction_outside_the_stream_can_be_turned_too(model, hook):
    width = 64 if hook.endswith("hook_post") else 32
    direction = torch.randn(width, generator=torch.Generator().manual_seed(0))
    point = find_site(model.module, hook)
    sampling = Sampling(max_new_tokens=12, temperature=0.7, seed=0)
    for strength, equal in ((0.0, True), (50.0, False)):
        vectors = with_baseline(direction, strength, 0)
        plain, steered, _ = generate_beside(model, point, TEXT, vectors, sampling)
        assert (plain == steered) == equal


# Asking


def test_the_model_says_what_a_feature_is_beside_nothing_and_chance(server, model, run):
    body = {"feature": 3, "prompt": "the old mill x where", "placeholder": "x"}
    found = server.json("/atlas/strong/api/ask", body | {"max_new_tokens": 5})
    dictionary = sae.load(str(run / "dictionaries/strong"))
    question = Question(prompt=body["prompt"], placeholder="x", max_new_tokens=5)
    expected = ask_of_feature(model, question, (dictionary, 3))
    assert found == json.loads(json.dumps(expected.for_page()))
    assert found["into"] == "blocks.1.hook_resid_post"
    assert [arms["scale"] for arms in found["scales"]] == [0.5, 1, 2, 4]
    for arms in found["scales"]:
        assert arms["feature"]["norm"] == pytest.approx(arms["random"]["norm"], rel=1e-5)
        assert len(arms["feature"]["tokens"]) == len(arms["feature"]["relevancy"]) == 5
    assert found["plain"]["relevancy"] == [0] * 5
    usual = server.json("/atlas/strong/api/ask", {"feature": 3, "max_new_tokens": 1})
    assert usual["prompt"] == Question().prompt


def ask_state(server: Server, **more) -> dict:
    body = {"prompt": "the old mill x where", "placeholder": "x", "max_new_tokens": 5}
    return server.json("/atlas/strong/api/ask_state", body | more)


def test_the_model_says_what_it_holds_at_a_token_where_the_dictionary_reads(server, model):
    tokens = read(server, TEXT)["tokens"]
    for position in (0, len(tokens) - 1):
        found = ask_state(server, text=TEXT, position=position)
        question = Question(prompt="the old mill x where", placeholder="x", max_new_tokens=5)
        # The model has one token before a text.
        source = source_of(model, TEXT, 1 + position)
        assert source.token.strip() == tokens[position].strip()
        places = places_of_state(model.module, [HOOK], None)
        expected = ask_of_state(model, question, source, places).for_page()
        assert found == json.loads(json.dumps(expected))
        assert found["into"] == HOOK
        (arms,) = found["scales"]
        assert arms["scale"] is None
        for control in ("random", "other position"):
            assert arms[control]["norm"] == pytest.approx(arms["state"]["norm"], rel=1e-5)


def test_a_text_of_one_token_has_no_other_state_to_stand_beside_it(server):
    tokens = read(server, "a")["tokens"]
    (arms,) = ask_state(server, text="a", position=len(tokens) - 1)["scales"]
    assert ("other position" in arms) == (len(tokens) > 1)


# Lens


def lens(server: Server, text: str) -> dict:
    return server.json("/atlas/strong/api/lens", {"text": text})


def test_the_top_row_of_a_lens_is_the_models_own_prediction(server, model):
    text = f"{TEXT} <b>cats</b>"
    found, ids = lens(server, text), torch.tensor(model.prompt_ids(text)[None]).long()
    n = len(model.text_ids(text))
    (kind,) = found["kinds"]
    assert kind["title"] == "Logit lens"
    assert (len(found["tokens"]), found["n_tokens"]) == (n, n)
    assert "".join(found["tokens"]).strip() == text
    names = [layer["name"] for layer in kind["layers"]]
    assert names == ["embedding", *(f"block {i}" for i in range(len(names) - 1))]
    assert len(names) == 1 + model.module.config.num_hidden_layers
    assert {len(layer["cells"]) for layer in kind["layers"]} == {n}
    with torch.inference_mode():
        own = model.module(ids).logits[0, -n:].softmax(-1)
    for cell, probabilities in zip(kind["layers"][-1]["cells"], own, strict=True):
        top, kl, rank, log_probability, own_token = cell
        best = probabilities.topk(5)
        assert (
            top[0][0]
            == own_token
            == TokenTexts(model.tokenizer).single(best.indices[:1].tolist())[0]
        )
        assert [p for _, p in top] == pytest.approx(best.values.tolist(), rel=1e-4)
        assert (rank, abs(kl) < 1e-6) == (1, True)
        assert log_probability == pytest.approx(float(best.values[0].log()), rel=1e-4)


def test_a_lens_is_of_the_beginning_of_a_long_text_and_says_how_long_that_is(server):
    word = " cats"
    whole, long = lens(server, word * 64), lens(server, word * 200)
    assert (whole["n_tokens"], long["n_tokens"]) == (64, 200)
    assert long["kinds"] == whole["kinds"]
    assert long["tokens"] == whole["tokens"]
    assert len(long["tokens"]) == 64


# Refusals


@pytest.mark.parametrize(
    ("what", "body", "sentence"),
    [
        ("read", b"{", "the request is not readable as JSON"),
        ("read", b"\xff", "the request is not readable as JSON"),
        ("read", b"[" * 100_000, "the request is not readable as JSON"),
        ("read", ["text"], "the request is no JSON object"),
        ("read", {}, "text is missing; give a string"),
        ("read", {"text": 5}, "text is 5; give a string"),
        ("read", {"text": ""}, "the text is empty"),
        ("read", {"text": "a", "featur": 1}, "'featur' is no key of this request; nearest"),
        ("read", {"text": "a", "feature": 64}, "feature 64 is out of range; this dictionary"),
        ("read", {"text": "a", "feature": -1}, "feature is -1; give a whole number from 0"),
        ("read", {"text": "a", "feature": True}, "feature is true; give a whole number"),
        ("steer", {"feature": 64}, "feature 64 is out of range"),
        ("steer", {"feature": 1.5}, "feature is 1.5; give a whole number"),
        ("steer", {"feature": None}, "feature is missing"),
        ("steer", {"feature": DEAD}, "feature 63 is dead"),
        ("steer", {"text": ""}, "the prompt is empty"),
        ("steer", {"text": "cats" * 999}, "the model reads only 128 at once"),
        ("steer", {"strength": "1"}, 'strength is "1"; give a number from -100 to 100'),
        ("steer", {"strength": True}, "strength is true; give a number from -100 to 100"),
        ("steer", {"strength": 101}, "strength is 101; give a number"),
        ("steer", {"strength": float("nan")}, "strength is nan; give a number"),
        ("steer", {"strength": float("inf")}, "strength is inf; give a number"),
        ("steer", {"strength": 10**400}, "give a number from -100 to 100"),
        ("steer", {"max_new_tokens": 0}, "max_new_tokens is 0; give a whole number from 1"),
        ("steer", {"max_new_tokens": 257}, "max_new_tokens is 257; give a whole number"),
        ("steer", {"max_new_tokens": 120}, "120 are to be written, but the model reads only"),
        ("steer", {"temperature": -0.1}, "temperature is -0.1; give a number from 0 to 5"),
        ("steer", {"seed": -1}, "seed is -1; give a whole number from 0"),
        ("ask", {}, "feature is missing; give a whole number"),
        ("ask", {"feature": 64}, "feature 64 is out of range"),
        ("ask", {"feature": 1, "prompt": "no place"}, "placeholder=? is not in the prompt"),
        ("ask", {"feature": 1, "prompt": "? or ?"}, "placeholder=? stands 2 times"),
        ("ask", {"feature": 1, "placeholder": 5}, "placeholder is 5; give a string"),
        ("ask", {"feature": 1, "max_new_tokens": 120}, "but the model reads only 128"),
        ("ask_state", {"position": 0}, "text is missing; give a string"),
        ("ask_state", {"text": "a"}, "position is missing; give a whole number"),
        ("ask_state", {"text": "a", "position": -1}, "position is -1; give a whole number"),
        ("ask_state", {"text": "a", "position": 1.5}, "position is 1.5; give a whole number"),
        ("ask_state", {"text": "a", "position": True}, "position is true; give a whole number"),
        ("ask_state", {"text": "a", "position": 99}, "position is 99, but the last token"),
        ("ask_state", {"text": "", "position": 0}, "the text is empty"),
        ("ask_state", {"text": "cats" * 999, "position": 0}, "reads only 128 at once"),
        ("ask_state", {"text": "a", "position": 0, "prompt": "x"}, "is not in the prompt"),
        ("ask_state", {"text": "a", "position": 0, "at": "x"}, "'at' is no key"),
        ("ask_state", {"text": "a", "position": 0, "max_new_tokens": 120}, "reads only 128"),
        ("lens", {}, "text is missing; give a string"),
        ("lens", {"text": ["a"]}, 'text is ["a"]; give a string'),
        ("lens", {"text": ""}, "the text is empty"),
        ("lens", {"text": "a", "n_tokens": 9}, "'n_tokens' is no key of this request"),
        ("label", {"feature": 1}, "label is missing; give a string"),
        ("label", {"feature": 64, "label": "x"}, "feature=64; the atlas has features 0 to 63"),
        ("label", {"feature": 1, "label": "x" * 201}, "the label has 201 characters; give 200"),
        ("label", {"feature": 1, "label": "a\nb"}, "a control character, U+000A"),
        ("label", {"feature": 1, "label": "a\x1b[2J"}, "a control character, U+001B"),
        ("label", {"feature": 1, "label": "a\u202eb"}, "a control character, U+202E"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_in_a_sentence(server, what, body, sentence):
    if what == "steer":
        body = {"text": TEXT, "feature": 3, "strength": 1} | body
    assert sentence in server.refused(f"/atlas/strong/api/{what}", body)


def test_an_unknown_atlas_has_no_calls(server):
    assert "no atlas 'weak'" in server.refused("/atlas/weak/api/read", {"text": "a"}, 404)


# Labels


def labels_of(server: Server) -> dict:
    _, _, body = server.ask("/atlas/strong/data/labels.js")
    return json.loads(body[body.index(b"{") : body.rindex(b"}") + 1])


def set_label(server: Server, feature: int, label: str) -> str:
    found = server.json("/atlas/strong/api/label", {"feature": feature, "label": label})
    return found["label"]


def test_a_label_is_kept_in_the_file_and_shown_by_the_page_until_it_is_emptied(server, run):
    label = 'seven "grey" cats, <b>'
    assert set_label(server, 5, f"  {label} ") == label
    assert labels_of(server)["label"][5] == label
    assert labels_of(server)["by_hand"] == [5]
    assert '5,"seven ""grey"" cats, <b>"' in (run / "atlas/strong/labels.csv").read_text()
    assert set_label(server, 5, "") == "automatic 5"
    assert labels_of(server)["by_hand"] == []


def test_labels_that_are_given_at_once_are_all_kept(server):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: set_label(server, i, f"mine {i}"), range(10, 26)))
    shown = labels_of(server)
    assert shown["by_hand"] == list(range(10, 26))
    assert shown["label"][10:26] == [f"mine {i}" for i in range(10, 26)]
    for i in range(10, 26):
        set_label(server, i, "")


def test_a_file_of_labels_that_is_edited_by_hand_is_shown_and_a_broken_edit_is_not(
    server, run, capsys
):
    path = run / "atlas/strong/labels.csv"
    before = path.read_text()
    path.write_text(before.replace("automatic 7", "by hand"))
    assert labels_of(server)["label"][7] == "by hand"
    path.write_text(before.replace("7,automatic 7", "x,automatic 7"))
    assert labels_of(server)["label"][7] == "by hand"
    assert "labels.csv" in capsys.readouterr().err
    assert "labels.csv" in server.refused(
        "/atlas/strong/api/label", {"feature": 1, "label": "x"}
    )
    path.write_text(before)
    assert labels_of(server)["label"][7] == "automatic 7"


# Together


def test_eight_requests_at_once_are_answered_like_one_after_the_other(server):
    texts = [f"{TEXT} {i}" for i in range(6)]
    expected = [read(server, text) for text in texts]
    steered = steer(server, strength=8)
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(steer, server, strength=8) for _ in range(2)]
        assert list(pool.map(lambda text: read(server, text), texts)) == expected
        assert [w.result() for w in waiting] == [steered, steered]


def test_pages_are_served_while_the_model_writes(server):
    ready(server)
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(steer, server, max_new_tokens=90)
        assert server.ask("/atlas/strong/data/index.js")[0] == 200
        assert not writing.done()
        writing.result()


def test_work_that_nobody_waits_for_is_not_begun_and_what_has_begun_is_stopped():
    worker, begun = Worker(), threading.Event()
    log = []

    def writes(check) -> None:
        begun.set()
        try:
            while True:
                time.sleep(0.01)
                check()
        except Dropped:
            log.append("stopped")
            raise

    async def story() -> None:
        first = asyncio.create_task(worker.do(writes))
        second = asyncio.create_task(worker.do(lambda _: log.append("second")))
        await asyncio.to_thread(begun.wait, 5)
        second.cancel()
        await asyncio.sleep(0)
        first.cancel()
        for task in (first, second):
            with pytest.raises(asyncio.CancelledError):
                await task
        await worker.do(lambda _: log.append("third"))
        await worker.close()

    asyncio.run(story())
    assert log == ["stopped", "third"]


def test_a_job_that_looks_for_nobody_ends_with_the_worker():
    """Loading a model is such a job: none of ours, and as long as it takes."""
    before, begun, ended = threading.active_count(), threading.Event(), []

    def load() -> None:
        begun.set()
        try:
            while True:
                with contextlib.suppress(Exception):
                    time.sleep(0.01)
        finally:
            ended.append(True)

    async def story() -> None:
        worker = Worker()
        loading = worker.put(load)
        await asyncio.to_thread(begun.wait, 5)
        began = time.perf_counter()
        await worker.close()
        assert time.perf_counter() - began < 5
        assert isinstance(loading.exception(), SystemExit)

    asyncio.run(story())
    assert ended == [True]
    assert threading.active_count() == before


def test_a_client_that_goes_away_frees_the_model(server):
    ready(server)
    began = time.perf_counter()
    body = json.dumps({"text": "cats", "feature": 3, "strength": 1, "max_new_tokens": 120})
    plain = steer(server)
    for _ in range(30):
        with socket.create_connection(("127.0.0.1", server.port)) as caller:
            caller.sendall(
                f"POST /atlas/strong/api/steer HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
                .encode()
            )  # fmt: skip
    assert steer(server) == plain
    assert time.perf_counter() - began < 15


# Which runs, which models


def test_a_dictionary_whose_model_has_changed_is_shown_without_live_features(
    tmp_path, tiny_run, capsys
):
    run = copy_of(tiny_run, tmp_path / "run", "strong")
    path = unseal(run / "dictionaries/strong") / "cfg.json"
    path.write_text(path.read_text().replace('"weight_digest": "', '"weight_digest": "f'))
    with serving(run) as server:
        found = ready(server)
        assert found["model"] == "absent"
        assert "now has other weights" in found["why"]
        assert server.ask("/atlas/strong/")[0] == 200
        assert server.refused("/atlas/strong/api/read", {"text": "a"}) == found["why"]
    assert "is shown without live features" in capsys.readouterr().err


def test_a_model_that_is_gone_is_said_so(tmp_path, tiny_run, tiny_model):
    run = copy_of(tiny_run, tmp_path / "run", "strong")
    path = unseal(run / "dictionaries/strong") / "cfg.json"
    path.write_text(path.read_text().replace(str(tiny_model), "/gone/model"))
    with serving(run) as server:
        assert "/gone/model" in ready(server)["why"]


def test_a_dictionary_that_was_trained_further_since_its_atlas_says_so(tmp_path, tiny_run):
    run = copy_of(tiny_run, tmp_path / "run")
    write_small_atlas(run, "strong", dictionary_digest="of another")
    with serving(run) as server:
        found = ready(server)
        assert found["model"] == "absent"
        assert "sae analyze run=" in found["why"]


def test_features_of_an_encoder_are_read_and_it_has_nothing_to_steer(
    tmp_path, encoder_run
):  # fmt: skip
    run = copy_of(encoder_run, tmp_path / "run", "small")
    with serving(run) as server:
        assert ready(server, "small")["model"] == "ready"
        found = server.json("/atlas/small/api/read", {"text": "seven grey cats"})
        # Without the class token and the separator that the model reads with it.
        assert found["tokens"] == ["seven", " grey", " cats"]
        assert any(found["features"])
        body = {"text": "cats", "feature": 1, "strength": 1}
        sentence = server.refused("/atlas/small/api/steer", body)
        assert "predicts no next token" in sentence


def test_a_run_without_an_atlas_says_how_to_make_one(tmp_path, tiny_run, capsys):
    run = copy_of(tiny_run, tmp_path / "run")
    assert main(["serve", str(run)]) == 2
    said = capsys.readouterr().err
    assert said == f"sae serve: {run} has no atlas; make one with: sae analyze run={run}\n"
    (run / "atlas/.strong.work").mkdir(parents=True)
    assert main(["serve", str(run)]) == 2
    assert "not finished; go on with: sae analyze" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["no such run", "it's, {odd}", "a\\b"])
def test_a_run_that_is_not_there_is_named(tmp_path, capsys, name):
    assert main(["serve", str(tmp_path / name)]) == 2
    assert f"run={tmp_path / name}: there is no such folder" in capsys.readouterr().err


def test_an_atlas_that_is_half_there_or_of_another_version_is_refused(tmp_path, tiny_run):
    run = copy_of(tiny_run, tmp_path / "run", "strong")
    config = ServeConfig(run=str(run))
    seal(run / "atlas/strong", *EDITED)
    (run / "atlas/strong/labels.csv").write_text("feature,label\n3,mine\n")
    assert list(pages_of(config).atlases) == ["strong"]
    flip(run / "atlas/strong/data/features/00000.js")
    with pytest.raises(UserError, match=r"00000\.js is damaged, .* again with: sae analyze"):
        pages_of(config)
    (run / "atlas/strong/data/index.js").unlink()
    with pytest.raises(UserError, match=r"data/index\.js; make it again with: sae analyze"):
        pages_of(config)
    shutil.rmtree(run / "atlas/strong")
    write_small_atlas(run, "strong", format=1)
    with pytest.raises(UserError, match=r"atlas/strong/atlas\.json .*sae analyze"):
        pages_of(config)
    (run / "atlas/strong/atlas.json").write_text("{")
    with pytest.raises(UserError, match=r"atlas\.json: this cannot be read as JSON"):
        pages_of(config)
    shutil.move(run / "atlas/strong", tmp_path / "elsewhere")
    (run / "atlas/strong").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a link"):
        pages_of(config)


def test_a_port_that_is_taken_is_refused_with_one_that_is_free(run, capsys):
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(run), f"port={port}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"sae serve: port={port} is taken; port=")
    free = int(said.rpartition("port=")[2].split()[0])
    listen("127.0.0.1", free).close()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["port=65536"], "port=65536; give a number from 1 to 65535"),
        (["port=-1"], "port=-1; give a number"),
        (["port=x"], "port=x: give a whole number"),
        (["host=''"], "host is empty"),
        (["host=no.such.host.invalid"], "host=no.such.host.invalid is not known here"),
        (["host=192.0.2.1"], "host=192.0.2.1 cannot be listened on here"),
        (["prt=1"], "prt is no key of sae serve; nearest: port"),
    ],
)
def test_bad_words_are_refused_in_a_sentence(run, words, sentence, capsys):
    assert main(["serve", str(run), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line


def test_the_address_is_said_with_a_warning_where_others_can_reach_it(run, monkeypatch, capsys):
    opened = threading.Event()
    monkeypatch.setattr(
        "sae.commands.serve.serve_until_stopped", lambda _, __, started: started(lambda: None)
    )
    monkeypatch.setattr("webbrowser.open", lambda _: opened.set())
    sae.serve(run=str(run), port=0)
    said = capsys.readouterr().err
    assert "http://127.0.0.1:" in said
    assert "WARNING" not in said
    assert not opened.is_set()
    sae.serve(run=str(run), port=0, host="0.0.0.0", open=True)
    assert "WARNING: with host=0.0.0.0 everybody" in capsys.readouterr().err
    assert opened.wait(5)


def test_an_address_is_one_that_a_browser_can_open():
    with listen("0.0.0.0", 0) as listening:
        assert address_of(listening) == f"http://127.0.0.1:{listening.getsockname()[1]}/"


def test_a_notebook_is_told_that_it_would_wait(run):
    async def cell() -> None:
        sae.serve(run=str(run), port=0)

    with pytest.raises(UserError, match="runs until it is stopped"):
        asyncio.run(cell())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_told_to_stop_and_ends_well(run, number):
    words = [sys.executable, "-m", "sae.cli", "serve", str(run), "port=0", "device=cpu"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        line = process.stderr.readline()
        port = int(line.partition("http://127.0.0.1:")[2].partition("/")[0])
        assert Server(port).ask("/atlas/strong/")[0] == 200
        process.send_signal(number)
        _, rest = process.communicate(timeout=20)
        assert (process.returncode, rest) == (0, "serve: stopped\n")
