"""`sae import`: a dictionary of another tool becomes one of a run, for every other command."""

import re
from dataclasses import dataclass
from pathlib import Path

from sae.base import require, say
from sae.cache.store import is_url
from sae.dictionary import Dictionary, load_dictionary, metadata_of
from sae.dictionary.files import write_files
from sae.exchange.formats import WRITTEN, read_dictionary, readable_format
from sae.exchange.hub import check_names, local_path
from sae.exchange.importing import Asked, belonging
from sae.run import RUN_CACHE, Run, cache_location, make


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportConfig:
    """Take a dictionary of another tool into a run.

    The dictionary's biases and scales are folded, so that `sae eval`, `analyze`, `steer` and
    `export` work on it as on one trained here.
    """

    folder: str
    """Where the dictionary is: a folder, a file of OpenAI's or Qwen's, or
    `ORG/NAME:FOLDER@REVISION` on the Hub, with or without the folder and the revision."""
    run: str = "runs/default"
    """Folder of the run; the dictionary goes to `{run}/dictionaries/{name}`."""
    name: str | None = None
    """Name of the dictionary in the run; by default that of its folder, with the one above it
    for `trainer_0`."""
    format: str | None = None
    """Format of the dictionary, if its files do not tell: saelens, sparsify,
    dictionary_learning, openai, openmoss, gemma_scope, gemma_scope_2 or qwen_scope."""
    cache: str = RUN_CACHE
    """Cache of the dictionary's model; if there is none, the model is taken by its name
    alone."""
    model_name: str | None = None
    """Model that the dictionary belongs to, a folder or a Hub id; needed if its files do not
    say, or name it in another way than the cache."""
    hook_name: str | None = None
    """Hook that the dictionary reads; needed if its files do not say."""
    hook_name_out: str | None = None
    """Hook that a transcoder reconstructs; needed if its files do not say."""

    def __post_init__(self) -> None:
        require(
            not self.name or Path(self.name).name == self.name != "..",
            f"name={self.name} is no name of one folder; leave out the slashes",
        )
        # Longer by as much while it is written.
        check_names(f"{self.id}.0123456789.unfinished")
        if self.format is not None:
            readable_format(self.format)

    @property
    def id(self) -> str:
        """The name in the run."""
        place = Path(self.folder)
        found = place.name
        if re.fullmatch(r"trainer_\d+", found):
            # dictionary_learning numbers them anew in each of its runs.
            found = f"{place.absolute().parent.name}-{found}"
        found = self.name or re.sub(r"[^\w.=-]+", "-", found)
        return found.strip(".") or "imported"

    @property
    def target(self) -> Path:
        """The folder to write."""
        return Run.at(self.run).dictionary(self.id)

    @property
    def origin(self) -> str:
        """Where it is from, for others to read: on this disk only the folder's name."""
        path = Path(self.folder)
        return path.absolute().name if path.exists() else self.folder


def run(config: ImportConfig) -> Dictionary:
    """Read, look up model and hooks, and write; what is there already as it is, is reused."""
    target = config.target
    source = local_path(config.folder)
    require(
        source.resolve() != target.resolve(),
        f"{target} is where the import of {config.folder} would go; move it elsewhere first, "
        "or give another name=...",
    )
    found = read_dictionary(source, config.format)
    dictionary = belonging(_asked(config), found)
    made = make(
        target,
        lambda: _is_there(target, dictionary),
        lambda folder: write_files(dictionary, folder),
        command="import",
        lock=Run.at(config.run).dictionary_lock(config.id),
    )
    if made:
        say(f"import: {config.folder} is {target} now")
    return load_dictionary(target)


def _asked(config: ImportConfig) -> Asked:
    cache = cache_location(config.run, config.cache)
    return Asked(
        folder=config.folder,
        origin=config.origin,
        format=config.format,
        model_name=config.model_name,
        hook_name=config.hook_name,
        hook_name_out=config.hook_name_out,
        cache=cache if is_url(cache) or Path(cache).exists() else None,
    )


def _is_there(target: Path, dictionary: Dictionary) -> bool:
    """Whether it has been imported before; anything else is left as it is.

    Raises:
        UserError: if something else is there.
    """
    if not WRITTEN["saelens"].recognises(target):
        require(
            not target.exists() or (target.is_dir() and not any(target.iterdir())),
            f"{target} holds something that is no dictionary; give this one another name=...",
        )
        return False
    there = load_dictionary(target)
    same = there.digest == dictionary.digest
    require(
        same and metadata_of(dictionary).items() <= metadata_of(there).items(),
        f"{target} is another dictionary; give this one another name=...",
    )
    return True
