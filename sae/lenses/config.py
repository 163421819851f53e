"""What `sae lens` can be asked for."""

from dataclasses import dataclass, field, fields

from sae.base import require, require_at_least
from sae.base.names import check_names
from sae.models import ModelConfig
from sae.run import RUN_CACHE, cache_location


@dataclass(frozen=True, kw_only=True, slots=True)
class LensConfig:
    """Show what a model would predict next from its stream after each block.

    A logit lens reads the stream after every block. A tuned lens reads it after those blocks
    whose activations are in a cache, through affine maps that are fitted to the cache.
    """

    text: str = "The Eiffel Tower is in the city of"
    """Text to read; the model predicts what follows each of its tokens."""
    run: str = "runs/default"
    """Folder of the run; a table, a page and a picture go to `{run}/lens/{name}/`."""
    name: str = "default"
    """Name of the result. A result under the same name that was made with other settings is
    replaced."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Language model to look into; with `tuned=true` it is that of the cache."""
    tuned: bool = False
    """Show a tuned lens beside the logit lens. Its maps go to `{run}/tuned_lens/`."""
    cache: str = RUN_CACHE
    """Cache that the maps are fitted to; it has to hold what the model's last block returns,
    and what any other blocks return."""
    n_held_out_tokens: int = 2048
    """Number of held-out tokens of the cache on which both lenses are judged, about."""
    n_top: int = 5
    """Number of likeliest tokens to keep for each layer and position."""

    def __post_init__(self) -> None:
        require(self.text != "", "text is empty; write something for the model to read")
        require_at_least(self, n_top=1, n_held_out_tokens=1)
        check_names(self.name)
        require(
            self.name not in ("", ".", "..") and "/" not in self.name,
            f"name={self.name} cannot be the name of a folder; give a word without slashes",
        )
        require(
            not self.tuned or self.model == ModelConfig(device=self.model.device),
            f"model={self.model.name} has no effect with tuned=true, which uses the model "
            "of the cache; give no key of model except model.device",
        )

    def idle_keys(self) -> dict[str, str | None]:
        """Return what only a tuned lens needs, or what it takes from the cache."""
        if not self.tuned:
            return dict.fromkeys(("cache", "n_held_out_tokens"), "tuned=true")
        names = {field.name for field in fields(ModelConfig)} - {"device"}
        return {f"model.{name}": "tuned=false" for name in names}

    @property
    def cache_location(self) -> str:
        """Where the cache is."""
        return cache_location(self.run, self.cache)
