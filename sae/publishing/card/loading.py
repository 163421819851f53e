"""The code in a card: how to load what was exported, what it reads, and queries of its tables.

What is in a folder is named relative to it; what is on the Hub by its repository.
"""

from sae.dictionary import Dictionary
from sae.dictionary.files import WEIGHTS_FILE, loads_in_saelens
from sae.dictionary.storage import FULL, INT8
from sae.exchange.formats import named_format
from sae.exchange.formats.saelens import SAELens
from sae.exchange.public import public
from sae.exchange.stamp import DIRECTIONS_FILE
from sae.models import ModelRecord, Site
from sae.models.load import DTYPES
from sae.publishing.card.text import code, plain, quoted

_SAELENS_ON_THE_HUB = """\
from sae_lens import SAE

dictionary = SAE.from_pretrained({repository}, {folder}, dtype="{dtype}")"""
_FETCHING = """\
import os

from huggingface_hub import snapshot_download

os.chdir(snapshot_download({repository}))
"""
_NOTHING_OF_OURS = (
    "`sae` is sae-atlas, installed with `pip install .` in a clone of its repository; only the "
    "first way needs it.\n\n"
)
_ABOUT = {
    False: _NOTHING_OF_OURS,
    True: f"Paths start in the folder of this file. {_NOTHING_OF_OURS}",
}
_ROWS = "rows of activations; how to get real ones is below"
_KEEP = {
    "output": """\
def keep(module, args, output):
    seen.append(output[0] if isinstance(output, (tuple, list)) else output)


hook = place.register_forward_hook(keep)""",
    "input": """\
def keep(module, args, kwargs):
    seen.append(args[0] if args else kwargs["hidden_states"])


hook = place.register_forward_pre_hook(keep, with_kwargs=True)""",
}
_UNFOLDED = (
    "The model's weights are as they come, nothing folded or centred: in TransformerLens that "
    "is `from_pretrained_no_processing`. "
)
_SCALES = {"W_enc": "", "W_dec": "[:, None]", "W_skip": "[:, None]"}


def loading(
    dictionary: Dictionary, folder: str, format: str, dtype: str, repository: str | None
) -> str:
    """Return a section a tool: ours, the format's own, and none but torch and safetensors.

    The dictionary is in a `folder` of the export, which may be a `repository` on the Hub.
    """
    where = folder if repository is None else f"{repository}:{folder}"
    ours = f"""\
import sae
import torch

dictionary = sae.load({quoted(where)})
x = torch.randn(4, {dictionary.d_in})  # {_ROWS}
acts = dictionary.encode(x)  # (4, {dictionary.d_sae})"""
    sections = {"With sae-atlas": ours}
    tool = named_format(format)
    local = tool.load.format(folder=quoted(folder)[1:-1])
    on_the_hub = {"repository": quoted(repository or ""), "folder": quoted(folder)}
    if format != SAELens.name:
        # Tools that know nothing of the Hub are given a folder, and run in it.
        fetching = "" if repository is None else _FETCHING.format(**on_the_hub)
        sections[f"With {tool.title}"] = fetching + local
    else:
        if loads_in_saelens(dictionary, dtype):
            from_hub = _SAELENS_ON_THE_HUB.format(**on_the_hub, dtype=dtype)
            sections["With SAELens"] = local if repository is None else from_hub
        title = "With torch and safetensors alone"
        sections[title] = _plain(dictionary, folder, dtype, repository)
    sections["The decoder's directions alone"] = _directions(dtype, repository)
    return _ABOUT[repository is None] + "\n".join(
        f"### {title}\n\n```python\n{lines}\n```\n" for title, lines in sections.items()
    )


def queries(repository: str | None) -> str:
    """Each a line: the tables in datasets, pandas, polars and duckdb."""
    data = '"parquet", data_files="contexts.parquet"'
    if repository is not None:
        data = f'{quoted(repository)}, "contexts"'
    place = "" if repository is None else f"hf://datasets/{repository}/"
    features, labels = f"{place}features.parquet", f"{place}labels.csv"
    return f'''\
```python
import datasets
import duckdb
import pandas
import polars

contexts = datasets.load_dataset({data}, split="train")
text = "".join(contexts[0]["tokens"])  # what a context says
often = pandas.read_parquet({quoted(features)}).nlargest(10, "density")
alive = polars.scan_parquet({quoted(features)}).filter(polars.col("n_active") > 0).collect()
named = duckdb.sql("""
    SELECT feature, l.label, density FROM '{features}' JOIN '{labels}' l USING (feature)
    ORDER BY density DESC LIMIT 10
""").df()
```
'''


def _file(name: str, repository: str | None) -> tuple[str, str]:
    """Return a line that imports what finds a file, or none, and the path of the file."""
    if repository is None:
        return "", quoted(name)
    importing = "from huggingface_hub import hf_hub_download\n"
    return importing, f"hf_hub_download({quoted(repository)}, {quoted(name)})"


