"""`Site`: one place in one model, found once and recorded with whatever was read there."""

import re
from dataclasses import asdict, dataclass, replace
from typing import Literal

from sae.base import JsonObject

Side = Literal["input", "output"]

_AT_INPUT = (
    "hook_resid_pre",
    "hook_resid_mid",
    "attn.hook_z",
    "mlp.hook_post",
    "mlp.hook_in",
    "hook_mlp_in",
)
_MIDDLE = "hook_resid_mid"
_STREAM_NAMES = (
    "hook_resid_pre",
    "hook_resid_mid",
    "hook_resid_post",
    "hook_normalized_resid_post",
    "hook_attn_out",
    "hook_mlp_out",
)


@dataclass(frozen=True, slots=True)
class Site:
    """The input or the output of one module of a model, under the name that people use.

    `blocks.1.hook_resid_mid` of a Llama, for example, is the input of
    `model.layers.1.post_attention_layernorm`, 2048 wide and in the residual stream.
    """

    hook_name: str
    """TransformerLens's name where the place has one, else the module's path."""
    module: str
    """Path of the module in the Hugging Face model."""
    side: Side
    """Whether the activations are what the module is given or what it returns."""
    width: int = 0
    """Size of one activation; 0 if it was not measured, as in a model without weights."""
    in_stream: bool = False
    """Whether the activations are the residual stream or are added to it.

    Width alone does not tell: the heads' outputs together are often as wide as the stream.
    """
    copied_in: str | None = None
    """Path of the block that has put a copy of these activations aside, to add to later; None
    if none has.

    So it is where the middle of the stream is the input of the norm before an MLP. To change
    the stream there, what the block returns has to change as well.
    """
    flat: bool = False
    """Whether the module has the tokens of all sequences in one row, as in blocks of OPT."""
    call: int | None = None
    """Which call of the module it is, from 0, of one that is called several times in a forward
    pass, as ALBERT's one layer; None of a module that is called once."""

    @property
    def path(self) -> str:
        """The module's path with `.input` behind it where the site is the module's input.

        This is how the files of SAELens and Gemma Scope 2 name a place; without an ending they
        mean a module's output. Of a module that is called several times, `#3` is the fourth
        call.
        """
        side = ".input" if self.side == "input" else ""
        call = "" if self.call is None else f"#{self.call}"
        return f"{self.module}{side}{call}"

    def to_json(self) -> dict[str, object]:
        """Return what `from_json` reads, without what says nothing."""
        found = asdict(self)
        if self.call is None:
            del found["call"]
        if not self.flat:
            del found["flat"]
        if not self.hook_name.endswith(_MIDDLE):
            del found["copied_in"]
        return found

    @classmethod
    def from_json(cls, found: JsonObject) -> "Site":
        """Read what `to_json` returned, also from before it said whether a copy is kept.

        Raises:
            UserError: if a field is missing or of another type.
        """
        name, module = str(found.values.get("hook_name")), str(found.values.get("module"))
        return found.read(cls, copied_in=_was_copied_in(name, module), flat=False)


def _was_copied_in(hook_name: str, module: str) -> str | None:
    """Return the block that keeps a copy, for a site from before that was recorded.

    After the norm of BERT the stream is what went through it.
    """
    kept = hook_name.endswith(_MIDDLE) and not module.endswith("attention.output.LayerNorm")
    return module.rpartition(".")[0] if kept else None


def named_in_stream(hook_name: str) -> bool:
    """Return whether TransformerLens's name is of activations in the residual stream."""
    return hook_name.endswith(_STREAM_NAMES)


def site_before_records(hook_name: str, path: str, width: int) -> Site:
    """Return the site of a dictionary whose file names the hook and the module alone.

    So do our files from before sites were recorded, and those of other tools. Which side of the
    module is meant follows from an ending of the path (`.input`, `.output`), or else from the
    hook's name; this is the only place where it is guessed.
    """
    path, _, call = path.partition("#")
    if call.isdecimal():
        return replace(site_before_records(hook_name, path, width), call=int(call))
    module, _, ending = path.rpartition(".")
    # BERT has modules that are called "output" themselves.
    is_module = re.search(r"encoder\.layer\.\d+(\.attention)?\.output$", path)
    if ending in ("input", "output") and not is_module:
        side: Side = "input" if ending == "input" else "output"
        return _site(hook_name, module, side, width)
    before_norm = hook_name.endswith("hook_resid_post") and path.endswith("output.LayerNorm")
    at_input = hook_name.endswith(_AT_INPUT) or before_norm
    side = "input" if at_input else "output"
    return _site(hook_name, path, side, width)


def _site(hook_name: str, module: str, side: Side, width: int) -> Site:
    in_stream, block = named_in_stream(hook_name), _was_copied_in(hook_name, module)
    return Site(hook_name, module, side, width, in_stream=in_stream, copied_in=block)
