"""The command line: `sae COMMAND [group=choice ...] [key=value ...]`."""

import os
import sys
from collections.abc import Sequence

from sae.base.errors import UserError

_HELP = ("-h", "--help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.

    0, or 1 where a command such as `sae cache verify` has found something wrong, or 2 after a
    sentence on standard error, or that of an interruption: 130, or 143 where it was asked to
    terminate, or 129 where its terminal was closed.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _main(words)
    except UserError as error:
        label = f"sae {words[0]}" if words else "sae"
        for sentence in error.args:
            # What another library said, and is quoted, may have several lines.
            print(f"{label}: {' '.join(str(sentence).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever read has seen enough, as `| head` has; nor may Python's own flush complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as interrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        # A request to terminate has a status of its own.
        return int(getattr(interrupt, "exit_status", 130))


def _main(words: list[str]) -> int:
    from sae.base.names import check_utf8
    from sae.config.commands import FAMILIES, chosen, family_overview, overview

    if not words or words[0] in _HELP or words == ["help"]:
        print(overview())
        return 0
    if words[0] == "help":
        words = [*words[1:], "--help"]
    if words[0] == "completion":
        from sae.config.completion import answer

        sys.stdout.write(answer(words[1:]))
        return 0
    for word in words:
        check_utf8(word)
    words = _without_config_dir(words)
    if words[0] == "--version":
        from sae.base.provenance import code_version

        print(code_version())
        return 0
    if words[0] in FAMILIES and (len(words) == 1 or words[1] in (*_HELP, "help")):
        print(family_overview(words[0]))
        return 0
    command, rest = chosen(words)
    if any(word in _HELP for word in rest):
        from sae.config.help import command_help

        print(command_help(command, [word for word in rest if word not in _HELP]))
        return 0
    from sae.config.launch import launch

    return int(launch(command, rest) is False)


def _without_config_dir(words: list[str]) -> list[str]:
    """Return the words but `--config-dir=FOLDER`, which goes into the environment."""
    for place, word in enumerate(words):
        flag, equals, folder = word.partition("=")
        if flag != "--config-dir":
            continue
        after = place + 1
        if not equals:
            folder, after = (words[after] if after < len(words) else ""), after + 1
        if not folder:
            raise UserError("--config-dir needs a folder: --config-dir=FOLDER")
        # Whatever looks for choices finds it there, and so do processes that are started.
        os.environ["SAE_CONFIG_DIR"] = folder
        return _without_config_dir([*words[:place], *words[after:]])
    return words


if __name__ == "__main__":
    sys.exit(main())
