"""Tensors from files of strangers: headers before memory, and nothing in them is run.

Three kinds of files hold weights. Of each the names, shapes and sizes are known before a weight
is read, so that a file which is not what it should be costs nothing:

- safetensors: its header; the weights are mapped into memory, not copied. One that is missing
  may be there in parts, with an index beside them, as the Hub has large ones.
- `.pt`, torch's zip: unpickled with `weights_only=True`, which makes tensors and plain values
  and calls nothing else; the weights are mapped as well.
- `.npz`: a zip of arrays, each with a header; arrays of Python objects are refused. No member
  is unpacked to disk.
"""

import math
import pickle
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from jaxtyping import Float, Shaped
from safetensors import safe_open
from torch import Tensor

from sae.base import UserError, read_json, require

Layout = Mapping[str, tuple[str, ...]]
"""Sizes of each tensor by the names of its dimensions, such as `("d_in", "d_sae")`."""

_WANTED = "give the file as it was saved"
_FLOATING = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Header:
    """What is known of a tensor before it is read."""

    shape: tuple[int, ...]
    floating: bool


@dataclass(frozen=True, slots=True)
class TensorFile:
    """A file of tensors whose headers have been read."""

    path: Path
    headers: dict[str, Header]
    get: Callable[[str], Tensor]

    def read(
        self, layout: Layout, *, optional: Collection[str] = (), beside: Collection[str] = ()
    ) -> dict[str, Tensor]:
        """Return the tensors of `layout` as float32, those in float32 without a copy.

        Args:
            optional: names in `layout` that may be missing.
            beside: names that are not in `layout` and may be there, unread.

        Raises:
            UserError: if a tensor is missing, unknown, misshapen or damaged, holds NaN or
                infinity, or the memory does not suffice.
        """
        missing = sorted({*layout} - {*self.headers, *optional})
        require(not missing, f"{self.path} lacks {', '.join(missing)}; {_WANTED}")
        there = {name: names for name, names in layout.items() if name in self.headers}
        self._check_shapes(there)
        unknown = sorted(set(self.headers) - {*layout, *beside})
        require(
            not unknown,
            f"{self.path} holds {', '.join(unknown)} beside {', '.join(layout)}; it has "
            "another architecture than its configuration says",
        )
        needed = 4 * sum(math.prod(self.headers[name].shape) for name in there)
        free = psutil.virtual_memory().available
        require(
            needed <= free,
            f"{self.path}: its weights take {needed / 1e9:.1f} GB of memory as float32, and "
            f"{free / 1e9:.1f} GB are free",
        )
        return {name: self._finite(name) for name in there}

    def _check_shapes(self, layout: Layout) -> None:
        """Refuse tensors in which a dimension of `layout` has another size than elsewhere."""
        sizes: dict[str, int] = {}
        for name, dimensions in layout.items():
            header = self.headers[name]
            require(header.floating, f"{self.path}: {name} holds no floating-point numbers")
            if len(header.shape) == len(dimensions):
                sizes = dict(zip(dimensions, header.shape, strict=True)) | sizes
            expected = tuple(sizes.get(dimension) for dimension in dimensions)
            words = f"({', '.join(dimensions)})"
            require(
                header.shape == expected,
                f"{self.path}: {name} has shape {header.shape}, where {words}"
                f"{'' if None in expected else f' = {expected}'} is right",
            )
        empty = next((d for d, size in sizes.items() if size == 0), None)
        require(empty is None, f"{self.path}: {empty} is 0, so the file has no weights")

    def _finite(self, name: str) -> Tensor:
        with _blaming(self.path):
            tensor = self.get(name).float()
        require(is_finite(tensor), f"{self.path}: {name} holds NaN or infinity")
        return tensor


def is_finite(tensor: Shaped[Tensor, "..."]) -> bool:
    """Return whether all its numbers are finite: one pass, without temporaries of its size."""
    # As it lies in memory: the other way around takes twenty times as long.
    lying = tensor if tensor.ndim < 2 or tensor.is_contiguous() else tensor.t()
    low, high = torch.aminmax(lying)
    return math.isfinite(low) and math.isfinite(high)


def from_logarithm(threshold: Float[Tensor, " d_sae"]) -> Float[Tensor, " d_sae"]:
    """Return what `threshold` is the logarithm of; at most the largest number."""
    return threshold.exp().clamp(max=torch.finfo(threshold.dtype).max)


def flag(path: Path, config: Mapping[str, Any], key: str, default: bool = False) -> bool:
    """Return the true or false that a configuration has under `key`.

    Args:
        default: what is meant where it is missing or null.

    Raises:
        UserError: if that is something else, such as the text "false".
    """
    value = config.get(key)
    if value is None:
        return default
    require(isinstance(value, bool), f"{path}: {key}={value!r}; give true or false")
    return bool(value)


