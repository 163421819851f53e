"""The words that a command cannot do without."""

from sae.config.commands import Command
from sae.config.keys import REQUIRED, keys

NEEDED = {
    "cache": ["c.zarr"],
    "first": ["one"],
    "second": ["other"],
    "out": ["out.gguf"],
    "caches": ["a.zarr", "b.zarr"],
    "folder": ["folder"],
    "atlas": ["atlas"],
    "file": ["edits.yaml"],
    "model_name": ["model_name=gpt2"],
    "results": ["runs/mine/patching/pair"],
    "site": ["site=head"],
}


def needed(command: Command) -> list[str]:
    """Words for the keys that have no default, as people write them."""
    required = {key.name for key in keys(command.config_class()) if key.value is REQUIRED}
    places = [place.removesuffix("...") for place in command.places]
    names = [name for name in places if name in required]
    names += [name for name in required if name not in places]
    return [word for name in names for word in NEEDED[name]]
