"""What is inside an activation cache, and opening one.

    NAME.zarr/
      tokens                     int32   (sequence, position), -1 where not written yet
      documents                  int32   (sequence, position), index of the document, -1 padding
      document_digests           uint64  (document,)
      held_out                   bool    (sequence,), never trained on
      activations/{hook_name}    float16 (sequence, position, d_in), or as `dtype` says
      scales/{hook_name}         float32 (sequence, position), for dtype=int8 alone
      norms/{hook_name}          float32 (sequence, position), ‖x‖ of the stored rows
      moments/{hook_name}        float64 (chunk, 1 + 2 d_in): count, mean and summed squared
                                 distance from it, of each chunk's training rows
      statistics/{hook_name}/    mean, variance (d_in,); norm_quantiles (101,)

Training sequences come first, then the held-out ones. Chunks are little-endian bytes,
compressed if asked for, followed by a CRC-32C, zarr's own codec: every read is verified, by any
zarr reader. The group says `complete: false` until its statistics are in place, and
`text_complete: false` until all tokens are.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from sae.base import JsonObject, UserError, digest, nearest, require
from sae.cache.asked import neighbours
from sae.cache.format import check_format
from sae.cache.shown import as_frame, as_html, norms
from sae.cache.store import explained_store_failures, local_folder, open_group
from sae.cache.stored import Stored, from_stored, mapped_chunk
from sae.models import ModelRecord, Site
from sae.models.site import named_in_stream
from sae.text.record import TextRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEXT = ("tokens", "documents", "held_out", "document_digests")
STATISTICS = ("mean", "variance", "norm_quantiles")


@dataclass(frozen=True, slots=True)
class ActivationCache:
    """An activation cache that is open. Its arrays are only read when they are asked for."""

    location: str
    """The cache's folder, or its address in an object store."""
    group: zarr.Group

    def _repr_html_(self) -> str:
        return as_html(self)

    def to_pandas(self) -> Any:
        """Return a data frame with a record for each sequence."""
        return as_frame(self)

    def plot(self, hook_name: str | None = None) -> "Figure":
        """Return a histogram of the norms of a hook's activation vectors."""
        return norms(self, hook_name)

    @property
    def attributes(self) -> dict[str, Any]:
        """The group's description of itself."""
        return dict(self.group.attrs)

    @property
    def digest(self) -> str:
        """Identifies the content: settings, the model's weights, the text, the tokenizer."""
        about = self.attributes
        weights = about["model"]["weight_digest"]
        return digest(
            [about["digest"], weights, about["data_digest"], about["tokenizer_digest"]]
        )

    @property
    def model(self) -> ModelRecord:
        """Which model the activations are of."""
        return ModelRecord.from_json(self._part("model"))

    @property
    def text(self) -> TextRecord:
        """Which text the tokens are of."""
        return TextRecord.from_json(self._part("data"))

    @property
    def bos_token_id(self) -> int | None:
        """The token that every sequence begins with, if the model has one."""
        found: int | None = self.attributes["bos_token_id"]
        return found

    @property
    def hook_names(self) -> list[str]:
        """The hooks that were harvested."""
        return list(self.attributes["hooks"])

    @property
    def dtype(self) -> str:
        """Precision of what is stored: a key of `STORED_DTYPES`."""
        return str(self.attributes["dtype"])

    @property
    def n_sequences(self) -> int:
        """Number of sequences in the cache, held-out ones included."""
        return int(self.array("tokens").shape[0])

    @property
    def context_size(self) -> int:
        """Tokens in a sequence."""
        return int(self.array("tokens").shape[1])

    @property
    def tokens(self) -> NDArray[np.int32]:
        """Token ids, (sequence, position)."""
        return self._whole("tokens")

    @property
    def documents(self) -> NDArray[np.int32]:
        """Index of the document of each token, (sequence, position); −1 for padding."""
        return self._whole("documents")

    @property
    def held_out(self) -> NDArray[np.bool_]:
        """Which sequences are never trained on, (sequence,)."""
        return self._whole("held_out")

    @property
    def document_digests(self) -> NDArray[np.uint64]:
        """The first eight bytes of the SHA-256 of each document's text, (document,)."""
        return self._whole("document_digests")

    @property
    def sites(self) -> list[Site]:
        """The site of each hook: the place in the model where its activations were read."""
        hooks = self._part("hooks")
        return [_recorded_site(name, hooks.part(name)) for name in self.hook_names]

    def site(self, hook_name: str | None) -> Site:
        """Return the site of a hook, by its name or its module's path; with None the only one.

        Raises:
            UserError: if the cache does not hold it, or holds several to choose from.
        """
        sites, hooks = self.sites, self.hook_names
        if hook_name is None:
            require(
                len(sites) == 1,
                f"{self.location} holds {len(hooks)} hooks; choose one with "
                f"hook_name={hooks[0]}",
            )
            return sites[0]
        for site in sites:
            if hook_name in (site.hook_name, site.path):
                return site
        raise UserError(
            f"hook_name={hook_name} is not in {self.location}"
            f"{nearest(hook_name, hooks)}; it holds {', '.join(hooks)}"
        )

    def hook(self, hook_name: str | None) -> str:
        """Return the name of a hook, as `site` finds it."""
        return self.site(hook_name).hook_name

    def d_in(self, hook_name: str) -> int:
        """Width of the activations at a hook."""
        return int(self.array(f"activations/{hook_name}").shape[2])

    def norms(self, hook_name: str) -> NDArray[np.float32]:
        """Norms of the stored rows, (sequence, position)."""
        return self._whole(f"norms/{hook_name}")

    def statistics(self, hook_name: str) -> dict[str, NDArray[np.float64]]:
        """`mean`, `variance` (d_in,), `norm_quantiles` (101,), to 1/4,096, of training rows."""
        return {n: self._whole(f"statistics/{hook_name}/{n}") for n in STATISTICS}

    def text_rows(self) -> NDArray[np.bool_]:
        """Which tokens are text, not special tokens and not padding, (sequence, position)."""
        special = np.isin(self.tokens, self.attributes["special_token_ids"])
        return ~special & (self.documents >= 0)

    def read_rows(self, name: str, sequences: slice) -> NDArray[Any]:
        """Return some sequences of `tokens`, `documents` or `norms/{hook_name}`, verified.

        What is not written yet has the array's fill value.
        """
        array = self.array(name)
        with self._explained(name, sequences):
            return np.asarray(array[sequences])

    def chunks(self, hook_name: str) -> list[slice]:
        """Return the sequences of each chunk, in order."""
        array = self.array(f"activations/{hook_name}")
        return chunk_slices(array.shape[0], array.chunks[0])

    def read(
        self, hook_name: str, sequences: int | slice
    ) -> Float[Tensor, "*sequence position d_in"]:
        """Activations of a sequence, or of neighbours, in the cache's dtype (float32 for int8).

        One chunk of a local, uncompressed cache is mapped into memory and not copied.

        Raises:
            UserError: if there is no such hook or sequence, or a chunk is missing or damaged.
        """
        hooks = self.hook_names
        near = nearest(hook_name, hooks) or f"; it has {', '.join(hooks[:5])}"
        require(hook_name in hooks, f"{self.location} has not harvested {hook_name}{near}")
        asked = neighbours(sequences, sum(self.attributes["rows"].values()), self.location)
        found = from_stored(*self.read_stored(hook_name, asked))
        return found if isinstance(sequences, slice) else found[0]

    def read_stored(self, hook_name: str, sequences: slice) -> Stored:
        """Return what `read` gives as it is stored: an array, and for int8 its rows' scales."""
        name, scales = f"activations/{hook_name}", None
        group, location = self.group, self.location
        with self._explained(name, sequences):
            stored = written_rows(group, location, name, sequences)
            if stored.dtype == np.int8:
                scales = written_rows(group, location, f"scales/{hook_name}", sequences)
        return stored, scales

    def array(self, name: str) -> Any:
        """Return one of the cache's zarr arrays; one that is gone or damaged is refused."""
        with explained_store_failures(self.location):
            return opened_array(self.group, self.location, name)

    def _whole(self, name: str) -> NDArray[Any]:
        array = self.array(name)
        with self._explained(name):
            # Zarr would make up what is not there.
            if absent := array.nchunks - array.nchunks_initialized:
                raise ValueError(f"{absent} chunks are not there")
            return np.asarray(array[...])

    @contextmanager
    def _explained(self, name: str, part: slice | None = None) -> Iterator[None]:
        """Turn what goes wrong with an array, or with some sequences of it, into a sentence."""
        where = "" if part is None else f" in sequences {part.start} to {part.stop - 1}"
        with explained_store_failures(self.location):
            try:
                yield
            except FileNotFoundError as error:
                raise UserError(
                    f"{self.location}: a chunk of {name} is missing{where}; run the same "
                    "harvest again"
                ) from error
            except ValueError as error:
                if isinstance(error, UserError):
                    raise
                wrong, cure = f"damaged{where}", "run the same harvest again to repair it"
                if part is None:
                    wrong, cure = "missing or damaged", "harvest again"
                raise UserError(
                    f"{self.location}: {name} is {wrong} ({error}); {cure}"
                ) from error

    def _part(self, name: str) -> JsonObject:
        return JsonObject(self.location, "", self.attributes, "harvest again").part(name)


