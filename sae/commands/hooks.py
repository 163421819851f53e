"""`sae harvest --list-hooks`: every place in a model that can be read."""

from dataclasses import dataclass, fields

from sae.base import require, show
from sae.harvesting.config import HarvestConfig
from sae.models import list_sites, load_skeleton, measured


@dataclass(frozen=True, kw_only=True, slots=True)
class HarvestListHooksConfig(HarvestConfig):
    """List every place in a model that can be read, with the names to give as `hook_names`.

    It takes the keys of a harvest, so that the flag can be added to one; the model counts.
    """

    def idle_keys(self) -> dict[str, str | None]:
        """Return the keys of a harvest that say nothing of the model."""
        return dict.fromkeys(field.name for field in fields(self) if field.name != "model")


def list_hooks(config: HarvestListHooksConfig) -> None:
    """Print a line for each hook of the model, told from its configuration alone.

    Raises:
        UserError: if the model's blocks have no TransformerLens names here.
    """
    skeleton = load_skeleton(config.model)
    sites = measured(skeleton, list_sites(skeleton))
    require(
        bool(sites),
        f"model.name={config.model.name} ({type(skeleton).__name__}) is built of blocks that "
        "have no TransformerLens names here; give module paths in hook_names instead",
    )
    rows = [("hook_name", "module", "side", "width")]
    rows += [(s.hook_name, s.module, s.side, str(s.width or "")) for s in sites]
    wide = [max(len(row[i]) for row in rows) for i in range(3)]
    for name, module, side, width in rows:
        line = f"{name:<{wide[0]}}  {module:<{wide[1]}}  {side:<{wide[2]}}  {width:>5}"
        show(line.rstrip())
