"""`sae harvest`: text through the model, activations of some hooks into a cache."""

from dataclasses import dataclass, fields
from pathlib import Path

from sae.base import UserError, require, show
from sae.base.processes import joined_processes
from sae.cache.layout import ActivationCache, open_cache
from sae.cache.store import is_url
from sae.harvesting.config import HarvestConfig
from sae.harvesting.harvest import harvest
from sae.models import list_sites, load_skeleton, measured
from sae.run import Run, keep_settings

__all__ = ["HarvestConfig", "HarvestListHooksConfig", "list_hooks", "run"]


def run(config: HarvestConfig) -> ActivationCache:
    """Harvest, or complete a harvest that was interrupted, or reuse a finished one.

    Started by `torchrun`, several processes fill one cache, taking turns with its chunks.
    """
    with joined_processes() as processes:
        remote = is_url(config.cache_location)
        # Beside a cache in an object store no file can stand.
        folder = Run.at(config.run).folder
        place = folder / "cache.zarr" if remote else Path(config.cache_location)
        reused = _is_complete(config.cache_location)
        harvest(config, processes)
        if processes.rank == 0 and not reused:
            keep_settings(config, "harvest", place)
    return open_cache(config.cache_location)


def _is_complete(location: str) -> bool:
    try:
        open_cache(location)
    except UserError:
        return False
    return True


@dataclass(frozen=True, kw_only=True, slots=True)
class HarvestListHooksConfig(HarvestConfig):
    """List every place in a model that can be read, with the names to give as `hook_names`.

    It takes all keys of a harvest, so that you can add the flag to one, but only those of the
    model have an effect.
    """

    def idle_keys(self) -> dict[str, str | None]:
        """Return the keys of a harvest that say nothing of the model."""
        names = (field.name for field in fields(self) if field.name != "model")
        return dict.fromkeys([*names, "model.dtype", "model.device", "model.bos_token"])


def list_hooks(config: HarvestListHooksConfig) -> None:
    """Print a line for each hook of the model, told from its configuration alone.

    Raises:
        UserError: if the model's blocks have no TransformerLens names here.
    """
    skeleton = load_skeleton(config.model)
    sites = measured(skeleton, list_sites(skeleton))
    require(
        bool(sites),
        f"model.name={config.model.name} ({type(skeleton).__name__}) has blocks without "
        "TransformerLens names; give module paths in hook_names instead",
    )
    rows = [("hook_name", "module", "side", "width")]
    rows += [(s.hook_name, s.module, s.side, str(s.width or "")) for s in sites]
    wide = [max(len(row[i]) for row in rows) for i in range(3)]
    for name, module, side, width in rows:
        line = f"{name:<{wide[0]}}  {module:<{wide[1]}}  {side:<{wide[2]}}  {width:>5}"
        show(line.rstrip())