def _recorded_site(hook_name: str, found: JsonObject) -> Site:
    # Caches from before sites were recorded have the width as `d_in`; whether such a hook is
    # in the residual stream follows from its name.
    upgraded = {
        "hook_name": hook_name,
        "width": found.values.get("d_in"),
        "side": "output",
        "in_stream": named_in_stream(hook_name),
    }
    return Site.from_json(replace(found, values={**upgraded, **found.values}))


def stored_rows(array: Any, location: str | Path, rows: slice) -> NDArray[Any]:
    """Rows of a chunked array, each chunk verified; one raw local chunk is mapped.

    Raises:
        FileNotFoundError or ValueError: if a chunk that would be mapped is not there, or any
            is damaged.
    """
    folder, size = local_folder(location), array.chunks[0]
    chunk = rows.start // size
    raw = [type(c).__name__ for c in array.metadata.codecs] == ["BytesCodec", "Crc32cCodec"]
    if folder is None or not raw or chunk != (rows.stop - 1) // size:
        return np.asarray(array[rows])
    file = folder / array.path / chunk_key(array, chunk)
    mapped = mapped_chunk(file, array.chunks, array.dtype)
    return mapped[rows.start - chunk * size : rows.stop - chunk * size]


def opened_array(group: zarr.Group, location: str | Path, name: str) -> Any:
    """Return one of a cache's arrays, whose chunks are not looked at.

    Raises:
        UserError: if its description (`zarr.json`) is gone, damaged or of another shape.
    """
    try:
        return group[name]
    # What zarr raises about a description depends on what is wrong with it.
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{location}: {name} is missing or damaged ({error}); harvest again"
        ) from error