def check_sizes(path: Path, config: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    """Refuse a configuration that contradicts the weights beside it.

    Args:
        config: what the file `path` says.
        sizes: keys that it may have, and their values by the weights.
    """
    for key, size in sizes.items():
        require(
            config.get(key) in (None, size),
            f"{path}: {key}={config.get(key)}, but according to the weights beside it "
            f"{key}={size}",
        )


def open_safetensors(path: Path) -> TensorFile:
    """Open a safetensors file, whose header is checked against its length.

    Raises:
        UserError: if it is missing or damaged.
    """
    index = _index_of(path)
    in_parts = index.is_file() and not path.is_file()
    return _open_shards(index) if in_parts else _open_whole(path)


def _open_whole(path: Path) -> TensorFile:
    require(path.is_file(), f"{path}: there is no such file")
    with _blaming(path):
        file: Any = safe_open(path, framework="pt")
        parts = {name: file.get_slice(name) for name in list(file.keys())}
        headers = {
            name: Header(tuple(part.get_shape()), part.get_dtype() in _FLOATING)
            for name, part in parts.items()
        }
    return TensorFile(path, headers, file.get_tensor)


def _index_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.index.json")


def safetensors_there(path: Path) -> bool:
    """Return whether the safetensors file `path` is there, in one piece or in parts."""
    return path.is_file() or _index_of(path).is_file()


def _open_shards(index: Path) -> TensorFile:
    """Open the parts that an index of the Hub's names: `{"weight_map": {tensor: file, ...}}`.

    https://huggingface.co/docs/safetensors/metadata_parsing has the layout.
    """
    found = read_json(index)
    places = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(places, dict):
        raise UserError(f"{index} has no weight_map; {_WANTED}")
    for name in places.values():
        # A part elsewhere on this disk is none of this dictionary's.
        require(
            isinstance(name, str) and name not in ("", "..") and Path(name).name == name,
            f"{index}: {name} is not a file beside it; {_WANTED}",
        )
    parts = {name: _open_whole(index.with_name(name)) for name in set(places.values())}
    for tensor, name in places.items():
        require(
            tensor in parts[name].headers,
            f"{index}: {tensor} is not in {name}, where it should be; {_WANTED}",
        )
    headers = {tensor: parts[name].headers[tensor] for tensor, name in places.items()}
    return TensorFile(index, headers, lambda tensor: parts[places[tensor]].get(tensor))


def open_npz(path: Path) -> TensorFile:
    """Open a zip of numpy arrays, whose headers are checked against their lengths.

    Raises:
        UserError: if it is missing or damaged, or a member has a path or holds objects.
    """
    archive = _open_zip(path)
    headers = {}
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        plain = Path(member.filename).name == member.filename and "\\" not in member.filename
        require(
            plain and name != member.filename,
            f"{path}: its member {member.filename} is not an array of its own; {_WANTED}",
        )
        headers[name] = _npy_header(path, archive, member)

    def get(name: str) -> Tensor:
        with archive.open(f"{name}.npy") as file:
            # Not an array of its own where the file is in another byte order.
            array = np.lib.format.read_array(file, allow_pickle=False)
        return torch.from_numpy(np.ascontiguousarray(array, array.dtype.newbyteorder("=")))

    return TensorFile(path, headers, get)


def _npy_header(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Header:
    with _blaming(path), archive.open(member) as file:
        # The other versions are for records, with headers of up to 4 GB.
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"its arrays are of version {version}, not (1, 0)")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        length = member.file_size - file.tell()
    require(
        not dtype.hasobject,
        f"{path}: {member.filename} contains Python objects, which could run any code and "
        "are therefore not read; give a file of plain numbers",
    )
    require(
        length == math.prod(shape) * dtype.itemsize,
        f"{path}: {member.filename} claims shape {shape} of {dtype}, but holds {length} bytes",
    )
    return Header(shape, dtype.kind == "f")


def load_pickle(path: Path) -> Any:
    """Return what torch saved, with its weights mapped; makes only tensors and plain values.

    Raises:
        UserError: if the file is missing or damaged, holds anything else or is packed so that
            its size in memory is not that on disk.
    """
    with _open_zip(path) as archive:
        packed = any(member.compress_type != 0 for member in archive.infolist())
        require(not packed, f"{path} is compressed, which torch never does; {_WANTED}")
    with _blaming(path):
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            raise UserError(
                f"{path} contains more than tensors and plain values, which could run any "
                "code, so nothing of it was loaded; give a state dict"
            ) from error


def tensors_of(path: Path, mapping: Any) -> TensorFile:
    """Return the tensors of a mapping that came from the pickle `path`.

    Raises:
        UserError: if it is no mapping of tensors, or a tensor is bigger than the file.
    """
    require(
        isinstance(mapping, Mapping) and all(isinstance(name, str) for name in mapping),
        f"{path} holds no state dict; {_WANTED}",
    )
    odd = [name for name, value in mapping.items() if not _is_plain(value)]
    require(not odd, f"{path}: {', '.join(odd)} is not a plain tensor; {_WANTED}")
    headers, length = {}, path.stat().st_size
    for name, tensor in mapping.items():
        # A tensor can repeat a few bytes without end.
        claimed = tensor.numel() * tensor.element_size()
        require(
            claimed <= length,
            f"{path}: {name} claims {claimed} bytes, but the file has {length}",
        )
        headers[name] = Header(tuple(tensor.shape), tensor.is_floating_point())
    return TensorFile(path, headers, lambda name: mapping[name].detach())


def _is_plain(value: object) -> bool:
    """Whether it is a tensor whose numbers are one after the other somewhere in memory."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not value.is_nested
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _open_zip(path: Path) -> zipfile.ZipFile:
    require(path.is_file(), f"{path}: there is no such file")
    with _blaming(path):
        return zipfile.ZipFile(path)


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Say of whatever goes wrong inside that the file is damaged.

    The libraries raise errors of nearly any kind about a flipped bit.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        first = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(f"{path} is damaged or is another kind of file: {first}") from error
