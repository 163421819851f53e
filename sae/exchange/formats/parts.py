"""What the formats share: their configuration files, hooks by module path, and our own keys.

A format has room for little of what a dictionary knows about itself. Whatever we write has all
of it in a file of its own beside the format's, which other tools do not look at.
"""

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from sae.base import atomic_path, read_json, require
from sae.dictionary import Dictionary, metadata_of

METADATA_FILE = "sae_atlas.json"
_BLOCK = r"(?:.*\.)?(?:layers|layer|h)\.(\d+)"
_OUT_PROJECTION = r"\.(?:self_attn\.o_proj|attn\.c_proj|attention\.dense)"


def read_config(path: Path) -> dict[str, Any]:
    """A JSON file with keys and values.

    Raises:
        UserError: if it is missing, broken or holds something else.
    """
    config = read_json(path)
    require(isinstance(config, dict), f"{path} is no JSON object; damaged?")
    found: dict[str, Any] = config
    return found


def read_metadata(folder: Path, native: Mapping[str, object]) -> dict[str, object]:
    """Return a dictionary's metadata: what we wrote beside, and what the format itself says."""
    path = folder / METADATA_FILE
    ours = read_config(path) if path.is_file() else {}
    said = {key: value for key, value in native.items() if value is not None}
    return said | ours


def write_folder(
    folder: Path, dictionary: Dictionary, files: Mapping[str, bytes | memoryview]
) -> None:
    """Write `files` by name, and the metadata, into `folder`, which appears all at once."""
    metadata = as_json(metadata_of(dictionary))
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        for name, content in {**files, METADATA_FILE: metadata}.items():
            (temporary / name).write_bytes(content)


def as_json(value: Mapping[str, Any]) -> bytes:
    """Indented JSON."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def as_pickle(value: Mapping[str, Any]) -> memoryview:
    """What `torch.save` makes of tensors and plain values."""
    buffer = io.BytesIO()
    torch.save(dict(value), buffer)
    return buffer.getbuffer()


def plain(tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """A float32 copy on the CPU, of its own memory: torch saves all that a view is of."""
    return tensor.detach().float().cpu().clone(memory_format=torch.contiguous_format)


def kind_of(dictionary: Dictionary) -> str:
    """Architecture and kind in words, such as `gated transcoder`."""
    if not dictionary.is_transcoder:
        return f"{dictionary.architecture} autoencoder"
    skip = "" if dictionary.W_skip is None else "skip "
    return f"{dictionary.architecture} {skip}transcoder"


def hook_of_module(path: str, side: str = "output") -> str:
    """The hook at a side of the module `path`.

    Of blocks and of attention's last projection the names are TransformerLens's, whatever the
    model is; of all else the path itself.
    """
    if block := re.fullmatch(_BLOCK, path):
        place = "hook_resid_post" if side == "output" else "hook_resid_pre"
        return f"blocks.{block[1]}.{place}"
    heads = re.fullmatch(_BLOCK + _OUT_PROJECTION, path)
    if heads and side == "input":
        return f"blocks.{heads[1]}.attn.hook_z"
    return path


def layer_of(dictionary: Dictionary) -> int | None:
    """The block that it reads, by the name of its hook."""
    hook_name = dictionary.hook_name
    found = re.match(r"blocks\.(\d+)\.", hook_name) or re.match(_BLOCK, hook_name)
    return int(found[1]) if found else None
