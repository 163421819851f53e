"""Harvest to disk and read back with SAELens, at its best settings, for timing beside ours.

What was tried on SmolLM2-135M at layer 9 with 2 cores (16,384 tokens, pretokenised, float32,
stored as float32; tokens a second without loading; other work was going on, so rough):

- Batches of 4, 8, 16, 32, 64 rows: 2,170, 2,360, 2,300, 1,970, 1,660. So 8.
- `dtype="float16"` on disk: 2,290 instead of 2,360, for half the bytes.
- `compile_llm`: 1,900 at 32 rows, as without; every module is hooked, so it breaks everywhere.
- `attn_implementation="eager"`: 990 at 32 rows.
- Text that is not pretokenised: 1,670 at 16 rows, where pretokenised makes 2,150.
- `autocast_lm`: 5,800 at 32 rows; a model loaded in bfloat16: 6,470 at 8. These compute other
  values, so they are to be set against our model.dtype=bfloat16 alone.
- `model_class_name="HookedTransformer"`: TransformerLens does not know SmolLM2.

The forward does stop at the layer: SAELens finds its number in a Hugging Face name as well. In
the same minute it made 2,300 tokens a second and our bare forward to layer 9 2,100 to 2,450, so
there is next to nothing between SAELens and the model at this size.

Reading, batches of 4,096 rows of 576 from float32: 580,000 to 1,000,000 rows a second from the
smallest buffer; 550,000 to 750,000 from one of 64 sequences; 270,000 to 300,000 from 256,
and 150,000 if that is refilled 32 sequences at a time. Without mixing 1,300,000 to 1,600,000.
"""

import contextlib
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from sae.models.embedded import embedded_folder
from sae.models.packaged import EMBEDDED

MODEL = "smollm2"
ROWS_A_BATCH = 8
_BUFFER_BYTES = 256 << 20


class HarvestSeconds(NamedTuple):
    """What a harvest took."""

    loading: float
    """Loading the model; SAELens and its libraries had been imported before."""
    harvesting: float
    """From the first batch to the data set on disk."""
    n_tokens: int
    """Tokens harvested: as asked for, less what makes no whole batch."""


