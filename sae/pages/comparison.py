"""`matches.parquet` and `compare.json`: what `sae compare` has found, in its folder."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae.atlas.table import Column, TableSchema
from sae.base import read_object, require
from sae.base.notebook import html_table
from sae.figures import Figures

if TYPE_CHECKING:
    import pyarrow
    from matplotlib.figure import Figure

MATCHES = TableSchema(
    "matches.parquet",
    Column("side", "string", "`first` or `second`: whose feature it is"),
    Column("feature", "int32", "number of the feature in its dictionary"),
    Column("label", "string", "its label, where an atlas has one"),
    Column("kind", "string", "`shared`, `between` or `own`"),
    Column("partner", "int32", "feature of the other that writes most nearly the same, or −1"),
    Column("partner_label", "string", "its label, where an atlas has one"),
    Column("cosine", "float", "cosine of both decoder directions, without its sign"),
    Column("read_partner", "int32", "feature of the other that reads most nearly the same"),
    Column("read_cosine", "float", "cosine of both encoder directions, without its sign"),
)
SUMMARY, PAGE = "compare.json", "index.html"
_AGAIN = "remove the folder and run sae compare again"


def figures_at(place: Path, digest: str) -> Figures | None:
    """Return the figures in a file of `evals/`, if they are of weights with that digest."""
    if not place.is_file():
        return None
    figures = Figures.read(place)
    return figures if figures.dictionary_digest == digest else None


@dataclass(frozen=True)
class Comparison:
    """Two dictionaries beside each other, in the folder that `sae compare` has written."""

    folder: Path

    @cached_property
    def summary(self) -> Mapping[str, Any]:
        """Names, shares of features by kind, what chance matches, and figures side by side.

        Raises:
            UserError: if the folder holds no comparison.
        """
        place = self.folder / SUMMARY
        require(place.is_file(), f"{self.folder} holds no comparison; run sae compare")
        found: Mapping[str, Any] = read_object(place, _AGAIN).values
        return found

    @cached_property
    def table(self) -> "pyarrow.Table":
        """The features of both, a record each; `docs/compare.md` explains the columns."""
        return MATCHES.read(self.folder)

    def to_pandas(self) -> Any:
        """Return the features of both dictionaries as a data frame."""
        return self.table.to_pandas()

    def records(self, side: str, kind: str, n: int) -> list[dict[str, Any]]:
        """Return features of a side and a kind, the surest first.

        Args:
            side: `first` or `second`.
            kind: `shared`, of which the nearest come first, or `own`, the farthest first.
            n: how many at most.
        """
        found = [r for r in self.table.to_pylist() if (r["side"], r["kind"]) == (side, kind)]
        return sorted(found, key=lambda r: -r["cosine"] if kind == "shared" else r["cosine"])[
            :n
        ]

    def lines(self) -> Iterator[str]:
        """Yield what the terminal says: shares beside what chance gives."""
        about = self.summary
        for i, name in enumerate(about["names"]):
            shares, n = about["shares"][i], about["n_live"][i]
            yield (
                f"{name}: of {n:,} live features the other has {shares['shared']:.1%} too; "
                f"{shares['own']:.1%} match nothing better than chance does"
            )
        for null in about["nulls"]:
            yield (
                f"chance, {null['of']}: mean cosine {null['mean']:.2f}, "
                f"{null['shared']:.1%} at {about['same']:g} or more; "
                f"of the two dictionaries {about['mean_cosine'][0]:.2f}"
            )
        yield from self.of_equal_numbers()
        yield from (f"note: {note}" for note in about["notes"])

    def of_equal_numbers(self) -> Iterator[str]:
        """Yield what a match owes to numbers: trainings of one seed begin in the same order."""
        equal = self.summary["equal_numbers"]
        if equal is not None:
            yield (
                f"{equal['share']:.1%} of the matches pair features of equal numbers, where "
                f"chance gives {equal['by_chance']:.2%}; without such pairs the mean cosine is "
                f"{equal['mean_without']:.2f}, and {equal['shared_without']:.1%} are shared"
            )

    def plot(self) -> "Figure":
        """Return a histogram of the cosines of matches, with what chance stays below."""
        from sae.base.picture import Picture

        figure = Picture(6.4, 3.4)
        axes = figure.subplots()
        for side, hue in zip(("first", "second"), ("#0b6f6a", "#c95a00"), strict=True):
            own = [r["cosine"] for r in self.table.to_pylist() if r["side"] == side]
            name = self.summary["names"][side == "second"]
            axes.hist(own, bins=50, range=(0, 1), histtype="step", color=hue, label=name)
        bar = max(null["high"] for null in self.summary["nulls"])
        words = "99 of 100 matches by chance are below"
        axes.axvline(bar, color="#5c6866", linestyle="--", label=words)
        axes.set_xlabel("cosine of a feature's direction and that of its match")
        axes.set_ylabel("features")
        axes.legend(frameon=False, fontsize=7)
        return figure

    def __repr__(self) -> str:
        """Return one line: which dictionaries, and where."""
        first, second = self.summary["names"]
        return f"Comparison({first} and {second}, {self.folder})"

    def _repr_html_(self) -> str:
        about = self.summary
        records = [
            (name, n, *(f"{shares[kind]:.1%}" for kind in ("shared", "between", "own")))
            for name, n, shares in zip(
                about["names"], about["n_live"], about["shares"], strict=True
            )
        ]
        head = ("dictionary", "live features", "shared", "in between", "its own")
        nulls = "; ".join(f"{null['of']}: {null['shared']:.1%}" for null in about["nulls"])
        note = (
            f"By chance {about['same']:g} or more is reached by: {nulls}. {self.folder}/{PAGE}"
        )
        return html_table(head, records, note=note)