def _plain(dictionary: Dictionary, folder: str, dtype: str, repository: str | None) -> str:
    importing, path = _file(f"{folder}/{WEIGHTS_FILE}", repository)
    activation = dictionary.activation
    gate = activation.names_in_file.get("b_enc", "b_enc")
    lines = activation.code
    for name, number in activation.numbers.items():
        lines = lines.replace(f"{{{name}}}", str(number))
    (by, back) = (port.normalisation for port in dictionary.ports)
    x = f"x = torch.randn(4, {dictionary.d_in})  # {_ROWS}"
    skip = "" if dictionary.W_skip is None else ' + x @ w["W_skip"].T'
    if by is not None:
        # A skip connection takes rows as they are.
        x, skip = f"raw = {x}\n{by.code}", skip.replace("+ x", "+ raw")
    x_hat = 'acts @ w["W_dec"] + w["b_dec"]'
    if back is not None:
        x_hat = f"({x_hat}){back.undone}"
    return f"""\
import torch
{importing}from safetensors.torch import load_file

{_weights("w", path, dtype, tuple(n for n in _SCALES if n in dictionary.tensors))}
{x}
pre = x @ w["W_enc"] + w["{gate}"]
{lines}
x_hat = {x_hat}{skip}"""


def _weights(name: str, path: str, dtype: str, scaled: tuple[str, ...]) -> str:
    if dtype == FULL:
        return f"{name} = load_file({path})"
    lines = f"{name} = {{key: value.float() for key, value in load_file({path}).items()}}"
    if dtype == INT8:
        for key in scaled:
            lines += f'\n{name}["{key}"] *= {name}["{key}_scale"]{_SCALES[key]}'
    return lines


def _directions(dtype: str, repository: str | None) -> str:
    importing, path = _file(DIRECTIONS_FILE, repository)
    return f"""\
{importing}from safetensors.torch import load_file

{_weights("decoder", path, dtype, ("W_dec",))}
direction = decoder["W_dec"][0]  # what feature 0 adds, times its activation"""


def input_section(dictionary: Dictionary) -> str:
    """Return a section that says where `x` is from; code with it if the module is known."""
    site = dictionary.reads[0].site
    if site is None:
        return (
            f"It reads what stands at {code(dictionary.hook_name)}. {_UNFOLDED}"
            f"{_about_weights(dictionary)}{_about_text(dictionary)}\n"
        )
    reads = {"output": "puts out", "input": "is given"}[site.side]
    return f"""\
It reads what the module {code(site.module)} of the model {reads}. {_UNFOLDED}\
{_about_weights(dictionary)}{_about_text(dictionary)}

```python
{_code(dictionary, site)}
```
"""


def _about_weights(dictionary: Dictionary) -> str:
    """Return which weights the activations are of, and how to tell whether one has them."""
    model = dictionary.record.model
    if model is None or not model.weights_known:
        return ""
    origin = "" if model.origin is None else f", {plain(model.origin)}"
    others = "" if model.origin is None else " The Hub's weights give other activations."
    return (
        f"Their digest is {code(model.weight_digest)} (in {code(model.dtype)}{origin})."
        f"{others} {code('sae.check_model(dictionary, name)')} tells how far another model is "
        "from this one. "
    )


def _about_text(dictionary: Dictionary) -> str:
    size = dictionary.record.context_size
    bos = _bos(dictionary)
    said = []
    if size is not None:
        said.append(f"contexts were {size:,} tokens long")
    if bos is not None:
        said.append(f"each context began with the token {bos}")
    if dictionary.record.exclude_special_tokens:
        said.append("rows of special tokens were left out")
    return f"In training {'; '.join(said)}." if said else "Its contexts are not known here."


def _bos(dictionary: Dictionary) -> int | None:
    """Return the token that stood before every text, where the model takes one alone."""
    record = dictionary.record
    causal = record.model is None or record.model.causal
    return record.bos_token_id if causal else None


def _tokens(dictionary: Dictionary, site: Site) -> tuple[str, str]:
    """Return code that makes the tokens of a text, and code that takes the rows of the text."""
    # Some modules have the tokens of all sequences in one row; here there is one sequence.
    seen = f"seen[{site.call or 0}]" if site.flat else f"seen[{site.call or 0}][0]"
    text = '"The river ran past the old mill."'
    bos, model = _bos(dictionary), dictionary.record.model
    begin: tuple[int, ...] = () if bos is None else (bos,)
    end: tuple[int, ...] = ()
    if model is not None and model.begin is not None and model.end is not None:
        begin, end = model.begin, model.end
    elif bos is None:
        tokens = f'tokens = tokenizer({text}, return_tensors="pt").input_ids'
        return tokens, f"x = {seen}.float()  # a row a token, special tokens too"
    inside = ", ".join([*map(str, begin), "*ids", *map(str, end)])
    taken = f"{len(begin) or ''}:{-len(end) or ''}"
    return (
        f"ids = tokenizer({text}, add_special_tokens=False).input_ids\n"
        f"tokens = torch.tensor([[{inside}]])",
        f"x = {seen}[{taken}].float()  # a row a token",
    )


def _code(dictionary: Dictionary, site: Site) -> str:
    model = dictionary.record.model or ModelRecord("", "")
    kind = model.class_name
    classes = ", ".join(sorted((kind, "AutoTokenizer")))
    dtype = model.dtype if model.dtype in DTYPES else "float32"
    tokens, rows = _tokens(dictionary, site)
    at = "" if model.revision is None else f", revision={quoted(model.revision)}"
    at += ", trust_remote_code=True" if model.trust_remote_code else ""
    return f"""\
import torch
from transformers import {classes}

name = {quoted(public(dictionary.model_name))}
tokenizer = AutoTokenizer.from_pretrained(name{at})
model = {kind}.from_pretrained(name{at}, dtype=torch.{dtype})
{tokens}
place = model.get_submodule({quoted(site.module)})
seen = []


{_KEEP[site.side]}
with torch.no_grad():
    model(tokens)
hook.remove()
{rows}"""
