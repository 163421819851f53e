"""What `sae harvest` can be asked for: what is read, and the cache that it goes to."""

from dataclasses import dataclass, replace

from sae.base import digest, plain, require
from sae.cache.create import COMPRESSIONS
from sae.models import recorded_name
from sae.rows.reading import Reading
from sae.run import RUN_CACHE, cache_location


@dataclass(frozen=True, kw_only=True, slots=True)
class HarvestConfig(Reading):
    """Run text through a model and keep its activations at some hooks in a cache."""

    run: str = "runs/default"
    """Folder of the run; the cache goes to `{run}/cache.zarr`."""
    cache: str = RUN_CACHE
    """Where to write the cache: a folder, or an address in an object store such as
    `s3://bucket/x.zarr`."""
    n_tokens: int = 480_000
    """Number of tokens to harvest, including those that are held out of training."""
    compression: str = "none"
    """Compression of the stored chunks: `none`, or `zstd`, which loses nothing but makes
    reading slower."""
    verify: bool = True
    """Read what an earlier harvest has already written, and compute damaged chunks again."""

    def __post_init__(self) -> None:
        Reading.__post_init__(self)
        require(
            self.n_tokens >= 2 * self.context_size,
            f"n_tokens={self.n_tokens} is less than two sequences of context_size="
            f"{self.context_size}, one for training and one held out",
        )
        require(
            self.compression in COMPRESSIONS,
            f"compression={self.compression} is unknown; choose one of "
            f"{', '.join(COMPRESSIONS)}",
        )

    @property
    def cache_location(self) -> str:
        """Where the cache goes."""
        return cache_location(self.run, self.cache)

    @property
    def digest(self) -> str:
        """Identifies the content: where it goes, and how fast it is made, are no part of it.

        A model or a text that lies here is the same from every working directory.
        """
        return self._digest(recorded_name(self.model.name), self.data.identity)

    @property
    def digest_before(self) -> str:
        """What identified the content when paths were taken as they were written."""
        return self._digest(self.model.name, {**self.data.identity, "name": self.data.name})

    def _digest(self, model_name: str, text: dict[str, object]) -> str:
        content = replace(
            self,
            run="",
            batch_size=None,
            text_workers=None,
            verify=True,
            model=replace(self.model, name=model_name, device=""),
        )
        found = plain(content) | {"cache": None, "data": text}
        for key in ("trust_remote_code", "random_weights"):
            if not found["model"][key]:
                # A key that came later: without it a cache is the same as one from before.
                del found["model"][key]
        return digest(found)
