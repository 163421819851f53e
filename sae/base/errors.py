"""The one exception that people see as a sentence instead of a traceback."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the person running the command can mend; its text says what and how.

    The command line prints a line for each sentence that it is made with, and exits with
    status 2. Anything else that is raised is a defect of ours and keeps its traceback.
    """

    def __init__(self, *sentences: str) -> None:
        super().__init__(*sentences)

    def __str__(self) -> str:
        """Return the sentences, a line each."""
        return "\n".join(map(str, self.args))


def nearest(word: str, choices: Iterable[str], n: int = 3) -> str:
    """`"; nearest: a, b"` for the choices most like `word`, or an empty string."""
    found = difflib.get_close_matches(word, list(choices), n=n, cutoff=0.4)
    return f"; nearest: {', '.join(found)}" if found else ""


def require(condition: bool, sentence: str) -> None:
    """Raise `UserError(sentence)` unless `condition` holds."""
    if not condition:
        raise UserError(sentence)


def require_at_least(config: object, of: str = "", **least: int) -> None:
    """Refuse a configuration with less than these numbers under their names; null may be.

    Args:
        of: what comes before the names on the command line, such as `sweep.`.
    """
    for name, number in least.items():
        value = getattr(config, name)
        require(value is None or value >= number, f"{of}{name}={value}; give {number} or more")
