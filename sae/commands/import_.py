"""`sae import`: a dictionary of another tool becomes one of a run, for every other command."""

from pathlib import Path

from sae.base import damaged, require, say
from sae.dictionary import Dictionary, load_dictionary, metadata_of
from sae.dictionary.files import CONFIG_FILE, read_record, write_files
from sae.exchange.dictionaries import local_path
from sae.exchange.formats import WRITTEN, read_dictionary
from sae.exchange.importing import ImportConfig, belonging
from sae.run import Run, keep_settings, make


def run(config: ImportConfig) -> Dictionary:
    """Read, look up model and hooks, and write; what is there already as it is, is reused."""
    target = config.target
    source = local_path(config.folder)
    require(
        source.resolve() != target.resolve(),
        f"{target} is the place where the import of {config.folder} would be written; move "
        "it elsewhere first, or give another name=...",
    )
    found = read_dictionary(source, config.format)
    dictionary = belonging(config, found)
    made = make(
        target,
        lambda: _is_there(target, dictionary),
        lambda folder: write_files(dictionary, folder),
        command="import",
        lock=Run.at(config.run).dictionary_lock(config.id),
    )
    if made:
        keep_settings(config, "import", target)
    if made:
        say(f"import: {config.folder} is now in {target}")
    return load_dictionary(target)


def _is_there(target: Path, dictionary: Dictionary) -> bool:
    """Whether it has been imported before; anything else is left as it is.

    Raises:
        UserError: if something else is there.
    """
    if not WRITTEN["saelens"].recognises(target):
        require(
            not target.exists() or (target.is_dir() and not any(target.iterdir())),
            f"{target} holds something that is not a dictionary; give this one another "
            "name=...",
        )
        return False
    if wrong := damaged(target):
        known = None if CONFIG_FILE in wrong else read_record(target).imported
        require(
            known is not None and known == dictionary.record.imported,
            f"{target / wrong[0]} is damaged, so it is not known whether it came from this "
            "import; remove that folder to import the dictionary again, or give this one "
            "another name=...",
        )
        say(f"import: {target / wrong[0]} is damaged; it is imported again")
        return False
    there = load_dictionary(target)
    same = there.digest == dictionary.digest
    require(
        same and metadata_of(dictionary).items() <= metadata_of(there).items(),
        f"{target} is another dictionary; give this one another name=...",
    )
    return True
