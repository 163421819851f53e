"""Dashboards of another tool read as an atlas: what `sae atlas import` does."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from sae.atlas import (
    CONTEXTS,
    FEATURES,
    N_BANDS,
    Atlas,
    AtlasRecord,
    Labels,
    columns_of,
    write_labels,
    write_record,
)
from sae.atlas.directions import direction_columns, nearest_features
from sae.base import UNKNOWN, UserError, check_folder, code_version, digest_bytes, require
from sae.dictionary import Dictionary
from sae.exchange.dashboards import neuronpedia, saedashboard
from sae.exchange.dashboards.columns import agreement_of_texts, rescaled, unit_norms
from sae.exchange.dashboards.files import feature_number
from sae.exchange.dashboards.folders import dictionary_beside
from sae.exchange.dashboards.tables import BY_HAND, EXPLANATION, Found
from sae.run import check_free, lock_of, new_folder

if TYPE_CHECKING:
    import pyarrow

_OF_DICTIONARY = ("architecture", "model_name", "hook_name", "hook_name_out", "d_in")
_COUNTS = ("d_in", "n_rows", "n_sequences", "context_size", "n_documents", "n_contexts")
_KEPT: dict[str, type] = {
    **dict.fromkeys((*_OF_DICTIONARY, "data"), str),
    **dict.fromkeys((*_COUNTS, "n_band_contexts", "context_radius"), int),
}
"""What is taken over from the record of an atlas that was exported here."""
_MOST_COUNTED = 1 << 53
_MOST_SILENT = 7
"""For each feature of the files, so many that they do not tell of may lie below the last."""
_FEW_FEATURES = 1 << 17
"""Up to so many features, files may tell of as few as they like."""


@dataclass(frozen=True, slots=True)
class Makers:
    """What is made from the tables by those who know how: labels, the map, the pages."""

    labels: Callable[["pyarrow.Table", "pyarrow.Table"], list[str]]
    n_neighbours: int
    """Nearest directions of each feature that the map is laid out by."""
    places: Callable[[Tensor, Tensor, Tensor], Float[Tensor, "d_sae 2"]]
    """Places on the map, from decoder directions, their nearest others and the cosines."""
    pages: Callable[[Path, "pyarrow.Table", "pyarrow.Table", AtlasRecord, Labels], None]


def import_atlas(location: str | Path, out: str | Path, makers: Makers) -> Atlas:
    """Read dashboards of another tool as an atlas, its pages included.

    What those formats do not hold is left empty, and the pages leave it out. If `out`, a new
    folder, is `RUN/atlas/NAME` and the run has a dictionary of that name, norms, neighbours and
    the map come from its directions. The dashboards are a source of a Neuronpedia export, a
    folder that holds one, or a folder of SAEDashboard's.

    Raises:
        UserError: if `out` exists or another process writes it, or what is read is missing,
            damaged or of another form.
    """
    target = Path(out)
    check_free(target)
    source, read, files = _reader(Path(location))
    check_folder(source, "write or fetch it again")
    dictionary = dictionary_beside(target)
    # As `sae analyze` has it, which may be writing the same atlas.
    beside = target.parent / f".{target.name}.lock"
    lock = beside if target.parent.name == "atlas" else lock_of("atlas", target)
    with new_folder(target, lock) as temporary:
        scratch = temporary / "scratch"
        scratch.mkdir()
        found = read(source, scratch)
        record = _record(found, dictionary, target.name, digest_bytes(_contents(source, files)))
        _write(temporary, found, record, dictionary, makers)
        shutil.rmtree(scratch)
    return Atlas(target)


def _reader(
    location: Path,
) -> tuple[Path, Callable[[Path, Path], Found], tuple[str, ...]]:
    require(
        location.is_dir(),
        f"{location} is not a folder; give the folder of a Neuronpedia export",
    )
    if saedashboard.is_dashboards(location):
        return location, saedashboard.read_dashboards, saedashboard.FILES
    found = neuronpedia.sources(location)
    require(
        len(found) == 1,
        f"{location} holds {len(found)} sources; give one: {', '.join(map(str, found))}"
        if found
        else f"{location} has neither features/batch-N.jsonl.gz, as Neuronpedia's exports, nor "
        "batch-N.json, as SAEDashboard's folders",
    )
    return found[0], neuronpedia.read_bulk, neuronpedia.FILES


def _write(
    folder: Path,
    found: Found,
    record: AtlasRecord,
    dictionary: Dictionary | None,
    makers: Makers,
) -> None:
    features = found.features(record.d_sae, record.n_rows)
    columns, tables = columns_of(features), found.contexts()
    pieces = (columns_of(table) for table in tables)
    if dictionary is not None and record.folded:
        # From now on they are the dictionary's own.
        record = replace(record, folded=False)
        lengths = dictionary.W_dec.float().norm(dim=1).cpu().numpy()
        norms = unit_norms(lengths, dictionary.architecture)
        columns = rescaled(features, norms, fold=False)
        pieces = (rescaled(t, norms, fold=False) for t in tables)
    CONTEXTS.write_pieces(folder, pieces)
    contexts = CONTEXTS.read(folder)
    if "top_logits" in columns:
        columns["logit_agreement"] = agreement_of_texts(features, contexts)
    if dictionary is not None:
        near, cosines = nearest_features(dictionary.W_dec.float(), makers.n_neighbours)
        places = makers.places(dictionary.W_dec, near, cosines).numpy()
        columns |= direction_columns(dictionary, near.numpy(), cosines.numpy(), places)
    labels = _labels(makers.labels(features, contexts), found)
    features = FEATURES.write(folder, columns | {"label": labels.automatic})
    write_labels(folder, labels)
    record = replace(
        record,
        n_dead=int((features["density"].to_numpy() == 0).sum()),
        n_bands=int(contexts["band"].to_numpy().max(initial=-1)) + 1 or N_BANDS,
    )
    makers.pages(folder, features, contexts, record, labels)
    write_record(folder, record)


def _record(found: Found, dictionary: Dictionary | None, name: str, digest: str) -> AtlasRecord:
    """Return what is known before the tables are made; what is not, is None."""
    ours = found.record if isinstance(found.record, dict) else {}
    about: dict[str, Any] = {
        key: next((s[key] for s in (ours, found.about) if _is(s.get(key), kind)), None)
        for key, kind in _KEPT.items()
    }
    if about["n_rows"] is None and about["n_sequences"] and about["context_size"]:
        n_rows = about["n_sequences"] * about["context_size"]
        about["n_rows"] = n_rows if _is(n_rows, int) else None
    there = [feature_number(value, "skipped_indexes.json") for value in found.skipped]
    n = max([found.n_features, *(value + 1 for value in there)])
    require(n > 0, "these files contain no feature")
    if _is(ours.get("d_sae"), int):
        n = max(n, feature_number(ours["d_sae"], "d_sae"))
    of = ours.get("dictionary_digest", UNKNOWN)
    if dictionary is not None:
        require(
            of in (UNKNOWN, dictionary.digest),
            f"these dashboards belong to another dictionary than {name} of this run (digest "
            f"{of}, not {dictionary.digest}); give the atlas another name",
        )
        n, of = dictionary.d_sae, dictionary.digest
        about |= {name: getattr(dictionary, name) for name in _OF_DICTIONARY}
    else:
        told_of = found.n_told_of + len(set(there))
        require(
            n <= max(_FEW_FEATURES, (1 + _MOST_SILENT) * told_of),
            f"feature {n - 1:,} is far beyond the {told_of:,} that these files tell of; if "
            "there is such a one, give OUT as RUN/atlas/NAME of a run that has its dictionary",
        )
    return AtlasRecord(
        digest=digest,
        dictionary=name,
        dictionary_digest=str(of),
        **about,
        d_sae=n,
        n_bands=N_BANDS,
        n_silent=0,
        # Who does not say so has folded the norms, as these tools do.
        folded=bool(ours["folded"]) if "folded" in ours else not ours,
        imported=True,
        code_version=code_version(),
    )


def _is(value: object, kind: type) -> bool:
    if kind is str:
        return isinstance(value, str)
    return type(value) is int and 0 <= value < _MOST_COUNTED


def _labels(automatic: list[str], found: Found) -> Labels:
    """Labels from what is said of features: the first is the label, others explain it."""
    labels = Labels.all_automatic(list(automatic))
    for feature, texts in found.texts.items():
        if feature >= len(automatic):
            raise UserError(
                f"an explanation is of feature {feature}, and there are {len(automatic):,}"
            )
        by_hand = [text for text, kind in texts if kind == BY_HAND]
        explanations = [text for text, kind in texts if kind == EXPLANATION]
        others = [text for text, kind in texts if text not in (*by_hand, *explanations)]
        for text in others[:1]:
            labels.automatic[feature] = labels.label[feature] = text
        for text in by_hand[:1]:
            labels.label[feature] = text
        labels.explanation[feature] = "; ".join([*others[1:], *explanations])
    return labels


def _contents(folder: Path, files: tuple[str, ...]) -> Iterator[bytes]:
    for path in sorted(path for pattern in files for path in folder.glob(pattern)):
        if path.is_file():
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    yield chunk
