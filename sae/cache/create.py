"""Laying out a new cache, or finding the one that was begun."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from sae.base import UserError, atomic_path
from sae.cache.format import FORMAT, FORMAT_VERSION, check_format
from sae.cache.layout import chunk_slices
from sae.cache.store import (
    emptied_group,
    explained_store_failures,
    holds_something,
    local_folder,
)
from sae.cache.stored import STORED_DTYPES
from sae.cache.writer import ARRAY_SETTINGS, NOT_WRITTEN, CacheWriter
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

    Of `attributes`, what the cache says of itself, `data`, `special_token_ids` and `digest`
    have to be there.
    """
    rows = {"n_training": plan.n_training, "n_held_out": plan.n_held_out}
    records = {site.hook_name: site.to_json() for site in sites}
    for record in records.values():
        del record["hook_name"]
    begun = {"format": FORMAT, "format_version": FORMAT_VERSION}
    about = {
        **begun,
        "complete": False,
        "text_complete": False,
        "dtype": dtype,
        "compression": compression,
        "planned_rows": rows,
        "rows": rows,
        "hooks": records,
        **attributes,
    }
    folder = local_folder(location)
    if folder is not None:
        with atomic_path(folder) as temporary:
            group = zarr.create_group(str(temporary))
            _lay_out(group, sites, plan, dtype, compression)
            group.update_attributes(about)
    else:
        with explained_store_failures(location):
            group = emptied_group(str(location), begun)
            _lay_out(group, sites, plan, dtype, compression)
            # Without the rest of its attributes it is no cache: they make it one, last.
            group.update_attributes(about)
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
    arrays: dict[str, tuple[tuple[int, ...], tuple[int, ...], str, Any]] = {
        name: ((n, context), (_ROWS_A_TEXT_CHUNK, context), "int32", empty)
        for name, empty in NOT_WRITTEN.items()
    }
    for site in sites:
        whole, chunk = (n, context, site.width), (size, context, site.width)
        arrays[f"activations/{site.hook_name}"] = (whole, chunk, stored, fill)
        for kind in ["norms", "scales"] if dtype == "int8" else ["norms"]:
            arrays[f"{kind}/{site.hook_name}"] = (whole[:2], chunk[:2], "float32", np.nan)
        moments = (len(chunk_slices(n, size)), 1 + 2 * site.width)
        about = (moments, (1, moments[1]), "float64", np.nan)
        arrays[f"moments/{site.hook_name}"] = about
    for name, (shape, chunks, kind, empty) in arrays.items():
        activations = name.startswith("activations/")
        group.create_array(
            name,
            shape=shape,
            chunks=chunks,
            dtype=kind,
            fill_value=empty,
            compressors=codecs if activations else [Crc32cCodec()],
            attributes={"dtype": dtype} if activations else None,
            **ARRAY_SETTINGS,
        )


def sequences_a_chunk(bytes_a_sequence: int) -> int:
    """Return as many as make some megabytes at the widest hook, and at most 32."""
    return max(1, min(_MOST_SEQUENCES_A_CHUNK, _CHUNK_BYTES // bytes_a_sequence))


def find_cache(location: str | Path, *digests: str) -> CacheWriter | None:
    """Return the cache at `location` if it is, or will be, the one that a digest describes.

    Something else is refused, unless it is nothing but another one's text, whose harvest ended
    before the first chunk, as it does when dtype cannot hold the activations.
    """
    if not holds_something(location):
        return None
    try:
        writer = CacheWriter(location)
    except (FileNotFoundError, KeyError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{location} holds something that is not an activation cache; choose another run="
        ) from error
    check_format(location, writer.attributes)
    if "digest" not in writer.attributes and local_folder(location) is None:
        # A put of the attributes ends the laying out; it did not come to that.
        return None
    if writer.attributes.get("digest") in digests:
        return writer
    if not writer.complete and writer.empty():
        return None
    raise UserError(
        f"{location} holds a cache of another model, text or setting; choose another "
        "run=... or remove it"
    )
