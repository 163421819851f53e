"""The rows that a training asks for."""

from sae.cache.layout import open_cache
from sae.rows.cached import CachedRows
from sae.rows.live import LiveRows
from sae.rows.own import OwnRows, OwnTensors
from sae.rows.source import RowSource
from sae.training.config import TrainConfig


def open_source(config: TrainConfig, rows: OwnTensors | None = None) -> RowSource:
    """Open the rows of the user, of a cache, or of a model that runs beside."""
    if rows is not None:
        return OwnRows(
            rows,
            hook_name=config.hook_name,
            hook_name_out=config.hook_name_out,
            batch_size=config.train_batch_size_tokens,
        )
    if config.cache_location is None:
        return LiveRows(
            config.harvest,
            config.hook_name,
            config.hook_name_out,
            batch_size=config.train_batch_size_tokens,
            mix_rows=config.mix_rows,
            max_norm_multiple=config.max_norm_multiple,
            seed=config.shuffle_seed,
            state_folder=config.state_path.parent,
        )
    return CachedRows(
        open_cache(config.cache_location),
        config.hook_name,
        config.hook_name_out,
        batch_size=config.train_batch_size_tokens,
        max_norm_multiple=config.max_norm_multiple,
        seed=config.shuffle_seed,
    )
