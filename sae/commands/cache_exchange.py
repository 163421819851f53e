"""`sae cache export | import`: caches to and from the data sets that SAELens trains on."""

from dataclasses import dataclass, field

from sae.base import require, show
from sae.cache.layout import ActivationCache, open_cache
from sae.exchange.activations import export_to_hf, import_from_saelens
from sae.pages.cache_table import sides

_BOTH = "all"


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheExportConfig:
    """Write a cache as a Hugging Face data set that SAELens trains from."""

    cache: str
    """The cache: a folder, or an address in an object store such as `s3://bucket/x.zarr`."""
    out: str
    """The folder to write."""
    hook_names: list[str] | None = None
    """Hooks whose activations are written, a column each; by default all of the cache."""
    held_out: bool | str = False
    """Which sequences are written: those for training (false), those that are held out of it
    (true), or both (all)."""

    def __post_init__(self) -> None:
        require(
            isinstance(self.held_out, bool) or self.held_out == _BOTH,
            f"held_out={self.held_out}: give true, false or {_BOTH}",
        )


def export(config: CacheExportConfig) -> int:
    """Write the data set, and return the number of its sequences."""
    side = config.held_out if isinstance(config.held_out, bool) else None
    n = export_to_hf(open_cache(config.cache), config.out, config.hook_names, held_out=side)
    show(f"{config.out}: {n:,} sequences")
    return n


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheImportConfig:
    """Make a cache from a data set that SAELens's CacheActivationsRunner wrote."""

    folder: str
    """The folder of the data set."""
    out: str
    """Where the new cache goes."""
    model_name: str
    """Model that the activations are of: a local folder, or a Hub id such as `gpt2`."""
    held_out_fraction: float = 0.1
    """Share of the sequences that are kept out of training."""
    dtype: str = "float16"
    """Precision in which activations are stored: float16, bfloat16, float32 or int8."""
    special_token_ids: list[int] = field(default_factory=list)
    """Tokens that are no text, such as the one at the beginning; they are not trained on."""


def import_(config: CacheImportConfig) -> ActivationCache:
    """Write the cache, or go on with it, and say what is in it."""
    cache = import_from_saelens(
        config.folder,
        config.out,
        model_name=config.model_name,
        held_out_fraction=config.held_out_fraction,
        dtype=config.dtype,
        special_token_ids=config.special_token_ids,
    )
    show(f"{config.out}: {sides(cache)}")
    return cache
