"""`docs/formats.md`, made by writing dictionaries in every format and reading them."""

import tempfile
from pathlib import Path

import torch
from support.world import random_dictionary

from sae.dictionary import ACTIVATIONS, Dictionary
from sae.dictionary.metadata import metadata_of
from sae.exchange.formats import (
    FORMATS,
    WRITTEN,
    Written,
    read_dictionary,
    write_dictionary,
)

PAGE = Path(__file__).parents[2] / "docs/formats.md"
ENDS = {"hook_name": "blocks.1.hook_resid_mid", "hook_name_out": "blocks.1.hook_mlp_out"}
KINDS = {
    "autoencoder": {"hook_name": "blocks.1.hook_resid_post"},
    "transcoder": {"d_out": 32, **ENDS},
    "skip transcoder": {"d_out": 32, "skip": True, **ENDS},
    "to another width": {"d_out": 20, **ENDS},
}
HEAD = """\
# Formats

Dictionaries of other tools, read and written: `sae.load(path)`, `sae import FOLDER run=...`,
`sae export format=...`. A path is a folder, or on the Hub `ORG/NAME:FOLDER@REVISION`; the
revision, which may also come before the folder, is for another state than the newest. The
folder may be left out where a repository holds one dictionary, as an export of ours does, and
a folder with one dictionary somewhere below is that one as well. Of OpenAI's and Qwen's it is
a file, on the Hub `Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_50:layer5.sae.pt`. A format is told from
the files in a folder, `format=...` overrides that. What is written computes the same, to the
rounding of float32, or is refused with the reason. Beside the files of a format we write
`sae_atlas.json` with all of our metadata, which other tools do not look at.

This page is written by `pytest --write-pages tests/exchange`, which writes every kind of
dictionary in every format and reads it again; a test asserts that it is up to date.

## What is written, and read again

"yes" means that activations, reconstruction and our metadata came back the same; the numbers
are reasons, below the table.
"""
OTHERS = """
## What SAELens reads of these by its own loaders

Our own folder is SAELens's. Of the others it has loaders for releases that it lists, which
`SAE.from_pretrained` takes as `converter=`; `test_formats_saelens_loaders.py` in
`tests/exchange/` runs them.

| format | loader of SAELens 6.54 | what it makes of our files |
|---|---|---|
| gemma_scope | `gemma_2`, `gemma_2_transcoder` | the same, in a repository named as Gemma \
Scope's, from which it takes model, layer and widths |
| gemma_scope_2 | `gemma_3` | the same, in folders named as Gemma Scope 2's |
| dictionary_learning | `dictionary_learning_1` | the same of topk, gated and jumprelu; \
`AutoEncoderNew`, which standard is written as, it does not know |
| sparsify | `sparsify` | an error, as it turns the decoder around |
| openmoss | `llama_scope`, `llama_scope_r1_distill` | nothing, they are for files of before \
June 2025; of these they leave out that norms of the decoder decide |
| openai | none | |
| qwen_scope | `qwen_scope` | we write none; of Qwen's files it makes the same as we do |

## What is read besides

| format | what | becomes |
|---|---|---|
| saelens | folders from before version 6: flat configuration, `activation_fn: topk`, \
`log_threshold` | what version 6 makes of them |
| saelens | `apply_b_dec_to_input`, `rescale_acts_by_decoder_norm` | folded into the weights |
| saelens | `normalize_activations: layer_norm` or `constant_norm_rescale` | done to \
each row, and undone in what an autoencoder reconstructs; written back as it is |
| saelens | `expected_average_only_in` and `constant_scalar_rescale` with their number in the \
file: `norm_scaling_factor`, `activation_normalization_factor` | folded into the weights |
| saelens | `dtype: int8` with scales beside the weights, ours alone | float32 |
| sparsify | runs and repositories with a folder for each hookpoint, and seeds in these | each \
folder is one dictionary |
| dictionary_learning | `AutoEncoder`, which subtracts its bias | standard, folded; latents \
keep the file's scale |
| dictionary_learning | `BatchTopKSAE`, `MatryoshkaBatchTopKSAE` | jumprelu with their one \
threshold for all; the groups stay in the metadata |
| openai | `TopK` | topk that reads each row less its mean over its standard deviation \
(`layer_norm`), and undoes it |
| openmoss | `norm_activation: token-wise` of an autoencoder | `constant_norm_rescale` |
| openmoss | `norm_activation: dataset-wise` | folded into the weights, thresholds too |
| openmoss | `sparsity_include_decoder_norm` with jumprelu | thresholds over the norms |
| openmoss | `sparsity_include_decoder_norm` with topk | activations times the norms, rows of \
the decoder over them |
| openmoss | Llama Scope's first release, with `hyperparams.json` | what its own loader made \
of it: unit rows of the decoder, and a threshold for all in that scale |
| openmoss | tensors of linear layers, as until June 2025; Llama Scope R1-Distill has these | \
by the same formula |
| openmoss | `apply_decoder_bias_to_pre_encoder`, until then as well | folded into the weights |
| gemma_scope | transcoders | jumprelu; the hooks are to be given |
| saelens, sparsify, gemma_scope, gemma_scope_2 | transcoders that do not say to which hook | \
transcoders; `sae import` asks for `hook_name_out` |
| gemma_scope_2 | affine transcoders | jumprelu with a skip connection |
| qwen_scope | the 14 repositories `Qwen/SAE-Res-MODEL-W32K-L0_50`, one file a layer | topk; \
model, width and k are in the name of the repository, or of a folder or link named like it, of \
which `L0_50` at the end will do |
| qwen_scope | rows with fewer than k latents above zero | these alone, as in SAELens; the \
code in Qwen's cards adds the largest of those below |
| all with safetensors | weights in several parts, with `NAME.safetensors.index.json` | one \
dictionary |

## What is refused, and why

| format | what | reason |
|---|---|---|
| saelens | `expected_average_only_in` without its `norm_scaling_factor` | the number is in no \
file |
| saelens | `covariance_whitening`: checkpoints of a training | `save_inference_model` folds \
it |
| saelens | `batchtopk` and `matryoshka_batchtopk`: checkpoints of a training | the threshold \
is found by `save_inference_model` |
| sparsify | `groupmax`, `signed` | other activations than a dictionary has |
| dictionary_learning | `CrossCoder` | reads several hooks at once |
| dictionary_learning | a batch's top-k whose threshold was never set | depends on the batch |
| openmoss | `batch-wise` norms; `token-wise` ones of 2024, and of transcoders | depend on the \
batch, or on a row that is not read |
| openmoss | `batchtopk` | depends on the batch |
| openmoss | GLU encoders, crosscoders, cross-layer transcoders, Lorsa, MOLT | more than one \
product with x, or of several hooks |
| gemma_scope | autoencoders of the embedding | read it before it is scaled, where no hook is |
| gemma_scope_2 | crosscoders, cross-layer transcoders | of several hooks |
| qwen_scope | a folder whose name does not end in k, or says another width | k is in no file |
| all | NaN, infinity, missing, unknown or misshapen tensors, a configuration that contradicts \
the weights, code in a pickle, sizes that a file does not hold | are no dictionary |
| all | weights that overflow float32 once biases and scales are folded | could not be \
computed with |
| all | `sae_atlas` in the metadata that is not as we write it | would be taken at its word |

Pickles are read with `weights_only=True`, and sizes come from headers before memory is taken.
"""