def written_rows(
    group: zarr.Group, location: str | Path, name: str, rows: slice
) -> NDArray[Any]:
    """Rows of an array of finite numbers, whose fill value tells a chunk that is not there.

    Raises:
        FileNotFoundError or ValueError: if a chunk is not there or is damaged.
    """
    array = opened_array(group, location, name)
    found, size = stored_rows(array, location, rows), array.chunks[0]
    starts = range(rows.start // size * size, rows.stop, size)
    heads = found.reshape(len(found), -1)[[max(0, i - rows.start) for i in starts], 0]
    fill = array.fill_value
    if bool(np.any(np.isnan(heads) if np.isnan(fill) else heads == fill)):
        raise FileNotFoundError(name)
    return found


def chunk_key(array: Any, chunk: int) -> str:
    """Name of the file of an array's chunk; only the first axis is cut into chunks."""
    return str(array.metadata.encode_chunk_key((chunk, *(0 for _ in array.chunks[1:]))))


def chunk_slices(n: int, size: int) -> list[slice]:
    """`range(n)` in pieces of `size`, the last one shorter."""
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def open_cache(location: str | Path, *, unfinished: bool = False) -> ActivationCache:
    """Open a cache for reading: a folder, or an address such as `s3://bucket/x.zarr`.

    Raises:
        UserError: if there is none, it is of another version, or it is not finished, unless
            an `unfinished` one will do.
    """
    try:
        group = open_group(location, "r")
    except (FileNotFoundError, KeyError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{location} is not an activation cache; make one with: sae harvest"
        ) from error
    attributes = dict(group.attrs)
    check_format(location, attributes)
    # In an object store a cache that is being laid out has nothing else to say of itself.
    if not attributes.get("complete") and not (unfinished and "hooks" in attributes):
        raise UserError(
            f"{location} is not finished; run the same harvest again to complete it"
        )
    return ActivationCache(str(location), group)
