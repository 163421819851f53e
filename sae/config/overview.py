"""What `sae --help` and `sae cache --help` print, of the table of commands alone."""

from sae.config.commands import COMMANDS, FAMILIES, family

_OVERVIEW = """\
sae: from text to steering, with sparse autoencoders

  sae COMMAND [group=choice ...] [key=value ...]
  sae COMMAND --help        every key of a command, with its meaning
  sae train key=1,2         several dictionaries side by side, from one pass over a cache
  sae COMMAND -m key=1,2    a run for each value instead, through Hydra's launchers

Commands
{commands}

Commands with verbs, which sae cache --help and sae atlas --help list
{families}

Start with: sae demo
"""


def overview() -> str:
    """Return the help of `sae` itself."""
    single = [command for command in COMMANDS.values() if " " not in command.name]
    lines = []
    for command in single:
        lines.append(f"  {command.name:<9}{command.summary}")
        lines += [f"{'':<11}{flag.summary}: {flag.example}" for flag in family(command.name)]
    families = [f"  {first:<9}{summary}" for first, summary in FAMILIES.items()]
    return _OVERVIEW.format(commands="\n".join(lines), families="\n".join(families))


def family_overview(first: str) -> str:
    """Return the help of a word that has verbs behind it, such as `cache`."""
    lines = [f"sae {first} VERB ...   {FAMILIES[first]}", ""]
    for command in family(first):
        lines.append(f"  {command.name.split()[1]:<8}{command.summary}")
        lines.append(f"          {command.example}")
    lines += ["", f"sae {first} VERB --help   every key of a verb, with its meaning"]
    return "\n".join(lines)
