"""What a dictionary reads, for its card: the place, the text, and code that gets such rows."""

from sae.dictionary import Dictionary
from sae.models import ModelRecord, Site
from sae.models.load import DTYPES
from sae.publishing.card.text import code, public, quoted

_KEEP = {
    "output": """\
def keep(module, args, output):
    seen.append(output[0] if isinstance(output, tuple) else output)


hook = place.register_forward_hook(keep)""",
    "input": """\
def keep(module, args, kwargs):
    seen.append(args[0] if args else kwargs["hidden_states"])


hook = place.register_forward_pre_hook(keep, with_kwargs=True)""",
}

_PLAIN = (
    "The model's weights are as they come, nothing folded or centred: in TransformerLens that "
    "is `from_pretrained_no_processing`. "
)


def input_section(dictionary: Dictionary) -> str:
    """A section that says where `x` is from; code with it if the module is known."""
    site = dictionary.reads[0].site
    if site is None:
        return (
            f"It reads what stands at {code(dictionary.hook_name)}. {_PLAIN}"
            f"{_about_text(dictionary)}\n"
        )
    reads = {"output": "puts out", "input": "is given"}[site.side]
    return f"""\
It reads what the module {code(site.module)} of the model {reads}. {_PLAIN}\
{_about_text(dictionary)}

```python
{_code(dictionary, site)}
```
"""


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
    """The token that stood before every text, where the model is one that takes it alone."""
    record = dictionary.record
    causal = record.model is None or record.model.causal
    return record.bos_token_id if causal else None


def _code(dictionary: Dictionary, site: Site) -> str:
    model = dictionary.record.model or ModelRecord("", "")
    kind = model.class_name
    classes = ", ".join(sorted((kind, "AutoTokenizer")))
    dtype = model.dtype if model.dtype in DTYPES else "float32"
    bos = _bos(dictionary)
    text = '"The river ran past the old mill."'
    if bos is None:
        tokens = f'tokens = tokenizer({text}, return_tensors="pt").input_ids'
        rows = "x = seen[0][0].float()  # a row a token, special tokens too"
    else:
        tokens = (
            f"ids = tokenizer({text}, add_special_tokens=False).input_ids\n"
            f"tokens = torch.tensor([[{bos}, *ids]])"
        )
        rows = "x = seen[0][0, 1:].float()  # a row a token"
    at = "" if model.revision is None else f", revision={quoted(model.revision)}"
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
