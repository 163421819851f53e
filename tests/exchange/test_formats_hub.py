"""Dictionaries from the Hub: a real HTTP server with its protocol, and its cache offline."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from urllib.parse import unquote, urlsplit

import pytest
import torch
from support.hub import COMMIT, HubHandler, serving
from support.world import random_dictionary

import sae
from sae.base.errors import UserError
from sae.dictionary import TopK
from sae.exchange.formats import write_dictionary

OLD_COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
REVISIONS = {"main": COMMIT, "v1": OLD_COMMIT, "refs/pr/1": COMMIT}
ERRORS = {"org/gated": (403, "GatedRepo"), "org/private": (401, "RepoNotFound")}


class Hub(HubHandler):
    """What `snapshot_download` asks of the Hub, of one repository `org/name`."""

    states: dict[str, dict[str, bytes]]
    """By commit, the files by name."""
    asked: list[str]

    def answer(self, body):
        path = unquote(urlsplit(self.path).path)
        if "org/hangup" in path:
            self.close_connection = True
            return None
        for repository, (status, code) in ERRORS.items():
            if repository in path:
                return self.send(status, {"X-Error-Code": code}, b"{}", body)
        if "org/name" not in path:
            return self.send(404, {"X-Error-Code": "RepoNotFound"}, b"{}", body)
        asked = re.search(r"/(?:revision|tree|resolve)/(refs/pr/\d+|[^/]+)", path)
        revision = asked[1] if asked else "main"
        commit = REVISIONS.get(revision, revision)
        if commit not in self.states:
            return self.send(404, {"X-Error-Code": "RevisionNotFound"}, b"{}", body)
        files = self.states[commit]
        if "/resolve/" in path:
            name = path.split(f"/{commit}/")[1]
            content = files[name]
            self.asked.append(name)
            about = {"X-Repo-Commit": commit, "ETag": hashlib.sha1(content).hexdigest()}
            return self.send(200, about, content, body)
        if "/tree/" in path:
            found = [
                {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                for n, c in files.items()
            ]
        else:
            siblings = [{"rfilename": name} for name in files]
            found = {"id": "org/name", "sha": commit, "siblings": siblings}
        return self.send(200, {}, json.dumps(found).encode(), body)


@pytest.fixture
def hub(tmp_path):
    """The server's address, what was asked for and its files by commit."""
    for layer in (0, 1):
        folder = tmp_path / f"there/layers.{layer}"
        write_dictionary(random_dictionary("topk"), folder, "sparsify")
        (folder / "optimizer_0.pt").write_bytes(b"much")
    (tmp_path / "there/config.json").write_text('{"model": "org/lm"}')
    weights = random_dictionary("topk").tensors
    for layer in (0, 1):
        # As Qwen has them: what the repository's name says is in no file.
        state = {n: w.t() if w.ndim == 2 else w + layer for n, w in weights.items()}
        torch.save(state, tmp_path / f"there/layer{layer}.sae.pt")
    root = tmp_path / "there"
    files = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    # An older state, where layer 1 was what layer 0 is now under another k.
    other = replace(random_dictionary("topk"), activation=TopK(3))
    write_dictionary(other, tmp_path / "old", "sparsify")
    old = {f"layers.1/{p.name}": p.read_bytes() for p in (tmp_path / "old").iterdir()}
    states = {COMMIT: files, OLD_COMMIT: old}
    handler = type("Handler", (Hub,), {"states": states, "asked": []})
    with serving(handler) as address:
        yield address, handler.asked, states


SCRIPT = """
import json, sys, sae
from sae.dictionary.metadata import metadata_of
for name in sys.argv[1:]:
    try:
        found = sae.load(name)
        print(json.dumps([found.digest, metadata_of(found), found.activation.numbers.get("k")]))
    except ValueError as error:
        print(json.dumps(str(error)))
"""


def load_in_a_process(names, cache, **environment):
    """What `sae.load` makes of each: digest and metadata, or its sentence."""
    settings = {"HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "none"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *names],
        env={**os.environ, **settings, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_a_dictionary_comes_from_the_hub_and_then_from_its_cache(hub, tmp_path):
    address, asked, _ = hub
    names = ["org/name:layers.1", "org/name:layers.7", "org/gated:x", "org/private", "org/no"]
    online = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"}
    found, absent, gated, private, missing = load_in_a_process(names, tmp_path / "c", **online)
    expected = sae.load(str(tmp_path / "there/layers.1"))
    assert found[0] == expected.digest
    assert found[1]["model_name"] == "org/lm"
    assert found[1]["hook_name"] == "blocks.1.hook_resid_post"
    assert set(asked) == {"config.json", "layers.1/cfg.json", "layers.1/sae.safetensors"}
    assert "org/name:layers.7 contains no dictionary in a known format" in absent
    assert "nearest: layers." in absent
    assert "org/gated is gated on the Hub; log in with" in gated
    for sentence in (private, missing):
        assert "on the Hub there is none that everybody may see; mend the name, or" in sentence
    offline = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "1"}
    names = ["org/name:layers.1", "org/other"]
    again, other = load_in_a_process(names, tmp_path / "c", **offline)
    assert again == found
    assert "could not be downloaded from the Hub (offline). Its message: " in other


@pytest.mark.slow
def test_a_revision_is_that_states_dictionary(hub, tmp_path):
    address, *_ = hub
    names = ["org/name:layers.1@v1", "org/name:layers.1", f"org/name:layers.1@{OLD_COMMIT}"]
    names += ["org/name:layers.1@refs/pr/1", "org/name:layers.0@v1", "org/name:layers.1@v2"]
    online = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"}
    *found, absent, missing = load_in_a_process(names, tmp_path / "c", **online)
    assert [k for _, _, k in found] == [3, 7, 3, 7]
    assert "org/name:layers.0@v1 contains no dictionary in a known format" in absent
    assert "nearest: layers.1" in absent
    assert "org/name has no revision v2 on the Hub; give one of its branches, tags" in missing
    offline = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "1"}
    assert load_in_a_process(names[:2], tmp_path / "c", **offline) == found[:2]