def saelens_harvest(
    texts: list[str],
    hook_name: str,
    n_tokens: int,
    context_size: int,
    folder: Path,
    **settings: Any,
) -> HarvestSeconds:
    """Harvest with SAELens's `CacheActivationsRunner` into `folder`, which must not exist.

    The text is tokenised and packed beforehand, by SAELens, in the order of our own harvest:
    the beginning token before every document and at the start of every row.

    Args:
        hook_name: the path of a module, such as `model.layers.9`; its output is stored.
        settings: further fields of `CacheActivationsRunnerConfig`; `model_dtype` is the
            precision to run the model in, float32 without.
    """
    from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig

    dataset = _pretokenized(texts, n_tokens, context_size)
    n_batches = min(n_tokens // context_size, len(dataset)) // ROWS_A_BATCH
    if not n_batches:
        raise ValueError(f"the texts make {len(dataset)} rows; give {ROWS_A_BATCH} or more")
    model_dtype = settings.pop("model_dtype", "float32")
    chosen = {
        **_harvest_settings(hook_name, context_size, folder),
        "training_tokens": n_batches * ROWS_A_BATCH * context_size,
        "model_from_pretrained_kwargs": {"dtype": getattr(torch, model_dtype)},
        **settings,
    }
    row_bytes = chosen["d_in"] * getattr(torch, chosen["dtype"]).itemsize * context_size
    buffer = _whole_buffers(n_batches, ROWS_A_BATCH * row_bytes)
    # A hundredth of a byte more, against rounding down.
    chosen["buffer_size_gb"] = (buffer * ROWS_A_BATCH * row_bytes + 0.01) / 1e9
    with _quiet():
        began = time.perf_counter()
        runner = CacheActivationsRunner(
            CacheActivationsRunnerConfig(**chosen), override_dataset=dataset
        )
        loaded = time.perf_counter()
        written = runner.run()
        done = time.perf_counter()
    found = len(written) * context_size
    if found != chosen["training_tokens"]:
        raise RuntimeError(f"SAELens wrote {found} tokens, not {chosen['training_tokens']}")
    return HarvestSeconds(loaded - began, done - loaded, found)


def _harvest_settings(hook_name: str, context_size: int, folder: Path) -> dict[str, Any]:
    return {
        "dataset_path": "",
        "model_name": str(embedded_folder(MODEL)),
        "model_class_name": "AutoModelForCausalLM",
        "model_batch_size": ROWS_A_BATCH,
        "hook_name": hook_name,
        "d_in": 576,
        "context_size": context_size,
        "new_cached_activations_path": str(folder),
        # It would shuffle what it returns, and leave the disk as it is.
        "shuffle": False,
        "streaming": False,
        "prepend_bos": False,
        "device": "cpu",
        "dtype": "float16",
    }


def _whole_buffers(n_batches: int, batch_bytes: int) -> int:
    """Batches a buffer: the most that divide the whole and fit in memory.

    SAELens fills its last buffer whatever was asked for, beginning the text again.
    """
    most = max(1, _BUFFER_BYTES // batch_bytes)
    return max(n for n in range(1, min(most, n_batches) + 1) if n_batches % n == 0)


def _pretokenized(texts: list[str], n_tokens: int, context_size: int) -> Any:
    from datasets import Dataset
    from sae_lens.tokenization_and_batching import concat_and_batch_sequences
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(embedded_folder(MODEL))
    begin = tokenizer.convert_tokens_to_ids(EMBEDDED[MODEL].bos_token)
    rows: list[torch.Tensor] = []
    documents = (
        torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts
    )
    packed = concat_and_batch_sequences(
        documents,
        context_size,
        begin_batch_token_id=begin,
        sequence_separator_token_id=begin,
    )
    for row in packed:
        rows.append(row)
        if len(rows) * context_size >= n_tokens:
            break
    return Dataset.from_dict({"input_ids": torch.stack(rows).numpy()})


def saelens_rows_per_second(
    folder: Path,
    d_in: int,
    hook_name: str,
    batch_size: int,
    n_batches: int,
    *,
    n_batches_in_buffer: int | None = None,
    store_batch_size_prompts: int | None = None,
) -> float:
    """Rows a second that SAELens's `ActivationsStore` gives from its own cache, warm.

    As float32, as it trains, and mixed as it does: at each refill the buffer is extended by
    one read, permuted as a whole, and served but for `n_batches_in_buffer / 2` sequences. Its
    name notwithstanding, `n_batches_in_buffer` counts sequences. Reading alone is many times
    faster than this, so the speed is that of the mixing: the larger a buffer, and the smaller a
    read beside it, the slower. By default the buffer is the smallest that SAELens accepts, one
    training batch, and a read is as large as it: its fastest, which hardly mixes at all.

    Args:
        n_batches_in_buffer: sequences that are mixed, at least `batch_size` rows of them.
        store_batch_size_prompts: sequences a read; fastest as large as the buffer.
    """
    buffer = n_batches_in_buffer or -(-batch_size // _context_size(folder, hook_name))
    with _quiet():
        batches = saelens_store(
            folder,
            d_in,
            hook_name,
            batch_size,
            n_batches_in_buffer=buffer,
            store_batch_size_prompts=store_batch_size_prompts or buffer,
        )
        # A whole refill first, so that the pages are in memory and the buffer is full.
        for _ in range(1 + buffer * _context_size(folder, hook_name) // batch_size):
            next(batches)
        began = time.perf_counter()
        for _ in range(n_batches):
            batch = next(batches)
        seconds = time.perf_counter() - began
    if batch.shape != (batch_size, d_in):
        raise RuntimeError(f"SAELens gave a batch of {tuple(batch.shape)}")
    return n_batches * batch_size / seconds


def saelens_store(
    folder: Path,
    d_in: int,
    hook_name: str,
    batch_size: int,
    *,
    n_batches_in_buffer: int,
    store_batch_size_prompts: int,
    **settings: Any,
) -> Iterator[torch.Tensor]:
    """SAELens's `ActivationsStore` over its own cache: endless batches, mixed, as float32."""
    from sae_lens import ActivationsStore

    chosen = {
        # Asked for and never called where activations are cached.
        "model": nn.Module(),
        "dataset": None,
        "streaming": False,
        "hook_head_index": None,
        "context_size": _context_size(folder, hook_name),
        "total_training_tokens": batch_size,
        "prepend_bos": False,
        "normalize_activations": "none",
        "device": torch.device("cpu"),
        "dtype": "float32",
        "cached_activations_path": str(folder),
        **settings,
    }
    with _quiet():
        store = ActivationsStore(
            hook_name=hook_name,
            d_in=d_in,
            train_batch_size_tokens=batch_size,
            n_batches_in_buffer=n_batches_in_buffer,
            store_batch_size_prompts=store_batch_size_prompts,
            **chosen,
        )
    return iter(store)


def _context_size(folder: Path, hook_name: str) -> int:
    from datasets import load_from_disk

    return int(load_from_disk(str(folder)).features[hook_name].shape[0])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without SAELens's bars and warnings."""
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stderr(nowhere),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield
