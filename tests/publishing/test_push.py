"""Exports on the Hub: a real HTTP server that speaks its protocol and checks every byte."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from support.hub import COMMIT, HubHandler, serving

import sae
from sae.base.errors import UserError
from sae.exchange.stamp import write_stamp
from sae.publishing.push import check_repository

HOOK = "blocks.1.hook_resid_post"
TOKEN = "hf_of_a_test"
JSON = {"Content-Type": "application/json"}


class Hub(HubHandler):
    """What `HfApi.create_repo` and `upload_folder` ask of the Hub, and what downloads do.

    Repositories of `closed` may not be written to; all else is there once it was created.
    """

    repositories: dict[str, dict[str, bytes]]
    private: dict[str, str | None]
    stored: dict[str, bytes]
    samples: dict[str, dict[str, tuple[str, int]]]
    cut: set[str]
    address: str

    def answer(self, body):
        path = unquote(urlsplit(self.path).path)
        repository, _, rest = path.partition("/resolve/")
        if rest:
            data = repository.startswith("/datasets/")
            where = f"{'dataset' if data else 'model'}:{'/'.join(repository.split('/')[-2:])}"
            content = self.repositories[where].get(rest.split("/", 1)[1])
            if content is None:
                return self.send(404, {"X-Error-Code": "EntryNotFound"}, b"{}", body)
            about = {"X-Repo-Commit": COMMIT, "ETag": hashlib.sha1(content).hexdigest()}
            return self.send(200, about, content, body)
        _, _, kind, org, name, *more = path.split("/")
        files = self.repositories.get(f"{kind[:-1]}:{org}/{name}")
        if files is None:
            return self.send(404, {"X-Error-Code": "RepoNotFound"}, b"{}", body)
        if more[:1] == ["tree"]:
            found = [
                {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                for n, c in files.items()
            ]
        else:
            siblings = [{"rfilename": n} for n in files]
            found = {"id": f"{org}/{name}", "sha": COMMIT, "siblings": siblings}
        return self.send(200, JSON, json.dumps(found).encode(), body)

    def do_PUT(self):
        content, oid = self.content(), self.path.rsplit("/", 1)[1]
        # This is a bucket of others: it is not to learn the token.
        assert "Authorization" not in self.headers
        assert hashlib.sha256(content).hexdigest() == oid
        self.stored[oid] = content
        self.tell({})

    def do_POST(self):
        content, path = self.content(), unquote(urlsplit(self.path).path)
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.tell({"error": "Invalid username or password."}, 401)
        if path == "/api/validate-yaml":
            assert json.loads(content)["content"].startswith("---\nlibrary_name: sae")
            return self.tell({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self.create(json.loads(content))
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.batch(json.loads(content))
        if path.endswith("/verify"):
            about = json.loads(content)
            assert len(self.stored[about["oid"]]) == about["size"]
            return self.tell({})
        _, _, kind, org, name, verb, revision = path.split("/")
        assert revision == "main"
        where = f"{kind[:-1]}:{org}/{name}"
        if verb == "preupload":
            return self.preupload(where, json.loads(content))
        assert verb == "commit"
        assert self.headers["Content-Type"] == "application/x-ndjson"
        return self.commit(where, [json.loads(line) for line in content.splitlines()])

    def create(self, wanted):
        organization, name = wanted["organization"], wanted["name"]
        kind = wanted.get("type", "model")
        where = f"{kind}:{organization}/{name}"
        url = f"{self.address}/{'datasets/' * (kind == 'dataset')}{organization}/{name}"
        if organization == "closed":
            return self.tell({"error": "You have no rights"}, 403)
        if where in self.repositories:
            return self.tell({"error": "You already created it", "url": url}, 409)
        self.repositories[where] = {".gitattributes": b"*.parquet filter=lfs"}
        private = wanted.get("visibility") == "private" or wanted.get("private")
        self.private[where] = "private" if private else None
        return self.tell({"url": url})

    def preupload(self, where, wanted):
        samples = {f["path"]: (f["sample"], f["size"]) for f in wanted["files"]}
        self.samples[where] = samples
        answers = [
            {
                "path": path,
                "uploadMode": "lfs" if path.endswith(("safetensors", "parquet")) else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for path in samples
        ]
        return self.tell({"files": answers})

    def batch(self, wanted):
        assert wanted["operation"] == "upload"
        assert wanted["hash_algo"] == "sha256"
        if any(name in self.path for name in self.cut):
            return self.tell({"error": "Storage is being moved"}, 501)
        objects = [
            {
                **about,
                "actions": {
                    "upload": {"href": f"{self.address}/bucket/{about['oid']}"},
                    "verify": {"href": f"{self.address}/verify"},
                },
            }
            for about in wanted["objects"]
        ]
        return self.tell({"transfer": "basic", "objects": objects})

    def commit(self, where, lines):
        (header, *operations) = lines
        assert header["key"] == "header"
        files = dict(self.repositories[where])
        for operation in operations:
            about = operation["value"]
            match operation["key"]:
                case "file":
                    content = base64.b64decode(about["content"], validate=True)
                case "lfsFile":
                    content = self.stored[about["oid"]]
                    assert len(content) == about["size"]
                case "deletedFile":
                    del files[about["path"]]
                    continue
            sample, size = self.samples[where][about["path"]]
            assert (base64.b64decode(sample), size) == (content[:512], len(content))
            files[about["path"]] = content
        self.repositories[where] = files
        url = f"{self.address}/{where.split(':')[1]}/commit/{COMMIT}"
        return self.tell({"commitUrl": url, "commitOid": COMMIT, "success": True})

    def content(self):
        if self.headers["Transfer-Encoding"] != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"]))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        return content

    def tell(self, value, status=200):
        self.send(status, JSON, json.dumps(value).encode(), True)


@pytest.fixture
def hub():
    """The server's class, with what it has been given."""
    empty = {"repositories": {}, "private": {}, "stored": {}, "samples": {}, "cut": set()}
    handler = type("Handler", (Hub,), empty)
    with serving(handler) as handler.address:
        yield handler


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("push") / "run"
    shutil.copytree(tiny_run, folder)
    shutil.rmtree(folder / "dictionaries/weak")
    sae.eval(run=str(folder), n_behaviour_tokens=64)
    sae.analyze(run=str(folder))
    return folder


