"""Dashboards of other tools as atlases: what `sae atlas import` does."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sae.analysis.atlas import (
    CONTEXTS_FILE,
    FEATURES_FILE,
    FORMAT,
    MANIFEST_FILE,
    Atlas,
    nearest_features,
)
from sae.analysis.features import N_BANDS, N_PARTNERS
from sae.analysis.labels import Labels, write_labels
from sae.analysis.map import N_NEIGHBOURS, feature_map
from sae.analysis.naming import automatic_labels
from sae.analysis.tables import lists, numpy_of
from sae.base.errors import UserError, require
from sae.base.files import write_json
from sae.base.provenance import UNKNOWN, code_version, digest_bytes
from sae.dictionary import Dictionary
from sae.dictionary.files import CONFIG_FILE, load_dictionary
from sae.exchange.dashboards import neuronpedia, neuronpedia_read, saedashboard
from sae.exchange.dashboards.columns import (
    agreement,
    contexts_with_own_scale,
    with_own_scale,
)
from sae.exchange.dashboards.contexts import contexts_schema
from sae.exchange.dashboards.new_folder import check_new, new_folder
from sae.exchange.dashboards.parts import feature_number
from sae.exchange.dashboards.rows import unit_norms
from sae.exchange.dashboards.tables import Found
from sae.reporting.site import write_site

_KEPT: dict[str, type] = {
    "architecture": str,
    "model_name": str,
    "hook_name": str,
    "hook_name_out": str,
    "data": str,
    "d_in": int,
    "n_rows": int,
    "n_sequences": int,
    "context_size": int,
    "n_documents": int,
    "n_contexts": int,
    "n_band_contexts": int,
    "context_radius": int,
}
"""What is taken over from the manifest of an atlas that was exported here."""
_MOST_COUNTED = 1 << 53
_MOST_SILENT = 7
"""For each feature of the files, so many that they do not tell of may lie below the last."""
_FEW_FEATURES = 1 << 17
"""Of so many, files may tell of any."""


def dictionary_beside(atlas: Path) -> Dictionary | None:
    """The dictionary of the same name in the run that an atlas is, or will be, in."""
    folder = atlas.resolve().parent.parent / "dictionaries" / atlas.resolve().name
    return load_dictionary(folder) if (folder / CONFIG_FILE).is_file() else None


def import_atlas(location: str | Path, out: str | Path) -> Atlas:
    """Read dashboards of another tool as an atlas, its pages included.

    What those formats do not hold is left empty, and the pages leave it out. If `out` is
    `RUN/atlas/NAME` and the run has a dictionary of that name, norms, neighbours and the map
    come from its directions.

    Args:
        location: a source of a Neuronpedia export, or a folder that holds one; or a folder of
            SAEDashboard's.
        out: a new folder.

    Raises:
        UserError: if there is nothing to read, `out` exists or another process writes it, or a
            file is missing, damaged or of another form.
    """
    target = Path(out)
    check_new(target)
    source, read = _reader(Path(location))
    dictionary = dictionary_beside(target)
    # As `sae analyze` has it, which may be writing the same atlas.
    beside = target.parent / f".{target.name}.lock"
    with new_folder(target, beside if target.parent.name == "atlas" else None) as temporary:
        scratch = temporary / "scratch"
        scratch.mkdir()
        _write(temporary, read(source, scratch), dictionary, source, target.name)
        shutil.rmtree(scratch)
    return Atlas(target)


def _reader(location: Path) -> tuple[Path, Callable[[Path, Path], Found]]:
    """Where the files are, and what reads them."""
    require(location.is_dir(), f"{location} is no folder; give one of a Neuronpedia export")
    if saedashboard.is_dashboards(location):
        return location, saedashboard.read_dashboards
    found = neuronpedia_read.sources(location)
    require(
        len(found) == 1,
        f"{location} holds {len(found)} sources; give one: {', '.join(map(str, found))}"
        if found
        else f"{location} has neither features/batch-N.jsonl.gz, as Neuronpedia's exports, nor "
        "batch-N.json, as SAEDashboard's folders",
    )
    return found[0], neuronpedia_read.read_bulk


def _write(
    folder: Path, found: Found, dictionary: Dictionary | None, source: Path, name: str
) -> None:
    import pyarrow
    import pyarrow.parquet

    manifest = _manifest(found, dictionary, name)
    n, collected = manifest["d_sae"], found.collected
    features = collected.features(n, manifest["n_rows"])
    norms = _folded_norms(manifest, dictionary)
    if norms is not None:
        features = with_own_scale(features, norms)
    agreed, top_band = np.zeros(n), -1
    with pyarrow.parquet.ParquetWriter(
        folder / CONTEXTS_FILE, contexts_schema(), compression="zstd"
    ) as writer:
        for table in collected.contexts():
            scaled = table if norms is None else contexts_with_own_scale(table, norms)
            writer.write_table(scaled.cast(contexts_schema()))
            top_band = max(top_band, int(table["band"].to_numpy().max()))
            if "top_logits" in features.column_names:
                agreement(features, table, agreed)
    if "top_logits" in features.column_names:
        features = features.append_column("logit_agreement", pyarrow.array(agreed))
    if dictionary is not None:
        features = _with_directions(features, dictionary)
    contexts = pyarrow.parquet.read_table(folder / CONTEXTS_FILE)
    labels = _labels(automatic_labels(features, contexts), found)
    features = features.add_column(1, "label", pyarrow.array(labels.automatic))
    pyarrow.parquet.write_table(features, folder / FEATURES_FILE, compression="zstd")
    write_labels(folder, labels)
    manifest |= {
        "digest": digest_bytes(_contents(source)),
        "n_dead": int((features["density"].to_numpy() == 0).sum()),
        "n_bands": top_band + 1 or N_BANDS,
    }
    write_site(folder, features, contexts, manifest, labels.columns, None)
    write_json(folder / MANIFEST_FILE, manifest)


def _folded_norms(manifest: dict[str, Any], dictionary: Dictionary | None) -> Any:
    """What to divide activations by, so that they are those of the dictionary at hand.

    None if nothing is to be done; the manifest says from then on that nothing is folded.
    """
    if dictionary is None or not manifest["folded"]:
        return None
    manifest["folded"] = False
    return unit_norms(numpy_of(dictionary.W_dec.float().norm(dim=1)), dictionary.architecture)


def _manifest(found: Found, dictionary: Dictionary | None, name: str) -> dict[str, Any]:
    """What is known before the tables are made; what is not, is None."""
    ours = found.manifest or {}
    about: dict[str, Any] = {
        key: next((s[key] for s in (ours, found.about) if _is(s.get(key), kind)), None)
        for key, kind in _KEPT.items()
    }
    if about["n_rows"] is None and about["n_sequences"] and about["context_size"]:
        n_rows = about["n_sequences"] * about["context_size"]
        about["n_rows"] = n_rows if _is(n_rows, int) else None
    there = [feature_number(value, "skipped_indexes.json") for value in found.skipped]
    n = max([found.collected.n_features, *(value + 1 for value in there)])
    require(n > 0, "there is not one feature in these files")
    if _is(ours.get("d_sae"), int):
        n = max(n, feature_number(ours["d_sae"], "d_sae"))
    of = ours.get("dictionary_digest", UNKNOWN)
    if dictionary is not None:
        require(
            of in (UNKNOWN, dictionary.digest),
            f"these are dashboards of another dictionary than {name} of this run (digest {of}, "
            f"not {dictionary.digest}); give the atlas another name",
        )
        n, of = dictionary.d_sae, dictionary.digest
        about |= {
            "architecture": dictionary.architecture,
            "model_name": dictionary.model_name,
            "hook_name": dictionary.hook_name,
            "hook_name_out": dictionary.hook_name_out,
            "d_in": dictionary.d_in,
        }
    else:
        told_of = found.collected.n_told_of + len(set(there))
        require(
            n <= max(_FEW_FEATURES, (1 + _MOST_SILENT) * told_of),
            f"feature {n - 1:,} is far beyond the {told_of:,} that these files tell of; if "
            "there is such a one, give OUT as RUN/atlas/NAME of a run that has its dictionary",
        )
    return {
        "digest": None,
        "format": FORMAT,
        "dictionary": name,
        "dictionary_digest": str(of),
        "cache_digest": UNKNOWN,
        **about,
        "d_sae": n,
        "n_silent": 0,
        "seed": None,
        # Who does not say so has folded the norms, as these tools do.
        "folded": bool(ours["folded"]) if "folded" in ours else not ours,
        "imported": True,
        "code_version": code_version(),
    }


def _is(value: Any, kind: type) -> bool:
    """Whether a value from elsewhere is a text, or a number that counts something."""
    if kind is str:
        return isinstance(value, str)
    return type(value) is int and 0 <= value < _MOST_COUNTED


def _with_directions(features: Any, dictionary: Dictionary) -> Any:
    """The table with what the dictionary's directions say."""
    import pyarrow

    w_dec = dictionary.W_dec.float()
    indices, cosines = nearest_features(w_dec, N_NEIGHBOURS)
    places = numpy_of(feature_map(dictionary.W_dec, indices, cosines))
    near = numpy_of(indices[:, :N_PARTNERS]).astype(np.int32)
    columns = {
        "decoder_norm": numpy_of(w_dec.norm(dim=1)),
        "encoder_norm": numpy_of(dictionary.W_enc.float().norm(dim=0)),
        "neighbours": lists(near.ravel(), near.shape[1]),
        "neighbour_cosines": lists(numpy_of(cosines[:, :N_PARTNERS]).ravel(), near.shape[1]),
        "map_x": places[:, 0].copy(),
        "map_y": places[:, 1].copy(),
    }
    for name, values in columns.items():
        place = features.column_names.index(name)
        features = features.set_column(place, name, pyarrow.array(values))
    return features


def _labels(automatic: list[str], found: Found) -> Labels:
    """Labels from what is said of features: the first is the label, others explain it."""
    labels = Labels.all_automatic(list(automatic))
    for feature, texts in found.texts.items():
        if feature >= len(automatic):
            raise UserError(
                f"an explanation is of feature {feature}, and there are {len(automatic):,}"
            )
        by_hand = [text for text, kind in texts if kind == neuronpedia.BY_HAND]
        explanations = [text for text, kind in texts if kind == neuronpedia.EXPLANATION]
        others = [text for text, kind in texts if text not in (*by_hand, *explanations)]
        for text in others[:1]:
            labels.automatic[feature] = labels.label[feature] = text
        for text in by_hand[:1]:
            labels.label[feature] = text
        labels.explanation[feature] = "; ".join([*others[1:], *explanations])
    return labels


def _contents(folder: Path) -> Iterator[bytes]:
    """The bytes of all files below a folder, in the order of their names."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    yield chunk
