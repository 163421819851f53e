"""Names of models, texts and folders as others know them: nothing says where they are here."""

import re
from pathlib import Path

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_INSIDE = re.compile(r"[:@].*", re.DOTALL)


def on_the_hub(name: str) -> bool:
    """Whether `name` reads as one of the Hub's and is no folder here."""
    return _HUB_ID.fullmatch(name) is not None and not Path(name).exists()


def public(name: str) -> str:
    """`name` if it is the Hub's, such as `ORG/NAME:FOLDER`; of a path its last part alone."""
    head = _INSIDE.sub("", name)
    if on_the_hub(name) or ("/" in head and on_the_hub(head)):
        return name
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1]
