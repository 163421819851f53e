"""Tools on top of SAELens with the folders that we write: the real packages."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.world import random_dictionary, sentences

from benchmarks import dashboard
from sae.dictionary.files import load_dictionary, loads_in_saelens, save_dictionary
from sae.edits import ALL, Edit, Splice, edited
from sae.models.hooks import find_site
from sae.models.load import ModelConfig, load_model
from sae.models.unembed import unembedding

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

HOOK = "blocks.1.hook_resid_post"
MLP = {"hook_name": "blocks.1.hook_resid_mid", "hook_name_out": "blocks.1.hook_mlp_out"}
D_IN, D_SAE = 32, 48


def close(found, expected, within=1e-5):
    """Equal to a share of the largest entry."""
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=within, atol=within * scale)


# -- HookedSAETransformer ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(lens_folder):
    """The tiny model in SAELens's class and in ours, and token ids."""
    sae_lens = pytest.importorskip("sae_lens")
    theirs = sae_lens.HookedSAETransformer.from_pretrained_no_processing(
        str(lens_folder), device="cpu"
    )
    ours = load_model(ModelConfig(name=str(lens_folder)))
    ids = ours.tokenizer(sentences(4, seed=3), return_tensors="pt", padding=True).input_ids
    return theirs, ours, ids[:, :20]


SPLICED = [
    *((architecture, HOOK) for architecture in ("standard", "jumprelu", "topk", "gated")),
    *(("standard", f"blocks.1.{place}") for place in ("hook_resid_pre", "hook_mlp_out")),
    ("standard", "blocks.1.attn.hook_z"),
]


def logits_with(ours, dictionary, ids):
    """The model's logits where a dictionary's reconstruction stands at its hook."""
    source = find_site(ours.module, dictionary.hook_name)
    point = find_site(ours.module, dictionary.hook_name_out)
    edits = [Edit(point, Splice(dictionary), ALL, source)]
    with torch.inference_mode(), edited(ours.module, edits):
        return ours.module(ids, use_cache=False).logits


@pytest.mark.parametrize(("architecture", "hook_name"), SPLICED)
def test_a_model_with_our_folder_spliced_in_says_what_it_says_with_our_own_hook(
    architecture, hook_name, both, tmp_path
):
    from sae_lens import SAE

    theirs, ours, ids = both
    dictionary = random_dictionary(architecture, model_name="a", hook_name=hook_name)
    save_dictionary(dictionary, tmp_path / "folder")
    sae = SAE.load_from_disk(str(tmp_path / "folder"))
    if hook_name.endswith("hook_z"):
        sae.turn_on_forward_pass_hook_z_reshaping()
    with torch.inference_mode():
        clean = theirs(ids)
        close(clean, ours.module(ids, use_cache=False).logits, 1e-4)
        spliced, cache = theirs.run_with_cache_with_saes(ids, saes=[sae])
    close(spliced, logits_with(ours, dictionary, ids), 1e-4)
    assert float((spliced - clean).abs().max()) > 0.1 * float(clean.abs().max())
    acts = cache[f"{hook_name}.hook_sae_acts_post"]
    close(dictionary.encode(cache[f"{hook_name}.hook_sae_input"]), acts)


def test_saelenss_bridge_splices_our_folder_into_a_model_of_transformers(
    both, lens_folder, tmp_path
):
    """For models that TransformerLens has no list of, as SmolLM2 is one."""
    from sae_lens import SAE
    from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge

    _, ours, ids = both
    dictionary = random_dictionary("topk", model_name="a", hook_name=HOOK)
    save_dictionary(dictionary, tmp_path / "folder")
    sae = SAE.load_from_disk(str(tmp_path / "folder"))
    bridge = SAETransformerBridge.boot_transformers(
        str(lens_folder), device="cpu", dtype=torch.float32
    )
    with torch.inference_mode():
        close(bridge(ids), ours.module(ids, use_cache=False).logits, 1e-4)
        spliced = bridge.run_with_saes(ids, saes=[sae])
    close(spliced, logits_with(ours, dictionary, ids), 1e-4)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("architecture", ["standard", "jumprelu"])
def test_a_model_with_our_transcoder_spliced_in_says_what_it_says_with_our_own_hook(
    architecture, skip, both, tmp_path
):
    from sae_lens import SAE

    theirs, ours, ids = both
    dictionary = random_dictionary(architecture, d_out=D_IN, skip=skip, model_name="a", **MLP)
    assert loads_in_saelens(dictionary)
    save_dictionary(dictionary, tmp_path / "folder")
    sae = SAE.load_from_disk(str(tmp_path / "folder"))
    with torch.inference_mode():
        spliced = theirs.run_with_saes(ids, saes=[sae])
    # Its wrapper calls encode and decode, where no skip connection is.
    alone = replace(dictionary, W_skip=None)
    close(spliced, logits_with(ours, alone, ids), 1e-4)