SCRIPT = """
import json, sys, sae
for words in map(json.loads, sys.stdin):
    try:
        found = sae.load(words["load"]).digest if "load" in words else sae.export(**words)
    except ValueError as error:
        assert type(error).__name__ == "UserError", repr(error)
        found = error
    print(json.dumps(str(found)), flush=True)
"""


@contextmanager
def exporter(hub, cache, **environment):
    """Asks a process for one export after the other: the folder of each, or its sentence."""
    settings = {
        "HF_ENDPOINT": hub.address,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_CACHE": str(cache),
        "HF_TOKEN": TOKEN,
    }
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, **settings, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:

        def ask(**words):
            child.stdin.write(json.dumps(words) + "\n")
            child.stdin.flush()
            return json.loads(child.stdout.readline())

        yield ask
        child.stdin.close()
    assert child.returncode == 0


@pytest.fixture
def export(hub, tmp_path):
    with exporter(hub, tmp_path / "c") as ask:
        yield ask


def files(folder):
    there = (path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in there}


def write_stamp_of(folder, found):
    """The bytes of a stamp that says this."""
    folder.mkdir()
    found = {name: value for name, value in found.items() if name != "files"}
    write_stamp(folder, **found)
    return (folder / "export.json").read_bytes()


def without_the_hubs(found):
    return {name: content for name, content in found.items() if name != ".gitattributes"}


@pytest.mark.slow
def test_an_export_arrives_byte_by_byte_as_a_model_and_as_a_data_set(
    hub, run, tmp_path, export
):
    wanted = {"run": str(run), "push": "org/name", "out": str(tmp_path / "out")}
    folder, digest = export(**wanted), export(load=f"org/name:{HOOK}")
    there = files(folder)
    assert without_the_hubs(hub.repositories["model:org/name"]) == there
    tables = {"README.md", "export.json", "labels.csv", "features.parquet", "contexts.parquet"}
    expected = {name: there[name] for name in tables}
    assert without_the_hubs(hub.repositories["dataset:org/name"]) == expected
    assert hub.private == {"model:org/name": None, "dataset:org/name": None}
    assert digest == sae.load(str(run / "dictionaries/strong")).digest
    card = there["README.md"].decode()
    assert f'sae.load("org/name:{HOOK}")' in card
    assert f'SAE.from_pretrained("org/name", "{HOOK}", dtype="float32")' in card
    assert f'hf_hub_download("org/name", "{HOOK}/sae_weights.safetensors")' in card
    assert 'datasets.load_dataset("org/name", "contexts", split="train")' in card
    assert 'read_parquet("hf://datasets/org/name/features.parquet")' in card


