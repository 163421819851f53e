"""Activations to and from the data sets that SAELens trains on.

SAELens's `CacheActivationsRunner` writes a Hugging Face data set into one folder: a column of
`Array2D(context_size, d_in)` named as the hook, float16 or float32 (Arrow has no bfloat16), and
`token_ids`, `context_size` of int32. A row is a sequence. Its `ActivationsStore` reads the rows
from the first to the last and mixes them in its buffer alone. There is no place for a held-out
side, so the two sides of a cache make two data sets.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sae.base import (
    UNKNOWN,
    UserError,
    check_folder,
    check_free_space,
    code_version,
    digest,
    progress,
    require,
    say,
    seal,
    write_json,
)
from sae.cache.create import create_cache, find_cache
from sae.cache.layout import ActivationCache, open_cache
from sae.cache.store import only_writer
from sae.cache.stored import STORED_DTYPES
from sae.cache.text_writer import write_text
from sae.cache.writer import CacheWriter
from sae.models import ModelConfig, Site, find_site, load_skeleton, record_without_weights
from sae.run import check_free, lock_of, new_folder
from sae.text.packing import ROWS_A_BLOCK, RowBlock, TextCounts, TextPlan, is_held_out

TOKENS = "token_ids"
_FILE_BYTES = 1 << 30
_WANTED = "give the folder that SAELens's CacheActivationsRunner wrote"

Rows = NDArray[np.intp]


def export_to_hf(
    cache: ActivationCache,
    folder: str | Path,
    hook_names: Sequence[str] | None = None,
    *,
    held_out: bool | None = False,
) -> int:
    """Write sequences of `cache` as a data set that SAELens trains from; returns how many.

    In SAELens say `use_cached_activations=True`, `cached_activations_path=folder` and as
    `hook_name` a column's. A float16 cache stays float16, any other becomes float32. Special
    tokens and padding are written too: SAELens leaves out those it is told to, by `token_ids`;
    with its `dtype="float32"`, for in another one it rounds the ids as well.

    Args:
        hook_names: columns to write; all hooks if None.
        held_out: False for the training sequences, True for the held-out ones, None for both.

    Raises:
        UserError: if `folder` exists, or a hook, a sequence of that side or space is missing.
    """
    import pyarrow as pa
    from datasets import Dataset

    folder = Path(folder)
    check_free(folder)
    hooks = [cache.hook(name) for name in hook_names or cache.hook_names]
    side = cache.held_out
    keep = np.ones_like(side) if held_out is None else side == held_out
    n = int(keep.sum())
    require(n > 0, f"{cache.location} has no sequence with held_out={held_out}")
    chunks = [c for c in cache.chunks(hooks[0]) if keep[c].any()]
    features, row_bytes = _features(cache, hooks)
    check_free_space(folder, n * row_bytes)
    # A chunk is a record batch, so memory is that of one chunk; a file is about a gigabyte.
    size = max(1, _FILE_BYTES // (row_bytes * max(c.stop - c.start for c in chunks)))
    n_files = -(-len(chunks) // size)
    names = [f"data-{i:05d}-of-{n_files:05d}.arrow" for i in range(n_files)]
    batches = _batches(cache, hooks, keep, chunks)
    lock = lock_of("activations", folder)
    with new_folder(folder, lock) as temporary, progress(n, "export", "seq") as bar:
        for name in names:
            with pa.ipc.new_stream(str(temporary / name), features.arrow_schema) as stream:
                for batch in islice(batches, size):
                    stream.write_table(Dataset.from_dict(batch, features=features).data.table)
                    bar.update(len(batch[TOKENS]))
        about = f"{cache.model.hub_id}, cache {cache.digest}, {held_out=}"
        _describe(temporary, names, features, f"Activations of {about}")
        seal(temporary)
    return n


def _features(cache: ActivationCache, hooks: list[str]) -> tuple[Any, int]:
    from datasets import Array2D, Features, Value
    from datasets import Sequence as Fixed

    n, dtype = cache.context_size, "float16" if cache.dtype == "float16" else "float32"
    columns = {h: Array2D(shape=(n, cache.d_in(h)), dtype=dtype) for h in hooks}
    width = sum(cache.d_in(h) for h in hooks) * np.dtype(dtype).itemsize + 4
    return Features({**columns, TOKENS: Fixed(Value("int32"), length=n)}), n * width


def _batches(
    cache: ActivationCache, hooks: list[str], keep: NDArray[np.bool_], chunks: list[slice]
) -> Iterator[dict[str, NDArray[Any]]]:
    tokens = cache.tokens
    for chunk in chunks:
        kept = keep[chunk]
        batch: dict[str, NDArray[Any]] = {}
        for hook in hooks:
            x = cache.read(hook, chunk)[torch.from_numpy(kept)]
            # numpy has no bfloat16; each of its values is a float32.
            batch[hook] = (x if x.dtype == torch.float16 else x.float()).numpy()
        yield {**batch, TOKENS: tokens[chunk][kept]}


def _describe(folder: Path, names: list[str], features: Any, description: str) -> None:
    from datasets import DatasetInfo

    DatasetInfo(description=description, features=features).write_to_directory(str(folder))
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in names],
        # SAELens's is another one each time; from the content, equal exports are equal bytes.
        "_fingerprint": digest([description, list(features)]),
        **dict.fromkeys(("_format_columns", "_format_type", "_split")),
        "_format_kwargs": {},
        "_output_all_columns": False,
    }
    write_json(folder / "state.json", state)


def import_from_saelens(
    folder: str | Path,
    out: str | Path,
    *,
    model_name: str,
    held_out_fraction: float = 0.1,
    dtype: str = "float16",
    special_token_ids: Sequence[int] = (),
) -> ActivationCache:
    """Make a cache of a data set that SAELens's `CacheActivationsRunner` wrote.

    Each sequence counts as a document, whose side a digest of its token ids decides: one that
    comes twice is on one side, but pieces of one text may be on both. Whose weights the
    activations are of is not recorded there, so the cache says `unknown`. An import that was
    interrupted goes on, a finished one is recognised.

    Args:
        out: the cache, such as `runs/mine/cache.zarr`.
        model_name: the model that the activations are of, as in `model.name`.
        special_token_ids: tokens that are no text, not trained on; without, all count as text.

    Raises:
        UserError: if `folder` is no such data set, `out` is something else, the model has not
            got the hooks, `dtype` cannot hold a value, or a side has no sequence.
    """
    folder, known = Path(folder), ", ".join(STORED_DTYPES)
    require(dtype in STORED_DTYPES, f"dtype={dtype} is unknown; choose one of {known}")
    dataset, hooks = _open_dataset(folder, model_name)
    digests = _row_digests(dataset)
    order, plan = _split(dataset, digests, held_out_fraction)
    require(
        plan.n_training > 0 and plan.n_held_out > 0,
        f"held_out_fraction={held_out_fraction} holds out {plan.n_held_out} of the "
        f"{len(order)} sequences of {folder}; give a share that leaves some for both sides",
    )
    about: dict[str, Any] = {
        "source": "saelens",
        "model": record_without_weights(model_name).to_json(),
        "tokenizer_digest": UNKNOWN,
        "data": {"name": str(folder), "held_out_fraction": held_out_fraction},
        "bos_token_id": None,
        "special_token_ids": sorted({*special_token_ids}),
    }
    # The fingerprint stands for the activations, which are too many to hash.
    content = [dataset._fingerprint, digests.tolist()]
    about |= {"code_version": code_version(), "digest": digest([about, dtype, *content])}
    with only_writer(out):
        writer = find_cache(out, about["digest"])
        if writer is not None and writer.intact(verify=True):
            say(f"import: {out} is finished already and is reused")
            return open_cache(out)
        if writer is None:
            writer = create_cache(out, [*hooks.values()], plan, dtype=dtype, attributes=about)
        if not writer.text_intact():
            blocks = _blocks(dataset, order, plan.n_training)
            write_text(
                writer, blocks, lambda: digests[order], TextCounts(used=len(order)).summary
            )
        _copy_rows(dataset, hooks, order, writer)
    return open_cache(out)


def _split(dataset: Any, digests: NDArray[np.uint64], fraction: float) -> tuple[Rows, TextPlan]:
    """Return rows in the order of the cache, those for training first, and their numbers."""
    side = np.array([is_held_out(int(d), fraction) for d in digests])
    plan = TextPlan(int((~side).sum()), int(side.sum()), dataset.features[TOKENS].length)
    return np.concatenate([np.flatnonzero(~side), np.flatnonzero(side)]), plan


def _open_dataset(folder: Path, model_name: str) -> tuple[Any, dict[str, Site]]:
    from datasets import Array2D, Dataset, load_from_disk

    require(folder.is_dir(), f"{folder}: no such folder")
    check_folder(folder, "write it again with: sae cache export")
    try:
        dataset = load_from_disk(str(folder))
    # It has an IndexError for a data set without rows, a ValueError for damage.
    except (FileNotFoundError, IndexError, ValueError) as error:
        raise UserError(f"{folder} is not a data set with rows; {_WANTED}") from error
    require(isinstance(dataset, Dataset), f"{folder} holds several data sets; {_WANTED}")
    shapes = {n: f.shape for n, f in dataset.features.items() if isinstance(f, Array2D)}
    length = getattr(dataset.features.get(TOKENS), "length", -1)
    require(
        {shape[0] for shape in shapes.values()} == {length},
        f"{folder} has no activations beside {TOKENS} of the same length, only "
        f"{', '.join(dataset.column_names)}; {_WANTED}",
    )
    empty = not len(dataset) or dataset.data.column(TOKENS).null_count
    require(not empty, f"{folder} has rows without tokens; {_WANTED}")
    skeleton = load_skeleton(ModelConfig(name=model_name))
    return dataset, {
        name: replace(find_site(skeleton, name), width=shape[1])
        for name, shape in shapes.items()
    }


def _column(dataset: Any, name: str, rows: Rows) -> Any:
    """Return rows of a column as Arrow holds them: others make float32 of all floats."""
    table = dataset.select_columns([name]).with_format("arrow")[rows.tolist()]
    return table[name].combine_chunks()


def _token_blocks(dataset: Any, rows: Rows) -> Iterator[NDArray[np.int32]]:
    for i in range(0, len(rows), ROWS_A_BLOCK):
        part = rows[i : i + ROWS_A_BLOCK]
        ids = _column(dataset, TOKENS, part).flatten().to_numpy()
        yield ids.astype(np.int32).reshape(len(part), -1)


def _row_digests(dataset: Any) -> NDArray[np.uint64]:
    """Return the first eight bytes of the SHA-256 of each row's token ids, (sequence,)."""
    blocks = _token_blocks(dataset, np.arange(len(dataset)))
    hashed = (hashlib.sha256(ids.tobytes()).digest() for block in blocks for ids in block)
    return np.array([int.from_bytes(h[:8], "big") for h in hashed], dtype=np.uint64)


def _blocks(dataset: Any, order: Rows, n_training: int) -> Iterator[RowBlock]:
    """Return the tokens in the cache's order; a sequence is the document of its own number."""
    first = 0
    for held_out, rows in ((False, order[:n_training]), (True, order[n_training:])):
        for tokens in _token_blocks(dataset, rows):
            numbers = np.arange(first, first + len(tokens), dtype=np.int32)[:, None]
            first += len(tokens)
            yield RowBlock(held_out, tokens, np.broadcast_to(numbers, tokens.shape))


def _copy_rows(dataset: Any, hooks: dict[str, Site], order: Rows, writer: CacheWriter) -> None:
    missing = writer.missing(verify=True)
    done = len(order) - sum(chunk.stop - chunk.start for chunk in missing)
    with progress(len(order), "import", "seq", done) as bar:
        for chunk in missing:
            found = {}
            for name, hook in hooks.items():
                x = _column(dataset, name, order[chunk]).to_numpy()
                # A copy: torch warns of memory that cannot be written to.
                found[hook.hook_name] = torch.from_numpy(x.copy())
            writer.write(chunk, found)
            bar.update(chunk.stop - chunk.start)
    writer.finish()
