"""What the formats share: the classes to fill, tensors by name, configurations and hooks."""

import io
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from sae.base import atomic_path, read_object, require
from sae.dictionary import Activation, Dictionary, metadata_of
from sae.dictionary.dictionary import SHAPES
from sae.dictionary.tensors import Layout, TensorFile, is_finite, safetensors_there

METADATA_FILE = "sae_atlas.json"
"""All that we know of a dictionary, in a file that other tools do not look at."""
_BLOCK = r"(?:.*\.)?(?:layers|layer|h)\.(\d+)"
_OUT_PROJECTION = r"\.(?:self_attn\.o_proj|attn\.c_proj|attention\.dense)"


class Format(ABC):
    """A format that is read."""

    name: ClassVar[str]
    files: ClassVar[tuple[str, ...]]
    """What a dictionary consists of, the weights last; with a star, files that are one each."""

    def recognises(self, path: Path) -> bool:
        """Return whether `path` is of this format, by the names of files alone."""
        return safetensors_there(path / self.files[-1])

    @abstractmethod
    def read(self, path: Path) -> Dictionary:
        """Return the dictionary of a folder, or of a file that is one.

        Raises:
            UserError: if a file is missing or broken, or says what has no counterpart here.
        """


class Written(Format):
    """A format that is written as well: it holds a dictionary exactly, or says why not."""

    title: ClassVar[str]
    """What its own tool calls itself."""
    load: ClassVar[str]
    """How its own tool loads one from `{folder}`."""
    lost: ClassVar[str]
    """What does not reach its own tool."""
    activations: ClassVar[Collection[type[Activation]]] = ()
    limits: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Why it has no place for a transcoder, another activation, two widths or a skip."""

    def cannot_hold(self, dictionary: Dictionary) -> str | None:
        """Return why the format has no place for `dictionary`, or None."""
        beyond = {
            "transcoder": dictionary.is_transcoder,
            "activation": type(dictionary.activation) not in self.activations,
            "width": dictionary.d_in != dictionary.d_out,
            "skip": dictionary.W_skip is not None,
        }
        found = next((reason for limit, reason in self.limits if beyond[limit]), None)
        return found or self.cannot_normalise(dictionary)

    def cannot_normalise(self, dictionary: Dictionary) -> str | None:
        """Return why the format has no place for how rows are read, or None."""
        by = dictionary.reads[0].normalisation
        if by is None:
            return None
        return f"it reads rows as they are, and this one normalises each ({by.name})"

    @abstractmethod
    def write(self, dictionary: Dictionary, folder: Path) -> None:
        """Write one that it can hold; the folder appears all at once."""


Names = Mapping[str, str]
"""Our names of a format's tensors, with `.T` where theirs are the other way around."""


def read_weights(
    file: TensorFile,
    names: Names,
    *,
    d_out: str = "d_in",
    sizes: Layout | None = None,
    beside: Collection[str] = (),
) -> dict[str, Tensor]:
    """Return the tensors of a file by our names and in our shapes.

    Args:
        d_out: the width of what is written, by the name that refusals give it.
        sizes: of tensors of another shape than ours.
        beside: tensors that may be there, unread.

    Raises:
        UserError: if one is missing, unknown, misshapen or damaged.
    """
    layout = {}
    for theirs, ours in names.items():
        shape = SHAPES.get(ours.removesuffix(".T"), ("d_sae",))
        shape = tuple(d_out if size == "d_out" else size for size in shape)
        layout[theirs] = shape[::-1] if ours.endswith(".T") else shape
    found = file.read(layout | dict(sizes or {}), beside=beside)
    return {
        ours.removesuffix(".T"): found[theirs].t() if ours.endswith(".T") else found[theirs]
        for theirs, ours in names.items()
    }


def named_tensors(dictionary: Dictionary, names: Names) -> dict[str, Tensor]:
    """Return copies of a dictionary's tensors by a format's names, in float32 on the CPU."""
    weights = dictionary.tensors | {f"{n}.T": w.t() for n, w in dictionary.tensors.items()}
    # Each has memory of its own: torch saves all that a view is of.
    return {
        theirs: weights[ours]
        .detach()
        .float()
        .cpu()
        .clone(memory_format=torch.contiguous_format)
        for theirs, ours in names.items()
    }


def check_finite(dictionary: Dictionary, path: Path) -> None:
    """Refuse the dictionary that `path` holds if folding made it too big for float32."""
    odd = [name for name, weight in dictionary.tensors.items() if not is_finite(weight)]
    require(
        not odd,
        f"{path}: {', '.join(odd)} would contain NaN or infinity once biases and scales are "
        "folded, because float32 has no room for such numbers",
    )


def read_config(path: Path) -> dict[str, Any]:
    """Read a JSON file with keys and values.

    Raises:
        UserError: if it is missing, broken or holds something else.
    """
    return dict(read_object(path, "give the file as it was saved").values)


def read_metadata(folder: Path, native: Mapping[str, object]) -> dict[str, object]:
    """Return a dictionary's metadata: what we wrote beside, and what the format itself says."""
    path = folder / METADATA_FILE
    ours = read_config(path) if path.is_file() else {}
    return {key: value for key, value in native.items() if value is not None} | ours


def write_folder(
    folder: Path, dictionary: Dictionary, files: Mapping[str, bytes | memoryview]
) -> None:
    """Write `files` by name, and the metadata, into `folder`, which appears all at once."""
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        for name, content in files.items():
            (temporary / name).write_bytes(content)
        (temporary / METADATA_FILE).write_bytes(as_json(metadata_of(dictionary)))


def as_json(value: Mapping[str, object]) -> bytes:
    """Return indented JSON."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def as_pickle(value: Mapping[str, object]) -> memoryview:
    """Return what `torch.save` makes of tensors and plain values."""
    buffer = io.BytesIO()
    torch.save(dict(value), buffer)
    return buffer.getbuffer()


def hook_of_module(path: str, side: str = "output") -> str:
    """Return the hook at a side of the module `path`.

    Of blocks and of attention's last projection the names are TransformerLens's, whatever the
    model is; of all else the path itself.
    """
    if block := re.fullmatch(_BLOCK, path):
        place = "hook_resid_post" if side == "output" else "hook_resid_pre"
        return f"blocks.{block[1]}.{place}"
    heads = re.fullmatch(_BLOCK + _OUT_PROJECTION, path)
    return f"blocks.{heads[1]}.attn.hook_z" if heads and side == "input" else path


def layer_of(dictionary: Dictionary) -> int | None:
    """Return the block that it reads, by the name of its hook."""
    hook_name = dictionary.hook_name
    found = re.match(r"blocks\.(\d+)\.", hook_name) or re.match(_BLOCK, hook_name)
    return int(found[1]) if found else None
