"""What an export holds: tables as data, a card that says and does what is true, or nothing."""

import json
import os
import re
import shutil
import subprocess
import sys
import time

import pyarrow.parquet
import pytest
import torch
import yaml
from conftest import random_dictionary
from safetensors import safe_open
from safetensors.torch import load_file

import sae
import sae.stages.export
from sae.base.errors import UserError
from sae.cli import main
from sae.dictionary import ARCHITECTURES
from sae.exchange.card import Export, model_card
from sae.exchange.saelens import save_dictionary
from sae.exchange.shrink import DTYPES, save_directions

HOOK = "blocks.1.hook_resid_post"
OURS = {
    "versions": {"sae-atlas": "1"},
    "training_tokens": 1000,
    "data": {"name": "text"},
    "architecture": "topk",
    "sae": {"k": 7},
    "optim": {"lr": 1e-3},
    "train_batch_size_tokens": 10,
    "max_norm_multiple": 10.0,
    "seed": 0,
}
FIGURES = {"n_rows": 5, "n_behaviour_tokens": 6, "n_density_rows": 7}


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    """A run whose dictionary is evaluated and analyzed."""
    folder = tmp_path_factory.mktemp("export") / "run"
    shutil.copytree(tiny_run, folder)
    shutil.rmtree(folder / "dictionaries/weak")
    sae.eval(run=str(folder), n_behaviour_tokens=64)
    sae.analyze(run=str(folder))
    return folder


@pytest.fixture(scope="module")
def exported(run):
    return sae.export(run=str(run), license="apache-2.0")


