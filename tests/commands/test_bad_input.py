"""What people get wrong: one sentence, status 2, nothing destroyed, nothing heavy begun."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import zarr.storage._local
from safetensors.torch import save_file
from support.files import reworded, unseal
from support.world import HOOK, harvest_settings, random_dictionary, sentences

import sae
from sae.base.errors import UserError
from sae.cli import main
from sae.dictionary.files import save_dictionary

HEAVY = (
    "sae.harvesting.harvest.load_model",
    "sae.models.load.load_model",
    "sae.training.loop.Trainer",
)
SMALL = ["sae.d_sae=16", "training_tokens=2048", "train_batch_size_tokens=256"]


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch):
    """Runs a command that has to be refused, and checks how; `late` allows heavy work."""

    def check(words: list[str], *fragments: str, late: bool = False) -> None:
        def heavy(*_, **__):
            raise AssertionError("something heavy began before the refusal")

        before = files(tmp_path)
        with monkeypatch.context() as patch:
            for name in () if late else HEAVY:
                patch.setattr(name, heavy)
            capsys.readouterr()
            status = main(words)
        captured = capsys.readouterr()
        *progress, sentence = captured.err.splitlines()
        assert status == 2
        assert sentence.startswith(f"sae {words[0]}: ")
        assert "Traceback" not in captured.err + captured.out
        # Work that has begun says so in a line of its own.
        assert all(line.startswith(f"{words[0]}: ") for line in progress)
        assert late or not progress
        for fragment in fragments:
            assert fragment in sentence
        after = files(tmp_path)
        assert {path: after.get(path) for path in before} == before

    return check


@pytest.fixture
def places(tmp_path, tiny_model, tiny_text, tiny_run):
    """What `{...}` in the table below stands for."""
    contents = {
        "empty": {},
        "empty_file": {"a.txt": b""},
        "binary": {"a.bin": b"\0\1\2", "b.png": b"\x89PNG", "c": b"text without a suffix"},
        "short": {"a.txt": b"hello there"},
        "latin": {"a.txt": "caf\xe9 ".encode("latin-1") * 100},
        "other_column": {"a.jsonl": b'{"body": "x", "id": 3}\n'},
        "broken_json": {"a.jsonl": b'{"body": \n'},
        "broken_gzip": {"a.txt.gz": b"hello there"},
        "no_model": {"README.md": b"nothing"},
    }
    for name, held in contents.items():
        (tmp_path / name).mkdir()
        for file, content in held.items():
            (tmp_path / name / file).write_bytes(content)
    (tmp_path / "file").write_text("in the way")
    return {
        "tmp": tmp_path,
        "model": tiny_model,
        "text": tiny_text,
        "run": tiny_run,
        "cache": tiny_run / "cache.zarr",
    }


HARVEST = (
    "harvest run={tmp}/new model={model} data={text} hook_names=[blocks.1.hook_resid_post] "
    "n_tokens=2048 context_size=32"
)
TRAIN = f"train run={{tmp}}/new cache={{cache}} {' '.join(SMALL)}"

TABLE = {
    "an unknown model": (
        HARVEST + " model=smollm",
        ["model.name=smollm", "nearest: smollm2", "not a local folder"],
    ),
    "a folder that is no model": (
        HARVEST + " model={tmp}/no_model",
        ["/no_model", "config.json", "save_pretrained"],
    ),
    "an unknown model dtype": (
        HARVEST + " model.dtype=float8",
        ["model.dtype=float8", "float32, bfloat16, float16"],
    ),
    "a hook that the model lacks": (
        HARVEST + " hook_names=[blocks.1.hook_resid_pst]",
        ["hook_name=blocks.1.hook_resid_pst", "nearest: blocks.1.hook_resid_post"],
    ),
    "a layer out of range": (
        HARVEST + " hook_names=[blocks.7.hook_resid_post]",
        ["blocks.7.hook_resid_post", "layer 7", "layers 0 to 2"],
    ),
    "a hook named twice": (
        HARVEST + " hook_names=[blocks.1.hook_mlp_out,blocks.1.hook_mlp_out]",
        ["blocks.1.hook_mlp_out", "once"],
    ),
    "no hook": (HARVEST + " hook_names=[]", ["hook_names is empty", "at least one"]),
    "hooks that are no list": (
        HARVEST + " hook_names={a:b}",
        ["hook_names={a:b}: give a list of words, as hook_names=[a,b]"],
    ),
    "an empty text folder": (HARVEST + " data={tmp}/empty", ["/empty", ".txt", ".jsonl"]),
    "an empty text file": (HARVEST + " data={tmp}/empty_file/a.txt", ["a.txt", "not empty"]),
    "a folder of binary files": (HARVEST + " data={tmp}/binary", ["/binary", ".txt"]),
    "a text that is not there": (HARVEST + " data=./nowhere", ["data.name=./nowhere"]),
    "a misspelt embedded text": (
        HARVEST + " data=miscelany",
        ["data.name=miscelany", "nearest: miscellany"],
    ),
    "a text that is not UTF-8": (HARVEST + " data={tmp}/latin", ["latin/a.txt", "UTF-8"]),
    "a missing column": (
        HARVEST + " data={tmp}/other_column",
        ["data.column=text", "a.jsonl", "it has body, id"],
    ),
    "broken JSON": (HARVEST + " data={tmp}/broken_json", ["a.jsonl", "not readable as json"]),
    "broken gzip": (HARVEST + " data={tmp}/broken_gzip", ["a.txt.gz", "not readable"]),
    "fewer tokens than two rows": (
        HARVEST + " n_tokens=63",
        ["n_tokens=63", "two sequences of context_size=32"],
    ),
    "rows longer than the model": (
        HARVEST + " context_size=256",
        ["context_size=256", "128 positions"],
    ),
    "an impossible share": (
        HARVEST + " data.held_out_fraction=1.5",
        ["data.held_out_fraction=1.5", "between 0 and 1"],
    ),
    "a file in the way of the run": (
        HARVEST + " run={tmp}/file/new",
        ["/file: a file is in the way", "/file/new"],
    ),
    "no latents": (TRAIN + " sae.d_sae=0", ["sae.d_sae=0", "at least one latent"]),
    "a negative penalty": (
        TRAIN + " sae.l1_coefficient=-1",
        ["sae.l1_coefficient=-1.0", "give 0 or more"],
    ),
    "a penalty that is no number": (
        TRAIN + " sae.l1_coefficient=nan",
        ["sae.l1_coefficient=nan", "give 0 or more"],
    ),
    "no learning rate": (TRAIN + " optim.lr=0", ["optim.lr=0.0", "more than 0", "3e-3"]),
    "an endless learning rate": (TRAIN + " optim.lr=inf", ["optim.lr=inf", "more than 0"]),
    "a wrong type": (TRAIN + " sae.d_sae=many", ["sae.d_sae=many", "give a whole number"]),
    "an unknown key": (
        TRAIN + " sae.d_sea=5",
        ["sae.d_sea is no key of sae train", "nearest: sae.d_sae"],
    ),
    "an added key": (TRAIN + " +sae.extra=5", ["+sae.extra=5", "key=value"]),
    "a removed key": (TRAIN + " ~seed", ["~seed", "key=value"]),
    "an unknown choice": (
        TRAIN + " sae=standrd",
        ["sae=standrd is unknown", "choose one of", "standard"],
    ),
    "an unknown architecture": (
        TRAIN + " sae=top_k",
        ["sae=top_k is unknown", "jumprelu", "nearest: topk"],
    ),
    "more active latents than there are": (
        TRAIN + " sae=topk sae.k=17",
        ["sae.k=17 is impossible", "sae.d_sae=16"],
    ),
    "a dictionary without latents": (
        TRAIN + " sae=batchtopk sae.d_sae=-4",
        ["sae.d_sae=-4 is impossible", "at least one latent"],
    ),
    "a skip connection of an autoencoder": (
        TRAIN + " sae.skip_connection=true",
        ["sae.skip_connection=True", "transcoder", "give hook_name_out"],
    ),
    "a transcoder that does not say what it reads": (
        TRAIN + " hook_name_out=blocks.1.hook_resid_post",
        ["hook_name_out=blocks.1.hook_resid_post", "needs hook_name"],
    ),
    "a transcoder to the hook that it reads": (
        TRAIN + " hook_name=blocks.1.hook_resid_post hook_name_out=blocks.1.hook_resid_post",
        ["hook_name_out=blocks.1.hook_resid_post is hook_name itself"],
    ),
    "an output hook that the cache lacks": (
        TRAIN + " hook_name=blocks.1.hook_resid_post hook_name_out=blocks.1.hook_mlp_out",
        ["blocks.1.hook_mlp_out", "it holds blocks.1.hook_resid_post"],
    ),
    "an unknown type of the product": (
        TRAIN + " matmul=float16",
        ["matmul=float16 is unknown", "bfloat16"],
    ),
    "no choice": (TRAIN + " sae=null", ["sae=", "choose one of", "standard"]),
    "a word without a value": (TRAIN + " sae.d_sae", ["sae.d_sae: not of the form key=value"]),
    "a value without a key": (TRAIN + " =3", ["=3: not of the form key=value"]),
    "an open bracket": (TRAIN + " name=[1", ["name=[1: not of the form key=value", "quote"]),
    "an unknown command": (
        "trian run=x",
        ["trian is no command", "nearest: train", "harvest", "cache"],
    ),
    "a batch larger than the cache": (
        TRAIN + " train_batch_size_tokens=100000 training_tokens=100000",
        ["train_batch_size_tokens=100000", "larger than the cache", "rows to train on"],
    ),
    "less training than one batch": (
        TRAIN + " training_tokens=100",
        ["training_tokens=100", "train_batch_size_tokens=256"],
    ),
    "a missing cache": ("train run={tmp}/new", ["/new/cache.zarr", "sae harvest"]),
    "a folder that is no cache": (TRAIN + " cache={tmp}/no_model", ["/no_model", "harvest"]),
    "a hook that the cache lacks": (
        TRAIN + " hook_name=blocks.2.hook_resid_post",
        ["hook_name=blocks.2.hook_resid_post", "it holds blocks.1.hook_resid_post"],
    ),
    "a name with slashes": (TRAIN + " name=../../here", ["name=../../here", "slashes"]),
    "a run without dictionaries": (
        "analyze run={tmp}/new cache={cache}",
        ["/new contains no dictionaries", "sae train run="],
    ),
    "an unknown dictionary": (
        "eval run={run} dictionary=wek",
        ["dictionary=wek", "nearest: weak"],
    ),
    "two dictionaries and no choice": (
        "analyze run={run}",
        ["2 dictionaries", "dictionary=strong", "weak"],
    ),
    "steering without an atlas": (
        "steer run={run} dictionary=weak",
        ["atlas/weak is missing", "sae analyze run=", "dictionary=weak"],
    ),
    "an export without an atlas": (
        "export run={run} dictionary=weak",
        ["atlas/weak is missing", "sae analyze run="],
    ),
    "no strengths": ("steer run={run} strengths=[]", ["strengths is empty", "[-1,0,1]"]),
}
# Found while work goes on: the text's length is known once it is tokenised.
LATE = {
    "a text that is too short": (
        HARVEST + " data={tmp}/short",
        ["the text is too short", "1 documents", "sequence of 32 tokens", "context_size"],
    ),
    "a batch larger than the cache": TABLE.pop("a batch larger than the cache"),
}


def words_of(command: str, places: dict[str, Path]) -> list[str]:
    for name, path in places.items():
        command = command.replace(f"{{{name}}}", str(path))
    # A later word stands for the same key of an earlier one, as when people edit a command.
    words = {}
    for word in command.split():
        words.pop(word.split("=")[0], None)
        words[word.split("=")[0] or word] = word
    return list(words.values())


@pytest.mark.parametrize("case", TABLE)
def test_bad_input_is_refused_with_a_sentence_before_anything_heavy(case, places, refused):
    command, fragments = TABLE[case]
    refused(words_of(command, places), *fragments)


@pytest.mark.parametrize("case", LATE)
def test_what_only_work_can_find_is_refused_with_a_sentence(case, places, refused):
    command, fragments = LATE[case]
    refused(words_of(command, places), *fragments, late=True)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["an unknown command", "an unknown key", "a missing cache"])
def test_the_exit_status_of_the_process_is_two(case, places, command):
    words, fragments = TABLE[case]
    done = command(*words_of(words, places))
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert all(fragment in done.stderr for fragment in fragments)


# Caches


@pytest.fixture
def cache_copy(tmp_path, tiny_run):
    return Path(shutil.copytree(tiny_run / "cache.zarr", tmp_path / "copied" / "cache.zarr"))


def train_on(cache: Path) -> list[str]:
    return ["train", f"run={cache.parent}", *SMALL]


def test_a_cache_that_is_not_finished_is_refused(cache_copy, refused):
    reworded(cache_copy, complete=False)
    refused(train_on(cache_copy), str(cache_copy), "not finished", "run the same harvest")


def test_a_cache_of_another_format_version_is_refused(cache_copy, refused):
    reworded(cache_copy, format_version=99)
    refused(train_on(cache_copy), str(cache_copy), "version 99", "version 2", "harvest again")


def test_a_zarr_group_that_is_no_cache_is_refused(cache_copy, refused):
    reworded(cache_copy, format="pictures")
    refused(train_on(cache_copy), str(cache_copy), "not an activation cache")


def truncate(chunk: Path) -> None:
    chunk.write_bytes(chunk.read_bytes()[:100])


def flip_a_byte(chunk: Path) -> None:
    content = bytearray(chunk.read_bytes())
    content[1000] ^= 1
    chunk.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (truncate, "activations/{} is damaged"),
        (flip_a_byte, "activations/{} is damaged"),
        (Path.unlink, "a chunk of activations/{} is missing"),
    ],
)
def test_a_damaged_chunk_is_named(damage, word, cache_copy, refused):
    damage(cache_copy / "activations" / HOOK / "c.2.0.0")
    refused(
        train_on(cache_copy),
        str(cache_copy),
        f"{word.format(HOOK)} in sequences 64 to 95",
        "run the same harvest again",
    )


def test_a_cache_of_other_weights_is_refused(cache_copy, tiny_run, refused):
    model = json.loads((cache_copy / "zarr.json").read_text())["attributes"]["model"]
    reworded(cache_copy, model={**model, "weight_digest": "0123456789abcdef"})
    shutil.copytree(tiny_run / "dictionaries", cache_copy.parent / "dictionaries")
    refused(
        ["eval", f"run={cache_copy.parent}", "dictionary=weak"],
        "was trained on other weights of",
        "0123456789abcdef",
    )


def foreign_dictionary(run: Path, d_in: int, **metadata: str) -> None:
    foreign = random_dictionary(d_in=d_in, d_sae=8, hook_name=HOOK, **metadata)
    save_dictionary(foreign, run / "dictionaries" / "foreign")


@pytest.mark.parametrize("stage", ["eval", "analyze"])
def test_a_dictionary_of_another_model_is_refused(stage, tmp_path, tiny_run, refused):
    foreign_dictionary(tmp_path / "mine", 32, model_name="another/model")
    refused(
        [stage, f"run={tmp_path / 'mine'}", f"cache={tiny_run / 'cache.zarr'}"],
        "foreign was trained on another/model",
        "belongs to ",
    )


@pytest.mark.parametrize("stage", ["eval", "analyze"])
def test_a_dictionary_of_another_width_is_refused(
    stage, tmp_path, tiny_run, tiny_model, refused
):
    foreign_dictionary(tmp_path / "mine", 16, model_name=str(tiny_model))
    refused(
        [stage, f"run={tmp_path / 'mine'}", f"cache={tiny_run / 'cache.zarr'}"],
        "foreign has d_in=16",
        "rows of width 32",
    )


# Folders that hold something else


def test_harvesting_over_a_folder_of_somebody_else_is_refused(places, refused):
    (places["tmp"] / "new" / "cache.zarr").mkdir(parents=True)
    (places["tmp"] / "new" / "cache.zarr" / "thesis.txt").write_text("precious")
    refused(
        words_of(HARVEST, places), "/new/cache.zarr", "not an activation cache", "another run="
    )


def test_harvesting_over_a_cache_of_other_settings_is_refused(places, cache_copy, refused):
    words = words_of(HARVEST + f" run={cache_copy.parent} n_tokens=4096", places)
    refused(words, str(cache_copy), "another model, text or setting", "another run=")


def test_training_over_a_dictionary_of_other_settings_is_refused(tmp_path, tiny_run, refused):
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    refused(
        ["train", f"run={run}", "name=weak", *SMALL],
        "dictionaries/weak",
        "another configuration",
        "another name=",
    )


def test_a_damaged_checkpoint_is_refused(tmp_path, tiny_run, refused):
    state = tmp_path / "new" / "training" / "mine"
    state.mkdir(parents=True)
    (state / "step_0000000002.pt").write_bytes(b"half of a checkpoint")
    words = ["train", f"run={tmp_path / 'new'}", f"cache={tiny_run / 'cache.zarr'}", *SMALL]
    refused([*words, "name=mine"], "mine/step_0000000002.pt is damaged", "remove it", late=True)


@pytest.mark.parametrize("stage", ["harvest", "train"])
def test_a_folder_without_permission_is_refused(stage, places, refused, monkeypatch):
    # Root may write everywhere, so the system's answer is made up.
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    command = HARVEST if stage == "harvest" else TRAIN
    refused(words_of(command, places), str(places["tmp"]), "no permission", "another folder")


def failing(code: int):
    def write(*_, **__):
        raise OSError(code, os.strerror(code))

    return write


@pytest.mark.slow
def test_a_disk_that_turns_read_only_is_explained(tmp_path, tiny_run, refused, monkeypatch):
    monkeypatch.setattr("sae.training.checkpoint.torch.save", failing(errno.EROFS))
    words = ["train", f"run={tmp_path / 'new'}", f"cache={tiny_run / 'cache.zarr'}", *SMALL]
    refused(words, "step_", "no permission", "another folder", late=True)


# A full disk


def test_a_harvest_goes_on_after_the_disk_was_full(
    tmp_path, tiny_model, tiny_text, tiny_run, monkeypatch
):
    settings = harvest_settings(tmp_path / "new", tiny_model, tiny_text)
    whole, written = zarr.storage._local._put, []

    def put(path, value, exclusive=False):
        written.append(path)
        if len(written) > 25:
            failing(errno.ENOSPC)()
        return whole(path, value, exclusive=exclusive)

    with monkeypatch.context() as patch:
        patch.setattr(zarr.storage._local, "_put", put)
        with pytest.raises(
            UserError, match=r"cache\.zarr: the disk is full; .*free some space"
        ):
            sae.harvest(**settings)
    assert len(written) > 25
    sae.harvest(**settings)
    cache, expected = tmp_path / "new" / "cache.zarr", tiny_run / "cache.zarr"
    assert {p.relative_to(cache): c for p, c in files(cache).items()} == {
        p.relative_to(expected): c for p, c in files(expected).items()
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "writing", ["sae.training.checkpoint.torch.save", "pathlib.Path.write_bytes"]
)
def test_training_goes_on_after_the_disk_was_full(
    writing, tmp_path, tiny_run, capsys, monkeypatch
):
    words = ["train", f"cache={tiny_run / 'cache.zarr'}", *SMALL]
    assert main([*words, f"run={tmp_path / 'undisturbed'}"]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(writing, failing(errno.ENOSPC))
        capsys.readouterr()
        assert main([*words, f"run={tmp_path / 'disturbed'}"]) == 2
    assert "the disk is full; free some space" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.partial"))
    assert main([*words, f"run={tmp_path / 'disturbed'}"]) == 0
    weights = [p.read_bytes() for p in tmp_path.rglob("sae_weights.safetensors")]
    assert len(weights) == 2
    assert weights[0] == weights[1]


# Atlas, steering, export


@pytest.fixture(scope="module")
def analyzed(tmp_path_factory, tiny_run):
    """A run whose dictionary `weak` is evaluated and analyzed; not to be changed."""
    run = tmp_path_factory.mktemp("analyzed") / "run"
    shutil.copytree(tiny_run, run)
    for stage in ("eval", "analyze"):
        assert main([stage, f"run={run}", "dictionary=weak"]) == 0
    return run


@pytest.mark.slow
def test_a_feature_out_of_range_is_refused_with_the_range(analyzed, refused):
    refused(
        ["steer", f"run={analyzed}", "dictionary=weak", "features=[64]"],
        "features=64",
        "0 to 63",
    )


@pytest.fixture
def analyzed_copy(analyzed, tmp_path):
    return Path(shutil.copytree(analyzed, tmp_path / "run"))


def test_a_dead_feature_is_refused(analyzed_copy, refused):
    import pyarrow
    import pyarrow.parquet

    path = analyzed_copy / "atlas" / "weak" / "features.parquet"
    table = pyarrow.parquet.read_table(path)
    rows = table.to_pylist()
    rows[3]["max_activation"] = 0.0
    unseal(path.parent)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, table.schema), path)
    refused(
        ["steer", f"run={analyzed_copy}", "dictionary=weak", "features=[3]"],
        "features=3 never fired",
        "choose another one",
    )


def test_a_damaged_feature_table_is_named(analyzed_copy, refused):
    (analyzed_copy / "atlas" / "weak" / "features.parquet").write_bytes(b"half a table")
    refused(
        ["steer", f"run={analyzed_copy}", "dictionary=weak"],
        "weak/features.parquet",
        "damaged",
        "sae analyze",
    )


def test_exporting_over_a_folder_of_somebody_else_is_refused(analyzed, tmp_path, refused):
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter.txt").write_text("precious")
    refused(
        ["export", f"run={analyzed}", "dictionary=weak", f"out={out}"],
        str(out),
        "not an export",
        "another folder with out=",
    )


def test_an_export_is_whole_after_the_disk_was_full(analyzed, tmp_path, capsys, monkeypatch):
    words = ["export", f"run={analyzed}", "dictionary=weak", f"out={tmp_path / 'out'}"]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", failing(errno.ENOSPC))
        capsys.readouterr()
        assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sae export: {tmp_path / 'out'}")
    assert "the disk is full" in line
    assert list(tmp_path.iterdir()) == []
    assert main(words) == 0
    assert sae.load(str(tmp_path / "out" / HOOK)).d_sae == 64


# Dictionaries


@pytest.fixture
def folder(tmp_path, tiny_run):
    copied = shutil.copytree(tiny_run / "dictionaries" / "weak", tmp_path / "dictionary")
    return unseal(Path(copied))


def test_damaged_weights_are_refused(folder):
    truncate(folder / "sae_weights.safetensors")
    with pytest.raises(UserError, match=r"sae_weights\.safetensors is damaged"):
        sae.load(str(folder))


def test_weights_with_nan_are_refused(folder):
    tensors = {
        "W_enc": torch.zeros(4, 8),
        "b_enc": torch.zeros(8),
        "W_dec": torch.full((8, 4), float("nan")),
        "b_dec": torch.zeros(4),
    }
    save_file(tensors, folder / "sae_weights.safetensors")
    with pytest.raises(UserError, match=r"W_dec holds NaN"):
        sae.load(str(folder))


def test_missing_weights_are_named(folder):
    save_file({"W_enc": torch.zeros(4, 8)}, folder / "sae_weights.safetensors")
    with pytest.raises(UserError, match=r"lacks W_dec, b_dec, b_enc"):
        sae.load(str(folder))


def test_an_unknown_architecture_is_refused_with_those_that_are_known(folder):
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**config, "architecture": "pyramid"}))
    with pytest.raises(
        UserError, match=r"architecture pyramid is not known; known: .*standard"
    ):
        sae.load(str(folder))


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_description_is_refused(content, folder):
    (folder / "cfg.json").write_text(content)
    with pytest.raises(UserError, match=r"cfg\.json"):
        sae.load(str(folder))


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"nowhere is not a folder"):
        sae.load(str(tmp_path / "nowhere"))


def test_a_second_file_that_is_not_utf8_is_named(tmp_path, places, refused):
    """The first document is fine, so only reading on finds it."""
    source = tmp_path / "mixed"
    source.mkdir()
    (source / "a.txt").write_text(sentences(1)[0])
    (source / "b.txt").write_bytes("na\xefve ".encode("latin-1") * 50)
    words = words_of(HARVEST + f" data={source}", places)
    refused(words, "mixed/b.txt", "UTF-8", late=True)