@pytest.mark.slow
def test_a_file_that_is_a_dictionary_is_fetched_alone_and_takes_k_from_its_repository(
    hub, tmp_path
):
    address, asked, _ = hub
    online = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"}
    names = ["layer1.sae.pt@main", "layer0.sae.pt", "layer7.sae.pt", "layer1.sae.pt@v1"]
    names = [f"org/name-L0_{k}:{name}" for k, name in zip((3, 5, 5, 5), names, strict=True)]
    # The whole repository is none, whatever of it was fetched before.
    names += ["org/name-L0_5", "org/name:layer1.sae.pt"]
    one, *rest = load_in_a_process(names[:1], tmp_path / "c", **online)
    assert (one[2], one[1]) == (3, {"hook_name": "blocks.1.hook_resid_post"})
    assert (set(asked), rest) == ({"layer1.sae.pt"}, [])
    zero, absent, older, whole, nameless = load_in_a_process(
        names[1:], tmp_path / "c", **online
    )
    assert zero[1:] == [{"hook_name": "blocks.0.hook_resid_post"}, 5]
    assert zero[0] != one[0]
    assert (
        "org/name-L0_5:layer7.sae.pt contains no dictionary in a known format; give" in absent
    )
    assert "nearest: layer" in absent
    assert "layer1.sae.pt@v1 contains no dictionary in a known format" in older
    assert (
        "org/name-L0_5 contains no dictionary in a known format; give org/name-L0_5:F" in whole
    )
    assert "; it has layer0.sae.pt" in whole
    assert (
        "does not say k, and neither does the name of its folder, models--org--name; put"
        in nameless
    )
    offline = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "1"}
    again, whole = load_in_a_process([names[0], names[4]], tmp_path / "c", **offline)
    assert again == one
    assert "org/name-L0_5 contains no dictionary in a known format" in whole


@pytest.mark.slow
def test_a_hub_that_hangs_up_is_reported_in_a_sentence(hub, tmp_path):
    online = {"HF_ENDPOINT": hub[0], "HF_HUB_OFFLINE": "0"}
    (sentence,) = load_in_a_process(["org/hangup:layers.1"], tmp_path / "c", **online)
    assert "org/hangup is no folder here" in sentence
    assert "could not be downloaded from the Hub. Its message: " in sentence


@pytest.mark.slow
def test_a_folder_with_the_signs_of_a_pattern_fetches_nothing_else(hub, tmp_path):
    address, asked, _ = hub
    online = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"}
    names = ["org/name:layers.*", "org/name:layers.[01]"]
    for sentence in load_in_a_process(names, tmp_path / "c", **online):
        assert "contains no dictionary in a known format" in sentence
    assert set(asked) <= {"config.json"}


@pytest.mark.parametrize("folder", ["../elsewhere", "layers.1/../../..", "/etc"])
def test_a_folder_that_leads_out_of_its_repository_is_refused(folder):
    with pytest.raises(UserError, match="leads out of the repository; give a folder inside it"):
        sae.load(f"org/name:{folder}")


def test_a_folder_that_is_there_is_never_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_dictionary(random_dictionary("standard"), tmp_path / "org/name", "saelens")
    assert sae.load("org/name").d_sae == 48


@pytest.mark.slow
def test_a_repository_with_one_dictionary_is_that_one_and_a_revision_goes_anywhere(
    hub, tmp_path
):
    online = {"HF_ENDPOINT": hub[0], "HF_HUB_OFFLINE": "0"}
    names = ["org/name@v1", "org/name@v1:layers.1", "org/name:layers.1@v1", "org/name"]
    *found, several = load_in_a_process(names, tmp_path / "c", **online)
    assert [k for _, _, k in found] == [3, 3, 3]
    assert (
        "org/name contains no dictionary in a known format; give org/name:FOLDER; it has"
        in several
    )


@pytest.mark.slow
def test_an_export_is_found_in_its_repository_and_offline_in_the_cache(hub, tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    sae.eval(run=str(run), dictionary="strong", n_behaviour_tokens=64)
    sae.analyze(run=str(run), dictionary="strong")
    folder = sae.export(run=str(run), dictionary="strong")
    files = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    hub[2][COMMIT] = {name: path.read_bytes() for name, path in files.items()}
    for offline in ("0", "1"):
        online = {"HF_ENDPOINT": hub[0], "HF_HUB_OFFLINE": offline}
        (found,) = load_in_a_process(["org/name"], tmp_path / "c", **online)
        assert found[0] == sae.load(str(folder)).digest
    assert not [name for name in hub[1] if name.endswith(".parquet")]


def test_two_revisions_are_refused():
    with pytest.raises(UserError, match="gives two revisions; give one as ORG/NAME:FOLDER@REV"):
        sae.load("org/name@v1:layers.1@v2")


@pytest.mark.parametrize("path", ["https://huggingface.co/me/x", "hf://me/x:y"])
def test_an_address_is_refused_with_what_to_write(path):
    with pytest.raises(
        UserError, match=f"^{path} is a web address; for a dictionary on the Hub give ORG"
    ):
        sae.load(path)
