"""Which models' own code may run on this machine: those that somebody here allowed.

An artefact records that its model needed code of its own. Artefacts come from strangers too, so
that record alone allows nothing: code runs again only where it was allowed by hand before.
"""

from pathlib import Path

from sae.base import digest, require
from sae.base.assets import cache_folder


def allow(name: str, revision: str | None) -> None:
    """Keep that the code of a model may run here, because somebody said so."""
    mark = _mark(name, revision)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()


def check_allowed(name: str, revision: str | None) -> None:
    """Refuse to run the code of a model that nobody has allowed on this machine.

    Raises:
        UserError: if nobody has.
    """
    named = f"model={name}" + (f" model.revision={revision}" if revision else "")
    require(
        _mark(name, revision).exists(),
        f"model {name} was run with code that came with it, which nobody has allowed on "
        "this machine; read that code, and if you trust it, allow it with `sae harvest "
        f"--list-hooks {named} model.trust_remote_code=true`",
    )


def _mark(name: str, revision: str | None) -> Path:
    """Return the file that is there if the model's code may run."""
    return cache_folder() / "trusted" / digest([name, revision])
