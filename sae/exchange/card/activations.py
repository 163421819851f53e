"""What a dictionary reads, for its card: the place, the text, and code that gets such rows."""

from sae.dictionary import Dictionary
from sae.exchange.card.text import code, part, public, quoted

_AT_INPUT = ("hook_resid_pre", "hook_resid_mid", "attn.hook_z", "mlp.hook_post")
_BEFORE_NORM = ("hook_resid_post", "output.LayerNorm")
"""BERT's hook, and the module at whose input it is."""
_DTYPES = ("float32", "bfloat16", "float16")
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
    module = dictionary.metadata.get("hf_hook_name")
    if not isinstance(module, str) or not module:
        return (
            f"It reads what stands at {code(dictionary.hook_name)}. {_PLAIN}"
            f"{_about_text(dictionary)}\n"
        )
    module, side = hook_side(dictionary.hook_name, module)
    reads = {"output": "puts out", "input": "is given"}[side]
    return f"""\
It reads what the module {code(module)} of the model {reads}. {_PLAIN}{_about_text(dictionary)}

```python
{_code(dictionary, module, side)}
```
"""


def hook_side(hook_name: str, module: str) -> tuple[str, str]:
    """The module of a hook, and whether it is its `"output"` or `"input"`.

    Args:
        module: its path, in some files with `.output` or `.input` behind it.
    """
    path, _, side = module.rpartition(".")
    if side in _KEEP:
        return path, side
    hook, before_norm = _BEFORE_NORM
    at_norm = hook_name.endswith(hook) and module.endswith(before_norm)
    return module, "input" if hook_name.endswith(_AT_INPUT) or at_norm else "output"


def _about_text(dictionary: Dictionary) -> str:
    size = dictionary.metadata.get("context_size")
    bos = _bos(dictionary)
    said = []
    if type(size) is int:
        said.append(f"contexts were {size:,} tokens long")
    if bos is not None:
        said.append(f"each context began with the token {bos}")
    if dictionary.metadata.get("exclude_special_tokens") is True:
        said.append("rows of special tokens were left out")
    return f"In training {'; '.join(said)}." if said else "Its contexts are not known here."


def _bos(dictionary: Dictionary) -> int | None:
    """The token that stood before every text, where the model is one that takes it alone."""
    ours = part(dictionary.metadata, "sae_atlas")
    found = part(ours, "bos_token_id")
    causal = part(ours, "model", "causal") is not False
    return found if type(found) is int and causal else None


def _code(dictionary: Dictionary, module: str, side: str) -> str:
    model = part(dictionary.metadata, "sae_atlas", "model")
    kind = "AutoModel" if part(model, "causal") is False else "AutoModelForCausalLM"
    classes = ", ".join(sorted((kind, "AutoTokenizer")))
    dtype = part(model, "dtype")
    dtype = dtype if dtype in _DTYPES else _DTYPES[0]
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
    revision = part(model, "revision")
    at = "" if not isinstance(revision, str) else f", revision={quoted(revision)}"
    return f"""\
import torch
from transformers import {classes}

name = {quoted(public(dictionary.model_name))}
tokenizer = AutoTokenizer.from_pretrained(name{at})
model = {kind}.from_pretrained(name{at}, dtype=torch.{dtype})
{tokens}
place = model.get_submodule({quoted(module)})
seen = []


{_KEEP[side]}
with torch.no_grad():
    model(tokens)
hook.remove()
{rows}"""
