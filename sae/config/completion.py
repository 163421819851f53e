"""Tab completion: scripts for bash and zsh, and what may stand at the cursor.

The scripts ask `sae completion words` at every press of the tab key, so this module imports
nothing heavy. What keys a command has is read from `completion.json`, which `scripts/stubs.py`
writes: the configuration classes themselves take seconds to import.
"""

import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sae.base.errors import UserError
from sae.config.commands import COMMANDS, FAMILIES, chosen, family

TABLE = Path(__file__).with_name("completion.json")

_BASH = """\
_sae_completion() {
    local found
    COMPREPLY=()
    while IFS= read -r found; do
        COMPREPLY+=("$found")
    done < <("$1" completion words "${COMP_LINE:0:COMP_POINT}" "$COMP_WORDBREAKS" 2>/dev/null)
}
complete -o nospace -F _sae_completion sae
"""
_ZSH = """\
_sae_completion() {
    local -a found
    local before="${(j: :)words[1,CURRENT-1]}"
    found=("${(@f)$("${words[1]}" completion words "$before $QIPREFIX$PREFIX" 2>/dev/null)}")
    found=("${(@)found:#}")
    (( $#found )) && compadd -Q -U -S '' -a found
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
compdef _sae_completion sae
"""
_HELP = """\
sae completion SHELL   print a script with which the tab key completes the words of sae

  bash: put this line into ~/.bashrc:  source <(sae completion bash)
  zsh:  put this line into ~/.zshrc:   source <(sae completion zsh)

The tab key then knows commands, their keys, the choices of groups, and files.
"""
_SCRIPTS = {"bash": _BASH, "zsh": _ZSH}
_OWN_FOLDER = "--config-dir="
# Words that are not to be followed by a space, because something belongs behind them.
_GOES_ON = ("=", ".", "/")


def answer(words: Sequence[str]) -> str:
    """Return what `sae completion WORDS` prints.

    Args:
        words: `bash` or `zsh`, for the script of that shell; none, for how to use it; or
            `words`, the line up to the cursor, and the characters at which the shell itself
            breaks words, for what may stand at the cursor, a line each: the scripts ask that.

    Raises:
        UserError: for any other words.
    """
    match list(words):
        case [] | ["-h" | "--help"]:
            return _HELP
        case [("bash" | "zsh") as shell]:
            return _SCRIPTS[shell]
        case ["words", line, *breaks]:
            return "".join(f"{found}\n" for found in completed(line, "".join(breaks)))
    given = " ".join(words)
    raise UserError(f"there is no completion for {given}; give bash or zsh")


def completed(line: str, breaks: str = "") -> list[str]:
    """Return what may take the place of the word at the end of a line, as it is to be typed.

    Args:
        line: the command line up to the cursor, from its first word on.
        breaks: the characters at which the shell breaks words. What is before the last of
            them in the word stays as it is and is left out, as bash wants it.
    """
    words, typed = _split(line)
    meant, quote = _meaning(typed)
    if meant is None:
        return []
    if quote:
        kept = typed[typed.rindex(quote) + 1 :]
    else:
        kept = re.split(rf"(?<!\\)[{re.escape(breaks)}]", typed)[-1] if breaks else typed
    found = sorted({word for word in _candidates(words[1:], meant) if word.startswith(meant)})
    return [
        kept + _as_typed(word[len(meant) :], word, quote)
        for word in found
        if word.isprintable()
    ]


def _as_typed(rest: str, word: str, quote: str) -> str:
    """Return the end of a word as the shell reads it back, with a space if it is complete."""
    if quote:
        return rest
    return re.sub(r"([^\w@%+=:,./-])", r"\\\1", rest) + " " * (not word.endswith(_GOES_ON))


def _split(line: str) -> tuple[list[str], str]:
    """Return the finished words of a line, and the last one as it has been typed so far."""
    words, start = [""], 0
    for space in re.finditer(r"(?<!\\)\s", line):
        # Within quotation marks a space ends no word.
        with suppress(ValueError):
            words, start = shlex.split(line[: space.start()]), space.end()
    return words, line[start:]


def _meaning(typed: str) -> tuple[str | None, str]:
    """Return what a word means that may have an open quotation mark, and that mark."""
    for quote in ("", "'", '"'):
        with suppress(ValueError):
            return "".join(shlex.split(typed + quote)), quote
    return None, ""


