"""How a command is written: its words in one line."""

import dataclasses

from sae.config.commands import Command
from sae.config.groups import groups
from sae.config.keys import is_required, parts

# Up to so many keys are named one by one.
_FEW = 6


def usage(command: Command) -> str:
    """Return the line that shows a command's words: `sae cache sample CACHE [n=...]`."""
    config = command.config_class()
    required = {f.name for f in dataclasses.fields(config) if is_required(f)}
    taken = {place.removesuffix("...") for place in command.places}
    left = [f.name for f in dataclasses.fields(config) if f.name not in taken]
    optional = [name for name in left if name not in required]
    words = [f"sae {command.name}"]
    words += [
        place_word(place, place.removesuffix("...") in required) for place in command.places
    ]
    words += [f"{name}=..." for name in left if name in required]
    if groups(command):
        words += ["[group=choice ...]"]
    if parts(config) or len(optional) > _FEW:
        words += ["[key=value ...]"]
    else:
        words += [f"[{name}=...]" for name in optional]
    return " ".join(words)


def place_word(place: str, required: bool) -> str:
    """Return how a plain word is shown: `CACHE`, `[RUN]`, `CACHE CACHE ...`."""
    if place.endswith("..."):
        one = place.removesuffix("...").removesuffix("s").upper()
        return f"{one} {one} ..."
    return place.upper() if required else f"[{place.upper()}]"