@pytest.mark.slow
def test_a_second_push_replaces_the_first_and_leaves_nothing_of_it(hub, run, tmp_path, export):
    wanted = {"run": str(run), "push": "org/name", "private": True}
    smaller = {**wanted, "drop_dead": True, "dtype": "int8"}
    for words in (smaller, wanted):
        folder = export(**words)
        assert without_the_hubs(hub.repositories["model:org/name"]) == files(folder)
    assert "feature_map.csv" not in hub.repositories["dataset:org/name"]
    assert set(hub.private.values()) == {"private"}


@pytest.mark.slow
def test_only_an_export_of_the_same_dictionary_is_replaced_on_the_hub(
    hub, run, tmp_path, export
):
    wanted = {"run": str(run), "push": "org/name", "out": str(tmp_path / "out")}
    export(**wanted)
    ours = {where: dict(found) for where, found in hub.repositories.items()}
    foreign = {"export.json": b'{"digest": "a"}', "thesis.csv": b"1"}
    stamp = json.loads(ours["model:org/name"]["export.json"])
    stamp["of"]["dictionary"] = "another"
    del stamp["seal"]
    other = write_stamp_of(tmp_path / "other", stamp)
    cases = [
        ("model", foreign, "something that is no export (export.json, thesis.csv); choose"),
        ("dataset", foreign, "something that is no export (export.json, thesis.csv); choose"),
        ("model", {"export.json": other}, "the export of another dictionary, another ("),
        ("dataset", {"figure.png": b"1"}, "figure.png beside the export; remove that there"),
    ]
    for kind, change, sentence in cases:
        hub.repositories = {where: dict(found) for where, found in ours.items()}
        there = {} if change is foreign else ours[f"{kind}:org/name"]
        hub.repositories[f"{kind}:org/name"] = there | change
        before = {where: dict(found) for where, found in hub.repositories.items()}
        said = export(**wanted)
        assert f"push=org/name: the {kind} of that name holds {sentence}" in said
        assert hub.repositories == before


@pytest.mark.slow
def test_what_the_hub_refuses_is_a_sentence_and_the_folder_stays(hub, run, tmp_path, export):
    hub.repositories["dataset:org/theirs"] = {"README.md": b"", "thesis.csv": b"1"}
    hub.cut = {"org/cut"}
    out = tmp_path / "out"
    words = [
        {"run": str(run), "out": str(out), "push": name}
        for name in ("closed/name", "org/theirs", "org/cut")
    ]
    closed, theirs, cut = (export(**one) for one in words)
    assert "the Hub does not let you write to push=closed/name; choose another name" in closed
    assert f"{out} is kept, and the same command continues" in closed
    assert (
        "the dataset of that name holds something that is no export (thesis.csv); choose"
        in theirs
    )
    assert hub.repositories["dataset:org/theirs"] == {"README.md": b"", "thesis.csv": b"1"}
    assert set(hub.repositories["model:org/theirs"]) == {".gitattributes"}
    assert "the Hub refused push=org/cut: " in cut
    assert "501" in cut
    assert sae.load(str(out / HOOK)).d_sae == 64
    hub.cut = set()
    again = export(**words[2])
    assert without_the_hubs(hub.repositories["model:org/cut"]) == files(again)


@pytest.mark.slow
def test_a_wrong_token_and_a_hub_that_is_gone_are_sentences(hub, run, tmp_path):
    wanted = {"run": str(run), "push": "org/name", "out": str(tmp_path / "out")}
    with exporter(hub, tmp_path / "c", HF_TOKEN="hf_other") as export:
        wrong = export(**wanted)
    assert "the Hub does not accept your token for push=org/name; log in with" in wrong
    with exporter(hub, tmp_path / "c", HF_ENDPOINT="http://127.0.0.1:9") as export:
        silent = export(**wanted)
    assert "push=org/name did not reach the Hub: " in silent
    assert hub.repositories == {}


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("org/name", True),
        ("a-b_c.d/E-2_f.g", True),
        ("org/" + "n" * 96, True),
        ("org/" + "n" * 97, False),
        ("a--b/c", False),
        ("a/b..c", False),
        ("a/b.git", False),
        ("a/-b", False),
        ("a/.b", False),
        ("a/b.", False),
        ("ä/b", False),
        ("a b/c", False),
    ],
)
def test_a_name_is_good_where_the_hub_takes_it(name, good):
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if good:
        check_repository(name)
        validate_repo_id(name)
        return
    with pytest.raises(UserError, match="is not the name of a repository; give ORG/NAME"):
        check_repository(name)
    if name.isascii():
        with pytest.raises(HFValidationError):
            validate_repo_id(name)


def test_without_a_token_nothing_begins(run, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UserError, match="push=org/name needs a token for the Hub; log in"):
        sae.export(run=str(run), push="org/name", out=str(tmp_path / "out"))
    assert not list(tmp_path.iterdir())
