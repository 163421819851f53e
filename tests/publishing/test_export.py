"""What an export holds: tables as data, a card that says and does what is true, or nothing."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import pyarrow.parquet
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file
from support.atlas_samples import sample_record
from support.files import unseal
from support.world import random_dictionary, training_json, with_metadata

import sae
import sae.publishing.folder
from sae.atlas.subset import Example, ExampleContext
from sae.base.errors import UserError
from sae.cli import main
from sae.dictionary import ACTIVATIONS
from sae.dictionary.files import save_dictionary
from sae.dictionary.metadata import metadata_of
from sae.dictionary.storage import DTYPES
from sae.exchange.formats import WRITTEN
from sae.exchange.public import public
from sae.figures import Figures, ShrinkingCost
from sae.models.hooks import find_site, list_sites, read_activations
from sae.models.load import ModelConfig, load_model
from sae.models.record import ModelRecord
from sae.publishing.card import Export, model_card
from sae.publishing.card.text import example_table
from sae.publishing.folder import save_directions

HOOK = "blocks.1.hook_resid_post"
OURS = training_json()
FIGURES = {
    "id": "some",
    "architecture": "standard",
    "hook_name": HOOK,
    "l0": 7.0,
    "explained_variance": 0.8,
    "n_rows": 5,
    "n_behaviour_tokens": 6,
    "n_density_rows": 7,
    "data": "factbook",
}
MEASURED = Figures.from_json(FIGURES)


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
    for architecture in ACTIVATIONS
    for d_out, skip in ((None, False), (20, True))
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_code_without_any_tool_computes_what_the_dictionary_does(kind, dtype, tmp_path):
    architecture, d_out, skip = kind
    ends = {"hook_name": HOOK, "model_name": "a/model"}
    if d_out is not None:
        ends["hook_name_out"] = "blocks.1.hook_mlp_out"
    dictionary = random_dictionary(architecture, d_out=d_out, skip=skip, **ends, sae_atlas=OURS)
    save_dictionary(dictionary, tmp_path / HOOK, dtype)
    save_directions(dictionary, tmp_path, dtype)
    found = blocks(model_card(dictionary, MEASURED, 48, Export(folder=HOOK, dtype=dtype)))
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
    ours = OURS | {"data": {"name": "org/text"}}
    dictionary = random_dictionary(hook_name=HOOK, model_name="org/lm", sae_atlas=ours)
    about = Export(folder=HOOK, license="cc-by-4.0")
    found = front_matter(model_card(dictionary, MEASURED, 48, about))
    assert found["library_name"] == "saelens"
    assert found["base_model"] == "org/lm"
    assert found["datasets"] == ["org/text"]
    assert found["license"] == "cc-by-4.0"
    assert found["tags"] == ["sparse-autoencoder", "interpretability", "sae-atlas"]


def test_the_front_matter_has_the_features_as_what_a_bare_load_gives():
    found = front_matter(card_of({"sae_atlas": OURS}))
    assert found["configs"] == [
        {"config_name": "features", "data_files": "features.parquet", "default": True},
        {"config_name": "contexts", "data_files": "contexts.parquet"},
    ]


def test_a_bare_load_of_the_export_gives_the_features(exported, tmp_path):
    from datasets import load_dataset

    found = load_dataset(str(exported), split="train", cache_dir=str(tmp_path))
    assert "logit_sharpness" in found.column_names


def card_of(about, figures=None, **export):
    """The card of a dictionary with this metadata."""
    dictionary = random_dictionary(**{"hook_name": HOOK, "model_name": "org/lm", **about})
    known = Figures.from_json(FIGURES | (figures or {}))
    return model_card(dictionary, known, 48, Export(folder=HOOK, **export))


def shown_card(dictionary):
    """The card of this very dictionary."""
    about = metadata_of(dictionary) | {"model_name": "a/model", "sae_atlas": OURS}
    dictionary = with_metadata(dictionary, about)
    return model_card(dictionary, MEASURED, 48, Export(folder="folder"))


def test_the_card_of_a_transcoder_names_both_hooks_and_the_rule():
    text = shown_card(
        random_dictionary(
            "topk",
            d_out=20,
            skip=True,
            hook_name="blocks.1.hook_resid_mid",
            hook_name_out="blocks.1.hook_mlp_out",
        )
    )
    assert (
        "# A transcoder of a/model from `blocks.1.hook_resid_mid` to `blocks.1.hook_mlp_out`"
        in text
    )
    assert "activations are `the k largest of relu(pre)`" in text
    assert "`k = 7`" in text
    assert "+ x @ W_skip.T" in text
    assert "width 32 and write activations of width 20" in text
    # SAELens has no such class, so nobody is told to load it there.
    assert "sae_lens" not in text
    assert "library_name: sae-atlas" in text


def test_the_card_of_an_autoencoder_names_its_hook_and_rule_and_both_ways_to_load_it():
    text = shown_card(random_dictionary("gated", hook_name="blocks.1.hook_resid_mid"))
    assert "# A sparse autoencoder of a/model at `blocks.1.hook_resid_mid`\n" in text
    assert "a `gated` one" in text
    assert "exp(r_mag)" in text
    assert 'SAE.load_from_disk("folder")' in text
    assert "library_name: saelens" in text
    assert "transcoder" not in text
    assert "W_skip" not in text


def section(card, title):
    return card.split(f"## {title}\n")[1].split("\n## ")[0]


def shown(card):
    """The card as a browser gets it."""
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark").enable("table").render(card.split("---\n", 2)[2])


def test_folders_and_patterns_are_no_names_of_the_hub(tmp_path):
    ours = OURS | {"data": {"name": "./texts/*.jsonl"}}
    dictionary = random_dictionary(hook_name=HOOK, model_name=str(tmp_path), sae_atlas=ours)
    card = model_card(dictionary, MEASURED, 48, Export(folder=HOOK))
    assert not {"base_model", "datasets", "license"} & set(front_matter(card))
    assert "None is stated here. Ask whoever made it before you pass it on." in card


BAD = "a`|b ``c`` <script>x</script>\n\n# hm\n---\n| z | \ud800"
SHOWN = "a`|b ``c`` &lt;script&gt;x&lt;/script&gt; # hm --- | z | ?"


def test_what_others_wrote_shows_in_the_card_and_does_nothing():
    bad = BAD.replace("/", "\u2215")
    odd = SHOWN.replace("/script&gt; #", "\u2215script&gt; #")
    ours = OURS | {"data": {"name": bad}, "sae": {"k": bad}, "versions": {"sae-atlas": bad}}
    dictionary = random_dictionary(
        hook_name=f"{HOOK} {bad}",
        hook_name_out=bad,
        model_name=f"[m](x) {bad}",
        sae_atlas=ours,
    )
    card = model_card(dictionary, replace(MEASURED, data=bad), 48, Export(folder=HOOK))
    card.encode()
    html = shown(card)
    assert "<script>" not in html
    assert "<a href" not in html
    # Text, setting, version, text of the figures, and the second hook twice.
    assert html.count(f"<code>{odd}</code>") == 6
    assert html.count(f"<code>{HOOK} {odd}</code>") == 3
    assert "<h1>hm" not in html
    assert f"A transcoder of [m](x) {odd} from <code>" in html


def test_a_foreign_record_of_a_training_is_not_taken_for_ours():
    card = card_of({"sae_atlas": OURS | {"imported": {"from": "them/theirs:layer_3@main"}}})
    assert "trained with sae-atlas" not in card
    assert "It came from `them/theirs:layer_3@main`. Where it was trained is not known" in card
    assert "## Training" not in card


@pytest.mark.parametrize("record", [None, {}, {"cache_digest": "abc"}])
def test_a_dictionary_without_our_record_has_a_card_that_does_not_know(record):
    about = {} if record is None else {"sae_atlas": record}
    card = card_of(about)
    assert "Where it was trained is not known here." in card
    assert "## Training" not in card
    assert "sae-atlas `" not in card


def test_a_record_of_odd_kinds_breaks_no_card():
    settings = {"sae": {"k": [3]}, "optim": {"lr": "x"}, "architecture": "matryoshka_batchtopk"}
    ours = OURS | settings | {"data": {"documents": [], "other": 3}, "training_tokens": 5}
    foreign = {"model_name": 5, "dataset_path": [], "prepend_bos": "yes", "transcoder": 1}
    foreign |= {"hf_hook_name": 7, "context_size": "1", "exclude_special_tokens": 1}
    card = card_of({**foreign, "sae_atlas": ours})
    assert "It was trained with sae-atlas `1` on 5 rows.\n" in card
    assert "It reads what stands at" in card
    assert "Its contexts are not known here." in card
    assert "# A sparse autoencoder of unknown at" in card
    assert "Where it was trained is not known here." in card_of(foreign | {"dataset_path": 9})


def test_what_the_files_of_another_tool_say_of_a_training_is_quoted():
    card = card_of({"sae_lens_training_version": "6.5|`x`", "dataset_path": "/home/me/`y`"})
    said = "Its files say that it was trained with SAELens `` 6.5|`x` `` on the text `` `y` ``."
    assert said in card
    assert "/home" not in card


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("org/lm", "org/lm"),
        ("org/name:folder/inside@v1", "org/name:folder/inside@v1"),
        ("/home/me/secret/layers.9", "layers.9"),
        ("../mine/layers.9/", "layers.9"),
        ("C:\\Users\\me\\mine", "mine"),
        ("~/texts/*.jsonl", "*.jsonl"),
        ("https://me:word@host/x/y.txt", "y.txt"),
    ],
)
def test_a_card_names_what_is_on_the_hub_and_of_a_path_its_last_part(name, expected):
    assert public(name) == expected
    card = card_of({"sae_atlas": {"imported": {"from": name}}})
    assert f"It came from `{expected}`." in card


CACHED = OURS | {
    "training_tokens": 99_328,
    "cache_digest": "abc",
    "data": {"name": "factbook", "held_out_fraction": 0.1, "documents": {"used": 3}},
}
ATLAS = sample_record(64, 0, cache_digest="abc", n_rows=20_319)


def test_the_card_counts_rows_once_and_says_how_often_they_were_seen():
    card = card_of({"sae_atlas": CACHED}, atlas=ATLAS)
    assert (
        "on about 18,287 rows of `factbook` (3 documents, 10% of the text held out), each seen "
        "5.4 times." in card
    )
    assert "On held-out text of `factbook`, special" in section(card, "Figures")


@pytest.mark.parametrize("other", [{"cache_digest": "other"}, {"n_rows": 200_000}])
def test_rows_that_were_not_all_seen_or_not_counted_are_no_repeats(other):
    card = card_of({"sae_atlas": CACHED}, atlas=replace(ATLAS, **other))
    assert "on 99,328 rows of `factbook` (3 documents, 10% of the text held out).\n" in card


SCORED = replace(
    ATLAS, n_scored=512, n_dials=143, n_nulls=24, max_cost=0.05, median_dial_cost=0.041
)


def test_the_card_says_how_many_features_are_dials_at_what_cost_and_how_many_are_by_chance():
    (said,) = section(card_of({"sae_atlas": OURS}, atlas=SCORED), "What it found").split("\n\n")
    assert said.strip() == (
        "Of 512 features that were scored by what they do to the model's output, 143 are "
        "dials: they make the tokens that they promote at least twice as likely, and raise "
        "them more than any of 24 random directions and 24 random features at equal cost, "
        "as at most about 10 would by chance; their recommended "
        "doses cost 0.041 nats a token of KL on neutral text (median, 0.05 were allowed)."
    )
    few = card_of({"sae_atlas": OURS}, atlas=replace(SCORED, n_scored=20, n_dials=0))
    assert "output, 0 are dials: " in few
    assert "as at most about 0.4 would by chance.\n" in few


def test_the_card_says_why_no_feature_was_scored_and_nothing_where_none_was_to_be():
    assert "What it found" not in card_of({"sae_atlas": OURS}, atlas=ATLAS)
    why = replace(ATLAS, without_dials="the <model> was not to be had")
    found = section(card_of({"sae_atlas": OURS}, atlas=why), "What it found")
    assert "No feature was scored as a dial: the \\<model\\> was not to be had.\n" in found


def test_the_figures_of_an_import_say_of_which_text_they_are():
    card = card_of({"sae_atlas": {"imported": {"from": "a/b"}}}, {"data": "/me/my.jsonl"})
    assert "On held-out text of `my.jsonl`, special tokens left out" in card


LOSSES = {"ce_loss_without_sae": 2.79, "ce_loss_with_ablation": 10.8}


def test_the_card_says_what_is_lost_in_shares_and_nats():
    figures = {"explained_variance": 0.735, **LOSSES, "ce_loss_with_sae": 4.19}
    card = card_of({"sae_atlas": OURS}, figures)
    limits = section(card, "What it is not good for")
    assert "- 26.5% of the variance is not in any feature.\n" in limits
    assert "loss rises from 2.79 to 4.19 nats a token.\n" in limits
    for row in (
        "nats a token, `CE_clean = mean −log p(next token)` | 2.79 |",
        "nats a token, `CE_sae` | 4.19 |",
        "nats a token, `CE_zero` | 10.8 |",
    ):
        assert row in section(card, "Figures")


def test_the_card_of_a_bad_dictionary_says_that_it_is_bad():
    figures = {"explained_variance": -1.53, **LOSSES, "ce_loss_with_sae": 14.4}
    limits = section(card_of({"sae_atlas": OURS}, figures), "What it is not good for")
    assert (
        "reconstructs worse than the mean activation would (explained variance -1.53)" in limits
    )
    assert "from 2.79 to 14.40 nats a token, no better than with zeros there (10.80)." in limits
    assert "%" not in limits


def test_an_encoder_has_no_word_on_ce():
    figures = section(card_of({"sae_atlas": OURS}, {"n_behaviour_tokens": 0}), "Figures")
    assert "CE" not in figures
    assert "KL" not in figures


def test_latents_that_were_left_out_count_as_dead_before_and_not_after():
    sides = {"explained_variance": 0.5, "l0": 3.0, "mse": 1.0, "cossim": 0.9}
    cost = ShrinkingCost(
        n_dropped=12, d_sae=60, n_rows=100, n_behaviour_tokens=0, before=sides, after=sides
    )
    card = card_of({"sae_atlas": OURS}, {"dead_fraction": 0.25}, shrunk=cost)
    assert "Dead" not in section(card, "Figures")
    dead = "| Dead features, share active in no row of the tables | 0.2 | 0 |"
    assert dead in section(card, "Made smaller")
    assert "| 0.25 |" in section(
        card_of({"sae_atlas": OURS}, {"dead_fraction": 0.25}), "Figures"
    )


def test_settings_that_are_switched_off_have_no_row():
    sae_settings = {"k": 7, "k_aux": None, "aligned": False, "warm_up": 0}
    card = card_of({"sae_atlas": OURS | {"sae": sae_settings}})
    rows = section(card, "Training")
    assert "`sae.k`" in rows
    assert "| `sae.warm_up` | `0` |" in rows
    assert "k_aux" not in rows
    assert "aligned" not in rows


@pytest.mark.parametrize("format", WRITTEN)
def test_tools_are_called_what_they_call_themselves(format):
    card = card_of({"sae_atlas": OURS}, format=format)
    titles = re.findall("### With (.*)", card)
    assert titles[1] == WRITTEN[format].title
    assert f"encoder and decoder for {WRITTEN[format].title}, float32" in card
    # The heading says it: no comment repeats it.
    assert not re.search(r"^from .*  #", card, re.M)


def test_where_nothing_is_on_the_hub_paths_start_in_the_folder():
    assert "Paths start in the folder of this file." in card_of({"sae_atlas": OURS})
    assert "Paths start" not in card_of({"sae_atlas": OURS}, repository="me/mine")


def test_the_examples_are_the_clearest_features_by_their_new_numbers(run, tmp_path):
    folder = sae.export(run=str(run), out=str(tmp_path / "out"), drop_dead=True)
    rows = re.findall(
        r"^\| (\d+) \| (.*) \| ([\d.e-]+)% \| (.*<b>.*) \|$", card_in(folder), re.M
    )
    table = pyarrow.parquet.read_table(folder / "features.parquet").to_pylist()
    order = [(f["logit_agreement"], f["max_activation"]) for f in table]
    best = sorted(range(len(table)), key=order.__getitem__, reverse=True)[:10]
    assert [int(row[0]) for row in rows] == best
    for feature, _, density, _ in rows:
        assert float(density) == pytest.approx(100 * table[int(feature)]["density"], rel=0.1)


def card_in(folder):
    return (folder / "README.md").read_text()


def example(label, tokens, peak, promoted=()):
    context = ExampleContext(tokens, peak, [0.0] * len(tokens))
    return Example(3, label, 0.00123, 1.0, list(promoted), [context])


@pytest.mark.parametrize(
    ("promoted", "rule"),
    [(["a"], "The 1 clearest of 48"), ([], "of 48 that fire the strongest")],
)
def test_the_card_says_by_what_rule_its_examples_were_chosen(promoted, rule):
    chosen = example("x", ["a", "b"], 0, promoted)
    found = section(card_of({"sae_atlas": OURS}, examples=[chosen]), "What it found")
    assert rule in found
    assert "| 3 | x | 0.12% | <b>a</b>b |" in found


@pytest.mark.parametrize(
    ("tokens", "peak", "text"),
    [
        (["On", " August", " 3", "1", ",", " it"], 3, "On August 3<b>1</b>, it"),
        (["a", "\n", "b"], 1, "a <b>↵</b> b"),
        (["a", "  ", "b"], 1, "a <b>␣</b> b"),
        (["x|y", " *z*", "<b>"], 1, "x|y <b>*z*</b>&lt;b&gt;"),
        (["<script>", "a`", "`"], 1, "&lt;script&gt;<b>a`</b>`"),
        (["\\", "\\(x", "$y$"], 1, "\\<b>\\(x</b>$y$"),
        (["a", "\u202eb", "\x1b"], 1, "a<b>�b</b>�"),
        (["so "] * 40 + ["here", *[" and"] * 40], 40, None),
        (
            ["see ", "http", "://bad.example/x|y"],
            1,
            "see <b>http</b><code>://bad.example/x|y</code>",
        ),
        (["", "me@x.example"], 1, "<b><code>me@x.example</code></b>"),
    ],
)
def test_the_text_of_an_example_is_shown_as_it_is_with_its_peak_bold(tokens, peak, text):
    from markdown_it import MarkdownIt

    for kind in ("commonmark", "gfm-like"):
        reader = MarkdownIt(kind, {"linkify": False}).enable("table")
        html = reader.render(example_table([example("|[l](x) <i>", tokens, peak)]))
        cells = re.findall("<td>(.*?)</td>", html, re.DOTALL)
        assert cells[:3] == ["3", "|[l](x) &lt;i&gt;", "0.12%"]
        assert len(cells) == 4
        assert "<a " not in html
        if text is None:
            text = f"…{'so ' * 15}<b>here</b>{' and' * 7}…"
        assert cells[3] == text


def test_the_card_quotes_the_figures_and_the_licence(exported, run):
    card = card_in(exported)
    figures = json.loads((run / "evals/strong.json").read_text())
    assert f"{1 - figures['explained_variance']:.1%} of the variance" in card or (
        f"(explained variance {figures['explained_variance']:.2f})" in card
    )
    assert "## Made smaller" not in card
    assert "`apache-2.0`." in card


FAMILIES = {
    "llama": {"num_key_value_heads": 2},
    "gpt2": {},
    "gpt_neox": {},
    "bert": {},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_hook_is_at_the_side_of_its_module_that_the_card_says(family):
    from transformers import AutoConfig, AutoModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = AutoConfig.for_model(family, **sizes, **FAMILIES[family])
    with torch.device("meta"):
        points = list_sites(AutoModel.from_config(config))
    assert points
    for point in points:
        # As a dictionary that was read in the model says it, and one from before sites.
        for path in (point.path, point.module):
            dictionary = random_dictionary(hook_name=point.hook_name, hf_hook_name=path)
            card = shown_card(dictionary)
            does = {"output": "puts out", "input": "is given"}[point.side]
            assert f"the module `{point.module}` of the model {does}" in card
    dictionary = random_dictionary(hook_name="x", hf_hook_name="model.layers.3.input")
    assert "the module `model.layers.3` of the model is given" in shown_card(dictionary)


@pytest.mark.parametrize("hook", ["hook_resid_post", "hook_resid_mid", "mlp.hook_post"])
@pytest.mark.parametrize("known", [True, False])
def test_the_code_for_activations_gets_what_a_harvest_does(hook, known, tiny_model):
    model = load_model(ModelConfig(name=str(tiny_model), device="cpu"))
    point = find_site(model.module, f"blocks.1.{hook}")
    ours = {"model": ModelRecord(str(tiny_model), str(tiny_model)).to_json()}
    if known:
        ours["bos_token_id"] = 0
    dictionary = random_dictionary(
        hook_name=point.hook_name,
        hf_hook_name=point.path,
        model_name=str(tiny_model),
        sae_atlas=ours,
        context_size=32,
    )
    card = model_card(dictionary, MEASURED, 48, Export(folder=HOOK))
    assert str(tiny_model.parent) not in card
    assert "contexts were 32 tokens long" in card
    code = re.search("## Get activations.*?```python\n(.*?)\n```", card, re.DOTALL)[1]
    found = executed(code, tiny_model.parent)
    expected = read_activations(model.module, [point], found["tokens"])[point.hook_name][0]
    torch.testing.assert_close(found["x"], expected[1:] if known else expected)
    assert found["tokens"][0, 0] == 0 or not known
    assert not found["place"]._forward_hooks
    assert not found["place"]._forward_pre_hooks


def test_the_code_for_activations_puts_the_recorded_tokens_around_the_text(tiny_model):
    model = load_model(ModelConfig(name=str(tiny_model), device="cpu"))
    point = find_site(model.module, "blocks.1.hook_resid_post")
    recorded = replace(model.record, begin=(3, 5), end=(1,))
    dictionary = random_dictionary(
        hook_name=point.hook_name,
        hf_hook_name=point.path,
        model_name=str(tiny_model),
        sae_atlas={"model": recorded.to_json()},
    )
    card = model_card(dictionary, MEASURED, 48, Export(folder=HOOK))
    code = re.search("## Get activations.*?```python\n(.*?)\n```", card, re.DOTALL)[1]
    found = executed(code, tiny_model.parent)
    text = model.tokenizer("The river ran past the old mill.", add_special_tokens=False)
    assert found["tokens"].tolist() == [[3, 5, *text["input_ids"], 1]]
    expected = read_activations(model.module, [point], found["tokens"])[point.hook_name][0]
    torch.testing.assert_close(found["x"], expected[2:-1])


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
    whole = sae.publishing.folder.save_directions

    def stuck(*arguments):
        whole(*arguments)
        half.set()
        time.sleep(600)

    sae.publishing.folder.save_directions = stuck
    sae.export(run=str(run), out=str(out))


@pytest.mark.slow
def test_a_killed_export_leaves_no_folder_and_the_next_one_cleans_up(run, tmp_path, processes):
    out, half = tmp_path / "out", processes.Event()
    process = processes.Process(target=half_an_export, args=(run, out, half))
    process.start()
    assert half.wait(60)
    with pytest.raises(UserError, match=r"is being made by another process \(process"):
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
        (["push=name"], "push=name is not the name of a repository; give ORG/NAME"),
        (["push=a/b/c"], "push=a/b/c is not the name of a repository; give ORG/NAME"),
        (["private=true"], "private=true has an effect only on the Hub; add push=ORG/NAME"),
        (["license='Apache 2'"], "license=Apache 2 is not a licence that the Hub knows"),
        (
            ["dtype=int4"],
            "dtype=int4 is unknown; choose one of float32, bfloat16, float16, int8",
        ),
        (["dtype=int8", "format=openai"], "only format=saelens records the type"),
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
    for name in (
        "dictionaries/strong/cfg.json",
        "evals/strong.json",
        "atlas/strong/atlas.json",
    ):
        text = (odd / name).read_text()
        unseal((odd / name).parent)
        (odd / name).write_text(text.replace(f'"{HOOK}"', '"../../elsewhere"'))
    with pytest.raises(
        UserError, match=r"belongs to the hook \.\./\.\./elsewhere, which cannot"
    ):
        sae.export(run=str(odd))
