"""Laying out a new cache, or finding the one that was begun."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from sae.base import UserError, atomic_path
from sae.cache.layout import FORMAT, FORMAT_VERSION, chunk_slices
from sae.cache.sites import site_record
from sae.cache.store import (
    emptied_group,
    explained_store_failures,
    holds_something,
    local_folder,
)
from sae.cache.stored import STORED_DTYPES
from sae.cache.writer import NOT_WRITTEN, CacheWriter, flat_keys
from sae.models import Site
from sae.text.packing import TextPlan

COMPRESSIONS = ("none", "zstd")
_CHUNK_BYTES = 8 << 20
_MOST_SEQUENCES_A_CHUNK = 32
# Whoever fills a chunk of activations reads the whole chunk of text that it lies in.
_ROWS_A_TEXT_CHUNK = 256


def create_cache(
    location: str | Path,
    sites: Sequence[Site],
    plan: TextPlan,
    *,
    dtype: str,
    compression: str = "none",
    attributes: dict[str, Any],
) -> CacheWriter:
    """Lay out an empty cache with room for a text and its activations, all at once.

    Args:
        compression: `none`, or `zstd` after a shuffle of bytes: lossless.
        attributes: what the cache says of itself; `data`, `special_token_ids` and `digest`
            have to be there.
    """
    rows = {"n_training": plan.n_training, "n_held_out": plan.n_held_out}
    about = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "complete": False,
        "text_complete": False,
        "dtype": dtype,
        "compression": compression,
        "planned_rows": rows,
        "rows": rows,
        "hooks": {site.hook_name: site_record(site) for site in sites},
        **attributes,
    }
    folder = local_folder(location)
    if folder is not None:
        with atomic_path(folder) as temporary:
            group = zarr.create_group(str(temporary))
            _lay_out(group, sites, plan, dtype, compression)
            group.attrs.update(about)
    else:
        with explained_store_failures(location):
            begun = {"format": FORMAT, "format_version": FORMAT_VERSION}
            group = emptied_group(str(location), begun)
            _lay_out(group, sites, plan, dtype, compression)
            # Without the rest of its attributes it is no cache: they make it one, last.
            group.attrs.update(about)
    return CacheWriter(location)


def _lay_out(
    group: zarr.Group, sites: Sequence[Site], plan: TextPlan, dtype: str, compression: str
) -> None:
    stored, fill = STORED_DTYPES[dtype]
    n, context = plan.n_sequences, plan.context_size
    width = np.dtype(stored).itemsize
    size = sequences_a_chunk(context * max(site.width for site in sites) * width)
    codecs: list[Any] = [Crc32cCodec()]
    if compression == "zstd":
        # Exponents beside exponents: a seventh smaller, where shuffled bits gain nothing and
        # smaller blocks half of it (docs/log.md).
        shuffled = BloscCodec(cname="zstd", clevel=1, shuffle="shuffle", blocksize=1 << 20)
        codecs.insert(0, shuffled)
    for name, empty in NOT_WRITTEN.items():
        _array(group, name, (n, context), (_ROWS_A_TEXT_CHUNK, context), "int32", empty)
    for site in sites:
        about = {"dtype": dtype}
        chunks = (size, context, site.width)
        name = f"activations/{site.hook_name}"
        array = _array(group, name, (n, context, site.width), chunks, stored, fill, codecs)
        array.attrs.update(about)
        kinds = ["norms", "scales"] if dtype == "int8" else ["norms"]
        for kind in kinds:
            name = f"{kind}/{site.hook_name}"
            _array(group, name, (n, context), (size, context), "float32", np.nan)
        shape = (len(chunk_slices(n, size)), 1 + 2 * site.width)
        _array(group, f"moments/{site.hook_name}", shape, (1, shape[1]), "float64", np.nan)


def _array(
    group: zarr.Group,
    name: str,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    dtype: str,
    fill: Any,
    codecs: list[Any] | None = None,
) -> Any:
    return group.create_array(
        name,
        shape=shape,
        chunks=chunks,
        dtype=dtype,
        fill_value=fill,
        compressors=codecs or [Crc32cCodec()],
        filters=None,
        chunk_key_encoding=flat_keys(),
        overwrite=True,
        # Zarr leaves out chunks of its fill value, and would read them to find out.
        config={"write_empty_chunks": True},
    )


def sequences_a_chunk(bytes_a_sequence: int) -> int:
    """As many as make some megabytes at the widest hook, and at most 32."""
    return max(1, min(_MOST_SEQUENCES_A_CHUNK, _CHUNK_BYTES // bytes_a_sequence))


def find_cache(location: str | Path, digest: str) -> CacheWriter | None:
    """The cache at `location` if it is, or is to become, the one that `digest` describes.

    Returns None if nothing is there, or nothing but another one's text: its harvest ended
    before the first chunk, as it does when dtype cannot hold the activations.

    Raises:
        UserError: if something else is there; it is left as it is.
    """
    if not holds_something(location):
        return None
    writer = None
    with contextlib.suppress(FileNotFoundError, KeyError):
        writer = _opened(location)
    if writer is None:
        raise UserError(
            f"{location} holds something that is no activation cache; choose another run="
        )
    writer.check_format()
    if "digest" not in writer.attributes and local_folder(location) is None:
        # A put of the attributes ends the laying out; it did not come to that.
        return None
    if writer.digest != digest and not writer.complete and writer.empty():
        return None
    if writer.digest != digest:
        raise UserError(
            f"{location} holds a cache of another model, text or setting; choose another "
            "run=... or remove it"
        )
    return writer


def _opened(location: str | Path) -> CacheWriter | None:
    try:
        return CacheWriter(location)
    except UserError:
        raise
    except ValueError:
        return None
