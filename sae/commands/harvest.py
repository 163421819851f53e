"""`sae harvest`: text through the model, activations of some hooks into a cache."""

from sae.base.processes import joined_processes
from sae.cache.layout import ActivationCache, open_cache
from sae.harvesting.config import HarvestConfig
from sae.harvesting.harvest import harvest

__all__ = ["HarvestConfig", "run"]


def run(config: HarvestConfig) -> ActivationCache:
    """Harvest, or complete a harvest that was interrupted, or reuse a finished one.

    Started by `torchrun`, several processes fill one cache, taking turns with its chunks.
    """
    with joined_processes() as processes:
        harvest(config, processes)
    return open_cache(config.cache_location)