def files(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def blocks(card):
    """The Python in a card, by the title above it."""
    return dict(re.findall(r"^##+ ([^\n]+)\n\n```python\n(.*?)\n```", card, re.DOTALL | re.M))


def executed(code, folder):
    """The names that a card's code leaves when it runs in a folder."""
    before, names = os.getcwd(), {}
    os.chdir(folder)
    try:
        exec(code, names)
    finally:
        os.chdir(before)
    return names


@pytest.mark.parametrize("name", ["features", "contexts"])
def test_each_table_loads_as_a_data_set_by_its_name(name, exported, tmp_path):
    from datasets import load_dataset

    found = load_dataset(str(exported), name, split="train", cache_dir=str(tmp_path))
    table = pyarrow.parquet.read_table(exported / f"{name}.parquet")
    assert found.num_rows == table.num_rows
    assert found.column_names == table.column_names
    assert found[5] == table.slice(5, 1).to_pylist()[0]


@pytest.mark.slow
def test_the_queries_of_the_card_run_and_answer(exported, tmp_path):
    code = blocks((exported / "README.md").read_text())["Ask the tables"]
    code += """
import json
print(json.dumps([contexts.num_rows, often.density.tolist(), len(alive), named.shape]))"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=exported,
        env={**os.environ, "HF_DATASETS_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    n_contexts, densities, n_alive, shape = json.loads(done.stdout.splitlines()[-1])
    features = pyarrow.parquet.read_table(exported / "features.parquet").to_pylist()
    assert n_contexts == pyarrow.parquet.read_metadata(exported / "contexts.parquet").num_rows
    assert densities == sorted((f["density"] for f in features), reverse=True)[:10]
    assert n_alive == sum(f["n_active"] > 0 for f in features)
    assert shape == [10, 3]


KINDS = [
    (architecture, d_out, skip)
    for architecture in ARCHITECTURES
    for d_out, skip in ((None, False), (20, True))
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_code_without_any_tool_computes_what_the_dictionary_does(kind, dtype, tmp_path):
    architecture, d_out, skip = kind
    ends = {"hook_name": HOOK, "model_name": "a/model"}
    if d_out is not None:
        ends["hook_name_out"] = "blocks.1.hook_mlp_out"
    dictionary = random_dictionary(architecture, d_out=d_out, skip=skip, **ends)
    dictionary.metadata["sae_atlas"] = OURS
    save_dictionary(dictionary, tmp_path / HOOK, dtype)
    save_directions(dictionary, tmp_path, dtype)
    found = blocks(model_card(dictionary, FIGURES, 48, Export(folder=HOOK, dtype=dtype)))
    ours = executed(found["With sae-atlas"], tmp_path)["dictionary"]
    theirs = executed(found["With torch and safetensors alone"], tmp_path)
    torch.testing.assert_close(theirs["acts"], ours.encode(theirs["x"]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(theirs["x_hat"], ours(theirs["x"]), rtol=1e-5, atol=1e-5)
    alone = executed(found["The decoder's directions alone"], tmp_path)
    torch.testing.assert_close(alone["decoder"]["W_dec"], ours.W_dec)
    assert torch.equal(alone["direction"], alone["decoder"]["W_dec"][0])


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_code_for_saelens_runs_and_computes_the_same(exported):
    pytest.importorskip("sae_lens")
    found = blocks((exported / "README.md").read_text())
    theirs = executed(found["With SAELens"], exported)["dictionary"]
    ours = executed(found["With sae-atlas"], exported)["dictionary"]
    x = torch.randn(50, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(theirs.encode(x), ours.encode(x), rtol=1e-5, atol=1e-5)


def test_the_directions_are_the_decoders_and_say_where_they_belong(exported):
    ours = sae.load(str(exported / HOOK))
    found = load_file(exported / "decoder.safetensors")
    assert set(found) == {"W_dec", "b_dec"}
    assert torch.equal(found["W_dec"], ours.W_dec)
    with safe_open(exported / "decoder.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["sae_atlas"])["hook_name"] == HOOK


def front_matter(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_the_front_matter_names_model_text_and_licence_as_the_hub_knows_them():
    dictionary = random_dictionary("standard", hook_name=HOOK, model_name="org/lm")
    ours = OURS | {"data": {"name": "org/text"}}
    dictionary.metadata["sae_atlas"] = ours
    about = Export(folder=HOOK, license="cc-by-4.0")
    found = front_matter(model_card(dictionary, FIGURES, 48, about))
    assert found["library_name"] == "saelens"
    assert found["base_model"] == "org/lm"
    assert found["datasets"] == ["org/text"]
    assert found["license"] == "cc-by-4.0"
    assert found["tags"] == ["sparse-autoencoder", "interpretability", "sae-atlas"]


def test_folders_and_patterns_are_no_names_of_the_hub(tmp_path):
    dictionary = random_dictionary("standard", hook_name=HOOK, model_name=str(tmp_path))
    dictionary.metadata["sae_atlas"] = OURS | {"data": {"name": "./texts/*.jsonl"}}
    card = model_card(dictionary, FIGURES, 48, Export(folder=HOOK))
    assert not {"base_model", "datasets", "license"} & set(front_matter(card))
    assert "Its maker chose none" in card


def test_what_others_wrote_shows_in_the_card_and_does_nothing():
    from markdown_it import MarkdownIt

    bad = "a`|b ``c`` <script>x</script>\n\n# hm\n---\n| z | \ud800"
    dictionary = random_dictionary(
        "standard", hook_name=HOOK, model_name=f"[m](http://x) {bad}"
    )
    ours = OURS | {"data": {"name": bad}, "sae": {"k": bad}}
    dictionary.metadata["sae_atlas"] = ours
    card = model_card(dictionary, FIGURES, 48, Export(folder=HOOK))
    card.encode()
    html = MarkdownIt("commonmark").enable("table").render(card.split("---\n", 2)[2])
    assert "<script>" not in html
    assert "<a href" not in html
    shown = "a`|b ``c`` &lt;script&gt;x&lt;/script&gt; # hm --- | z | ?"
    assert html.count(f"<code>{shown}</code>") == 2
    assert "<h1>hm" not in html
    assert f"A sparse autoencoder of [m](http://x) {shown} at <code>{HOOK}</code></h1>" in html


def test_the_card_says_what_is_lost_and_quotes_the_figures(exported, run):
    card = (exported / "README.md").read_text()
    figures = json.loads((run / "evals/strong.json").read_text())
    assert f"It loses {1 - figures['explained_variance']:.1%} of the variance" in card
    n_rows = sae.load(str(exported / HOOK)).metadata["sae_atlas"]["training_tokens"]
    assert f"It was trained on {n_rows:,} rows of one place" in card
    assert "## Made smaller" not in card
    assert "`apache-2.0`." in card


def test_a_dry_run_shows_every_file_with_its_size_and_writes_nothing(run, tmp_path, capsys):
    before = files(run)
    out = tmp_path / "out"
    words = ["export", f"run={run}", f"out={out}", "drop_dead=true", "dtype=bf16"]
    assert main([*words, "dry_run=true", "push=org/name"]) == 0
    said = capsys.readouterr().err
    assert files(run) == before
    assert not list(tmp_path.iterdir())
    assert main([*words, "push=null"]) == 0
    # The card and the stamp tell where it goes.
    there = {k: len(v) for k, v in files(out).items() if k not in ("README.md", "export.json")}
    listed = dict(re.findall(r"^  (\S+) +([\d,]+)$", said, re.M))
    assert set(listed) == {*there, "README.md", "export.json"}
    assert {k: int(listed[k].replace(",", "")) for k in there} == there
    assert "would go to the model org/name" in said


def half_an_export(run, out, half):
    """An export that stops in the middle of its folder, for somebody to kill it."""
    whole = sae.stages.export.save_directions

    def stuck(*arguments):
        whole(*arguments)
        half.set()
        time.sleep(600)

    sae.stages.export.save_directions = stuck
    sae.export(run=str(run), out=str(out))


@pytest.mark.slow
def test_a_killed_export_leaves_no_folder_and_the_next_one_cleans_up(run, tmp_path, processes):
    out, half = tmp_path / "out", processes.Event()
    process = processes.Process(target=half_an_export, args=(run, out, half))
    process.start()
    assert half.wait(60)
    with pytest.raises(UserError, match=r"is being written by another sae export \(process"):
        sae.export(run=str(run), out=str(out))
    process.kill()
    process.join()
    assert not out.exists()
    assert [p.name.endswith(".partial") for p in tmp_path.iterdir()] == [True]
    assert sae.export(run=str(run), out=str(out)) == out
    assert list(tmp_path.iterdir()) == [out]
    assert sae.load(str(out / HOOK)).d_sae == 64


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["push=name"], "push=name is no repository; give ORG/NAME"),
        (["push=a/b/c"], "push=a/b/c is no repository; give ORG/NAME"),
        (["private=true"], "private=true is of what goes to the Hub; add push=ORG/NAME"),
        (["license='Apache 2'"], "license=Apache 2 is no licence as the Hub writes it"),
        (
            ["dtype=int4"],
            "dtype=int4 is unknown; choose one of float32, bfloat16, float16, int8",
        ),
        (["dtype=int8", "format=openai"], "only format=saelens says in which type"),
        (["push=me/mine"], "push=me/mine, but the Hub is switched off here; unset HF_HUB_OFF"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(words, sentence, run, tmp_path, capsys):
    assert main(["export", f"run={run}", f"out={tmp_path / 'out'}", *words]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_hook_that_leads_out_of_the_folder_is_refused(run, tmp_path):
    odd = tmp_path / "run"
    shutil.copytree(run, odd)
    path = odd / "dictionaries/strong/cfg.json"
    config = json.loads(path.read_text())
    config["metadata"]["hook_name"] = "../../elsewhere"
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"is of the hook \.\./\.\./elsewhere, which is no"):
        sae.export(run=str(odd))
