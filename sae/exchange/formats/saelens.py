"""SAELens's folder, which is our own: `sae.dictionary.files` has the details."""

from pathlib import Path

from sae.dictionary import Dictionary, load_dictionary, save_dictionary
from sae.dictionary.files import CONFIG_FILE, WEIGHTS_FILE
from sae.dictionary.tensors import safetensors_there

NAME = "saelens"
FILES: tuple[str, ...] = (CONFIG_FILE, WEIGHTS_FILE)
TITLE = "SAELens"
LOAD = """\
from sae_lens import SAE
dictionary = SAE.load_from_disk("{folder}")"""
LOST = "nothing; SAELens has no class for the transcoders of topk and gated"


def recognises(path: Path) -> bool:
    """Whether configuration and weights are there."""
    return (path / CONFIG_FILE).is_file() and safetensors_there(path / WEIGHTS_FILE)


def read(path: Path) -> Dictionary:
    """The dictionary of a folder."""
    return load_dictionary(path)


def cannot_hold(dictionary: Dictionary) -> str | None:
    """Nothing: it is our own format."""
    return None


def write(dictionary: Dictionary, folder: Path) -> None:
    """Write `folder`, appearing all at once."""
    save_dictionary(dictionary, folder)