def rows() -> torch.Tensor:
    return 3 * torch.randn(400, 32, generator=torch.Generator().manual_seed(1)) + 1


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool(torch.allclose(found, expected, rtol=1e-5, atol=1e-5 * float(expected.max())))


def cell(format: Written, dictionary: Dictionary, folder: Path, reasons: list[str]) -> str:
    """What a format makes of a dictionary; a reason why not joins `reasons`."""
    reason = format.cannot_hold(dictionary)
    if reason is not None:
        if reason not in reasons:
            reasons.append(reason)
        return f"no ({reasons.index(reason) + 1})"
    write_dictionary(dictionary, folder, format.name)
    again, x = read_dictionary(folder), rows()
    assert same(again.encode(x), dictionary.encode(x))
    assert same(again(x), dictionary(x))
    assert metadata_of(dictionary).items() <= metadata_of(again).items()
    if again.architecture != dictionary.architecture:
        return f"yes, as {again.architecture}"
    return "yes"


def page() -> str:
    """The page's text."""
    lines = [HEAD, f"| format | architecture | {' | '.join(KINDS)} |"]
    lines.append("|" + "---|" * (2 + len(KINDS)))
    reasons: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, format in WRITTEN.items():
            for architecture in ACTIVATIONS:
                cells = []
                for kind, settings in KINDS.items():
                    dictionary = random_dictionary(architecture, **settings)
                    folder = Path(scratch) / f"{name}-{architecture}-{kind}"
                    cells.append(cell(format, dictionary, folder, reasons))
                lines.append(f"| {name} | {architecture} | {' | '.join(cells)} |")
    only_read = [name for name in FORMATS if name not in WRITTEN]
    lines += [f"| {name} | all |{' only read |' * len(KINDS)}" for name in only_read]
    lines += ["", *(f"{i}. {reason}" for i, reason in enumerate(reasons, 1))]
    lines += ["", "## What does not reach the other tool", "", "| format | lost |", "|---|---|"]
    lines += [f"| {name} | {format.lost} |" for name, format in WRITTEN.items()]
    return "\n".join(lines) + "\n" + OTHERS


def test_the_page_of_formats_is_up_to_date(check_page):
    check_page(PAGE, page())
