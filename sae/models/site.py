"""`Site`: one place in one model, found once and recorded with whatever was read there."""

import re
from dataclasses import asdict, dataclass
from typing import Literal

from sae.base import JsonObject

Side = Literal["input", "output"]

_AT_INPUT = ("hook_resid_pre", "hook_resid_mid", "attn.hook_z", "mlp.hook_post")
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

    @property
    def path(self) -> str:
        """The module's path with `.input` behind it where the site is the module's input.

        This is how the files of SAELens and Gemma Scope 2 name a place; without an ending they
        mean a module's output.
        """
        return f"{self.module}.input" if self.side == "input" else self.module

    def to_json(self) -> dict[str, object]:
        """Return what `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: JsonObject) -> "Site":
        """Read what `to_json` returned.

        Raises:
            UserError: if a field is missing or of another type.
        """
        return found.read(cls)


def named_in_stream(hook_name: str) -> bool:
    """Return whether TransformerLens's name is of activations in the residual stream."""
    return hook_name.endswith(_STREAM_NAMES)


def site_before_records(hook_name: str, path: str, width: int) -> Site:
    """Return the site of a dictionary whose file names the hook and the module alone.

    So do our files from before sites were recorded, and those of other tools. Which side of the
    module is meant follows from an ending of the path (`.input`, `.output`), or else from the
    hook's name; this is the only place where it is guessed.
    """
    module, _, ending = path.rpartition(".")
    # BERT has modules that are called "output" themselves.
    is_module = re.search(r"encoder\.layer\.\d+(\.attention)?\.output$", path)
    if ending in ("input", "output") and not is_module:
        side: Side = "input" if ending == "input" else "output"
        return Site(hook_name, module, side, width, named_in_stream(hook_name))
    before_norm = hook_name.endswith("hook_resid_post") and path.endswith("output.LayerNorm")
    at_input = hook_name.endswith(_AT_INPUT) or before_norm
    side = "input" if at_input else "output"
    return Site(hook_name, path, side, width, named_in_stream(hook_name))
