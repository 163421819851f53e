"""`Found`: features that tell one text from another, as `sae find` has written them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae.base import read_object
from sae.base.notebook import html_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AGAIN = "remove it and run sae find again"


@dataclass(frozen=True)
class Found:
    """Features that fire more in one text than in another, in the file of `sae find`."""

    path: Path

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What was asked, the features in their order, and what chance finds."""
        return {**read_object(self.path, AGAIN).values}

    @property
    def features(self) -> list[int]:
        """The numbers of the features, the best first by the windows that chose them."""
        return [one["feature"] for one in self.summary["features"]]

    def to_pandas(self) -> Any:
        """Return the features as a data frame."""
        import pandas

        return pandas.DataFrame(self.summary["features"])

    def lines(self) -> Iterator[str]:
        """Yield what the terminal says: features with intervals, then what chance finds."""
        about = self.summary
        for one in about["features"]:
            label = f"  {one['label']}" if one["label"] else ""
            ends = f"[{one['auc_low']:.2f}, {one['auc_high']:.2f}]"
            yield f"{one['feature']:>6}  AUC {one['auc']:.2f} {ends}{label}"
        yield from self._beside()

    def _beside(self) -> Iterator[str]:
        about = self.summary
        random, plain = about["random_direction"], about["difference_of_means"]
        yield (
            f"on {about['n_windows'][0]} + {about['n_windows'][1]} {about['of']} that chose "
            "nothing; "
            f"the best feature for shuffled labels: {about['shuffled'][0]:.2f} on average, "
            f"{about['shuffled'][1]:.2f} at most"
        )
        yield (
            f"the best of {about['d_sae']:,} random directions: AUC {_told(random)}; the "
            f"direction between the means of both: {_told(plain)}"
        )

    def plot(self) -> "Figure":
        """Return the AUCs with their intervals, beside what chance and a direction reach."""
        from sae.base.picture import Picture

        about = self.summary
        features = about["features"][::-1]
        figure = Picture(6.4, 1.4 + 0.22 * len(features))
        axes = figure.subplots()
        for y, one in enumerate(features):
            axes.plot([one["auc_low"], one["auc_high"]], [y, y], color="#0b6f6a")
            axes.plot(one["auc"], y, "o", color="#0b6f6a", markersize=4)
        names = [f"{one['feature']} {one['label'][:28]}" for one in features]
        axes.set_yticks(range(len(features)), names, fontsize=7, parse_math=False)
        for value, hue, words in (
            (about["shuffled"][1], "#5c6866", "highest for shuffled labels"),
            (about["random_direction"]["mean"], "#c95a00", "best random direction"),
            (about["difference_of_means"]["mean"], "#0072b2", "difference of means"),
        ):
            axes.axvline(value, color=hue, linestyle="--", linewidth=1, label=words)
        axes.set_xlabel(f"AUC on {about['of']} that did not choose the feature")
        axes.legend(frameon=False, fontsize=7, loc="lower left")
        return figure

    def __repr__(self) -> str:
        """Return one line: how many features, of what, and where."""
        return (
            f"Found({len(self.features)} features of {self.summary['dictionary']}, {self.path})"
        )

    def _repr_html_(self) -> str:
        records = [
            (
                str(one["feature"]),
                one["label"],
                f"{one['auc']:.2f} [{one['auc_low']:.2f}, {one['auc_high']:.2f}]",
                one["mean_first"],
                one["mean_second"],
            )
            for one in self.summary["features"]
        ]
        head = ("feature", "label", "AUC [95%]", "mean in the first", "mean in the second")
        return html_table(head, records, note=" ".join(f"{one}." for one in self._beside()))


def _told(one: dict[str, float]) -> str:
    return f"{one['mean']:.2f} [{one['low']:.2f}, {one['high']:.2f}]"