def _candidates(words: Sequence[str], current: str) -> Iterator[str]:
    """Yield words that may follow some others; not all of them begin as the current one."""
    if words and words[0] == "help":
        words = words[1:]
    if words and words[0] == "completion":
        yield from _SCRIPTS
        return
    folder = next((w for w in [*words, current] if w.startswith(_OWN_FOLDER)), "")
    words = [word for word in words if word != folder]
    if current.startswith(_OWN_FOLDER):
        yield from _files(_OWN_FOLDER, current.removeprefix(_OWN_FOLDER))
    elif not words:
        yield from (name for name in COMMANDS if " " not in name)
        yield from (*FAMILIES, "help", "completion")
        yield from _flags(current, "--help", "--version", _OWN_FOLDER)
    else:
        verbs = [command.name.split()[1] for command in family(words[0])]
        yield from (verb for verb in verbs if len(words) == 1 and not verb.startswith("-"))
        yield from _flags(current, "--help", _OWN_FOLDER, *verbs)
        if words[0] in FAMILIES and len(words) == 1:
            return
        with suppress(UserError):
            command, given = chosen(words)
            own = folder.removeprefix(_OWN_FOLDER) or os.environ.get("SAE_CONFIG_DIR", "")
            yield from _of_command(command.id, bool(command.places), own, given, current)


def _flags(current: str, *words: str) -> list[str]:
    """Return those of the words that are flags, for those who have begun one."""
    return [word for word in words if word.startswith("-") and current.startswith("-")]


def _of_command(
    command: str, has_places: bool, own: str, given: Sequence[str], current: str
) -> Iterator[str]:
    """Yield the keys of a command, or the values of the key at hand."""
    known = _known(command, own, given)
    name, equals, value = current.partition("=")
    if equals and name in known:
        takes = known[name]
        # In `sae=standard,topk` each of several values is completed.
        before, comma, _ = value.rpartition(",")
        yield from (f"{name}={before}{comma}{word}" for word in takes if word)
        # Where choices have names, a folder is for those who have begun to write one.
        if "" in takes and (value or not any(takes)):
            yield from _files(f"{name}=", value)
        return
    used = {word.partition("=")[0] for word in given}
    for key in known.keys() - used:
        # Up to the next dot, so that a part with many keys is one word at first.
        rest = key.removeprefix(current) if key.startswith(current) else key
        part, dot, _ = rest.partition(".")
        yield key[: len(key) - len(rest)] + part + (dot or "=")
    if has_places:
        yield from _files("", current)


def _known(command: str, own: str, given: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """Return the keys of a command with words that they take; an empty one is any word."""
    table: Mapping[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    entry = table["commands"].get(command, {"keys": {}, "groups": {}})
    known = {"config": [""], **entry["keys"]}
    for name, group in entry["groups"].items():
        known[name] = [*group["choices"], *_own_choices(own, name)]
        known[name] += [""] * group["named"]
        classes = table["classes"].get(name, {})
        asked = [word.partition("=")[2] for word in given if word.startswith(f"{name}=")]
        names = [choice for word in asked for choice in word.split(",") if choice in classes]
        for choice in names or classes:
            known |= {f"{group['path']}.{key}": v for key, v in classes[choice].items()}
    if presets := _own_choices(own, f"preset/{command}"):
        known["preset"] = [*known.get("preset", ()), *presets]
    return known


def _own_choices(folder: str, group: str) -> list[str]:
    """Return the choices of a group that somebody has in a folder of their own."""
    files = (Path(folder).expanduser() / group).glob("*.yaml") if folder else ()
    return [path.stem for path in files]


def _files(before: str, value: str) -> Iterable[str]:
    """Yield the files and folders whose names begin as a value does, each after `before`."""
    place, slash, name = value.rpartition("/")
    with suppress(OSError), os.scandir(os.path.expanduser(place + slash) or ".") as entries:
        for entry in entries:
            # Hidden ones are for those who ask for them.
            if entry.name.startswith(".") <= name.startswith("."):
                yield f"{before}{place}{slash}{entry.name}{'/' * entry.is_dir()}"
