"""`Atlas`: the folder of an atlas, opened and read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae.atlas.feature import AtlasFeature
from sae.atlas.labels import read_labels
from sae.atlas.record import RECORD_FILE, AtlasRecord, read_record
from sae.atlas.schema import CONTEXTS, FEATURES
from sae.atlas.shown import as_html, densities
from sae.base import (
    UserError,
    damaged,
    require,
    say,
)
from sae.dictionary import Dictionary

if TYPE_CHECKING:
    import pyarrow
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Atlas:
    """An atlas on disk.

    Whatever is read of a folder that is unfinished, damaged or of another version of this
    package is refused with a `UserError`.
    """

    folder: Path

    @classmethod
    def open(cls, place: str | Path) -> "Atlas":
        """Open the atlas in a folder, or the only one of a run: `sae.Atlas.open("runs/mine")`.

        Raises:
            UserError: if there is none, or several to choose from.
        """
        folder = Path(place)
        if (folder / RECORD_FILE).exists() or (folder / FEATURES.file).exists():
            return cls(folder)
        inside = sorted(path.parent for path in folder.glob(f"atlas/[!.]*/{RECORD_FILE}"))
        require(
            bool(inside),
            f"{place} contains no atlas; give the folder of an atlas, or a run for which sae "
            "analyze has made one",
        )
        require(
            len(inside) == 1,
            f"{place} has {len(inside)} atlases; give one: {', '.join(map(str, inside))}",
        )
        return cls(inside[0])

    def __repr__(self) -> str:
        """Return one line: how many features, of what, and where."""
        record = self.record
        return f"Atlas({record.d_sae:,} features of {record.dictionary}, {self.folder})"

    def _repr_html_(self) -> str:
        return as_html(self)

    def to_pandas(self) -> Any:
        """Return the features as a data frame; `docs/atlas.md` explains the columns."""
        return self.feature_table().to_pandas()

    def plot(self) -> "Figure":
        """Return a histogram of how often features fire."""
        return densities(self)

    def search(self, words: str) -> Any:
        """Return the features whose label holds the words, in either case, as a data frame."""
        names = ["feature", "label", "density", "max_activation"]
        found = self.feature_table(names).to_pandas()
        found["label"] = read_labels(self.folder).label
        return found[found["label"].str.contains(words, case=False, regex=False)]

    @property
    def record(self) -> AtlasRecord:
        """Which dictionary, text and settings it was made from."""
        return read_record(self.folder)

    def labels_for(self, dictionary: Dictionary) -> dict[int, str]:
        """Return the label of each feature of the dictionary that it was made from.

        Raises:
            UserError: if that is another one.
        """
        require(
            self.record.dictionary_digest == dictionary.digest,
            f"{self!r} is an atlas of another dictionary, so its labels do not fit",
        )
        return dict(enumerate(read_labels(self.folder).label))

    @property
    def digest(self) -> str | None:
        """The digest of its record; None if `sae analyze` would make the atlas anew.

        It would if any file, a page among them, is missing or not as it was written.
        """
        if wrong := damaged(self.folder):
            say(f"{self.folder / wrong[0]} is missing or damaged; the atlas is made again")
            return None
        try:
            for table in (FEATURES, CONTEXTS):
                table.check(self.folder)
            return self.record.digest
        except UserError:
            return None

    def features(self) -> list[dict[str, Any]]:
        """Return the records of `features.parquet`."""
        return list(self.feature_table().to_pylist())

    def contexts(self, feature: int | None = None) -> list[dict[str, Any]]:
        """Return the records of `contexts.parquet`, by feature, group and rank.

        Args:
            feature: whose contexts are wanted; by default those of every feature.

        Raises:
            UserError: if the atlas does not have the feature.
        """
        if feature is None:
            return list(self.context_table().to_pylist())
        import pyarrow
        from pyarrow import compute

        last = self.record.d_sae - 1
        require(0 <= feature <= last, f"feature={feature}; the atlas has features 0 to {last}")
        wanted = compute.field("feature") == feature
        # A few records of a table that is far larger.
        parts = (pyarrow.Table.from_batches([one]) for one in self.context_batches())
        return [record for part in parts for record in part.filter(wanted).to_pylist()]

    def feature(self, number: int) -> AtlasFeature:
        """Return one feature with its contexts; a notebook shows them with shaded tokens.

        Raises:
            UserError: if the atlas does not have the feature.
        """
        contexts = self.contexts(number)
        (values,) = self.feature_table().slice(number, 1).to_pylist()
        label = read_labels(self.folder).label[number]
        return AtlasFeature(label, values, contexts, self.record.stability_floor)

    def feature_table(self, names: Sequence[str] | None = None) -> "pyarrow.Table":
        """Return `features.parquet`, or some of its columns, as an arrow table."""
        read_record(self.folder)
        return FEATURES.read(self.folder, names)

    def context_table(self, names: Sequence[str] | None = None) -> "pyarrow.Table":
        """Return `contexts.parquet`, or some of its columns, as an arrow table."""
        read_record(self.folder)
        return CONTEXTS.read(self.folder, names)

    def context_batches(self) -> Iterator["pyarrow.RecordBatch"]:
        """Yield `contexts.parquet` as arrow record batches, so that little is in memory."""
        read_record(self.folder)
        yield from CONTEXTS.batches(self.folder)


def labels_at(folder: Path) -> dict[int, str]:
    """Return the labels of the atlas in a folder, by feature; none where no whole one is."""
    if not (folder / RECORD_FILE).is_file() or Atlas(folder).digest is None:
        return {}
    return dict(enumerate(read_labels(folder).label))
