"""SAELens's folder, which is our own: `sae.dictionary.files` has the details."""

from pathlib import Path

from sae.dictionary import Dictionary, load_dictionary, save_dictionary
from sae.dictionary.files import CONFIG_FILE, WEIGHTS_FILE
from sae.exchange.formats.parts import Written


class SAELens(Written):
    """SAELens's own folder, which has a place for every dictionary."""

    name = "saelens"
    files = (CONFIG_FILE, WEIGHTS_FILE)
    title = "SAELens"
    load = """\
from sae_lens import SAE
dictionary = SAE.load_from_disk("{folder}")"""
    lost = "nothing; SAELens has no class for the transcoders of topk and gated"

    def recognises(self, path: Path) -> bool:
        return (path / CONFIG_FILE).is_file() and super().recognises(path)

    def cannot_normalise(self, dictionary: Dictionary) -> str | None:
        return None

    def read(self, path: Path) -> Dictionary:
        return load_dictionary(path)

    def write(self, dictionary: Dictionary, folder: Path) -> None:
        save_dictionary(dictionary, folder)