def test_the_error_term_of_our_folder_gives_the_models_own_logits(both, tmp_path):
    from sae_lens import SAE

    theirs, _, ids = both
    save_dictionary(
        random_dictionary("gated", model_name="a", hook_name=HOOK), tmp_path / "folder"
    )
    sae = SAE.load_from_disk(str(tmp_path / "folder"))
    with torch.inference_mode():
        close(theirs.run_with_saes(ids, saes=[sae], use_error_term=True), theirs(ids), 1e-4)


# -- folding, as SAEDashboard and Neuronpedia do it -------------------------------------------


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "topk", "gated"])
def test_saelens_folds_the_norms_of_our_folders_without_changing_what_they_do(
    architecture, tmp_path
):
    sae_lens = pytest.importorskip("sae_lens")
    dictionary = random_dictionary(architecture, model_name="a", hook_name=HOOK)
    if architecture == "topk":
        norms = dictionary.W_dec.norm(dim=1, keepdim=True)
        dictionary = dictionary.with_weights({"W_dec": dictionary.W_dec / norms})
    save_dictionary(dictionary, tmp_path / "folder")
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path / "folder"))
    x = 3 * torch.randn(300, D_IN, generator=torch.Generator().manual_seed(1)) + 1
    norms = dictionary.W_dec.norm(dim=1)
    theirs.fold_W_dec_norm()
    with torch.no_grad():
        close(theirs.encode(x), dictionary.encode(x) * norms)
        close(theirs(x), dictionary(x))
    # A folder of unit rows comes back bit by bit, though SAELens is told that it may fold.
    assert load_dictionary(tmp_path / "folder").digest == dictionary.digest


def test_top_k_whose_rows_differ_in_norm_is_not_folded(tmp_path):
    sae_lens = pytest.importorskip("sae_lens")
    dictionary = random_dictionary("topk", model_name="a", hook_name=HOOK)
    save_dictionary(dictionary, tmp_path / "folder")
    with pytest.raises(NotImplementedError, match="may change the topk activations"):
        sae_lens.SAE.load_from_disk(str(tmp_path / "folder")).fold_W_dec_norm()


# -- SAEDashboard -----------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "topk", "gated"])
def test_saedashboard_finds_in_our_folder_what_a_dense_computation_finds(
    architecture, both, tmp_path
):
    pytest.importorskip("sae_dashboard")
    _, ours, _ = both
    draw = torch.Generator().manual_seed(4)
    prompts, positions, features = 24, 32, [0, 3, 7, 20]
    rows = 3 * torch.randn(prompts, positions, D_IN, generator=draw)
    tokens = torch.randint(2, len(ours.tokenizer), (prompts, positions), generator=draw)
    # It leaves out the first token of a prompt, whatever it is.
    tokens[:, 0] = 0
    dictionary = random_dictionary(architecture, model_name="a", hook_name=HOOK)
    if architecture == "topk":
        norms = dictionary.W_dec.norm(dim=1, keepdim=True)
        dictionary = dictionary.with_weights({"W_dec": dictionary.W_dec / norms})
    save_dictionary(dictionary, tmp_path / "folder")
    dashboard.cache_activations(rows, HOOK, tmp_path / "rows", 8)
    data = dashboard.dashboards(
        Path(tmp_path / "folder"),
        unembedding(ours.module),
        tokens,
        features,
        tmp_path / "rows",
        minibatch_size_tokens=8,
        minibatch_size_features=4,
        ignore_tokens={0},
    )
    # SAEDashboard folds the norms of the decoder's rows.
    acts = dictionary.encode(rows) * dictionary.W_dec.norm(dim=1)
    found = dashboard.found(data)
    assert sorted(found) == features
    for feature, one in found.items():
        mine = acts[..., feature] * (tokens != 0)
        assert one.n_active == int((mine > 0).sum())
        top = mine.flatten().topk(3).values
        assert one.top_values[:3] == pytest.approx(top.tolist(), rel=1e-3, abs=1e-3)
        for (prompt, position), value in zip(one.top_places, one.top_values, strict=True):
            assert float(mine[prompt, position]) == pytest.approx(value, rel=1e-3, abs=1e-3)
