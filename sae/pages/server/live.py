"""One atlas as a server offers it: its dictionary and model, loaded when they are wanted."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Protocol

from sae.atlas import LABELS_FILE, RECORD_FILE, Atlas, read_labels, set_label
from sae.base import UserError, require, say
from sae.dictionary import Dictionary
from sae.dictionary.files import WEIGHTS_FILE
from sae.models import LanguageModel, ModelRecord, record_without_weights, recorded_model
from sae.pages.server.requests import LabelRequest, ReadRequest, SteerRequest
from sae.pages.site import DATA, write_labels_data
from sae.run import Run

# Dictionaries that are held in memory at once, of all that a run has.
_HELD = 4


class Answers(Protocol):
    """What is computed when a page asks, by those who know how."""

    def read(
        self, model: LanguageModel, dictionary: Dictionary, request: ReadRequest
    ) -> dict[str, Any]:
        """Return the features of a text as the page shows them."""

    def steer(
        self,
        model: LanguageModel,
        dictionary: Dictionary,
        max_activation: float,
        request: SteerRequest,
        check: Callable[[], None],
    ) -> dict[str, Any]:
        """Return texts with and without a feature turned.

        Args:
            max_activation: the feature's highest, of which strengths are multiples.
            check: called before each token; whatever it raises ends the writing.
        """


class Shelf:
    """Models and dictionaries of a run, each loaded once."""

    def __init__(self, run: Run, device: str, answers: Answers) -> None:
        self.run, self.answers = run, answers
        self.model: Callable[[ModelRecord], LanguageModel] = lru_cache(maxsize=None)(
            partial(recorded_model, device=device)
        )
        self.measured: Callable[[str, tuple[int, ...]], tuple[Dictionary, list[float]]] = (
            lru_cache(_HELD)(self._measured)
        )

    def _measured(self, name: str, _: tuple[int, ...]) -> tuple[Dictionary, list[float]]:
        """Load a dictionary, with the highest activation of each of its features."""
        atlas = Atlas(self.run.atlas(name))
        dictionary = self.run.load(name)[1]
        self.run.check_measured(name, dictionary, atlas.record, "analyze")
        table = atlas.feature_table(["max_activation"])
        return dictionary, table["max_activation"].to_pylist()


@dataclass(slots=True)
class LiveAtlas:
    """An atlas with what can be computed beside it, when its pages ask."""

    name: str
    atlas: Atlas
    shelf: Shelf
    status: dict[str, str] = field(default_factory=lambda: {"model": "loading", "why": ""})
    """`model`: loading, ready or absent; and `why`."""

    @property
    def figures(self) -> dict[str, str]:
        """What the list of atlases says about it."""
        record = self.atlas.record
        return {
            "model": record.model_name,
            "hook": record.hook_name,
            "features": f"{record.d_sae:,}",
            "dead": f"{record.n_dead:,}",
            # An imported atlas may not say how much text was read.
            "tokens": "–" if record.n_rows is None else f"{record.n_rows:,}",
        }

    def prepare(self) -> None:
        """Load model and dictionary; what is missing is said by `status`."""
        if self.status["model"] != "loading":
            return
        try:
            self._loaded()
            self.status = {"model": "ready", "why": ""}
        except UserError as error:
            self._absent(" ".join(str(error).split()))
        except Exception as error:
            # Libraries fail in their own ways, and the pages are of use without a model.
            self._absent(f"the model could not be loaded ({type(error).__name__}: {error})")

    def _absent(self, why: str) -> None:
        self.status = {"model": "absent", "why": why}
        say(f"serve: {self.name} is shown without live features: {why}")

    def _loaded(self) -> tuple[LanguageModel, Dictionary, list[float]]:
        weights = self.shelf.run.dictionary(self.name) / WEIGHTS_FILE
        paths = [self.atlas.folder / RECORD_FILE, weights]
        stamps = tuple(path.stat().st_mtime_ns for path in paths if path.exists())
        dictionary, highest = self.shelf.measured(self.name, stamps)
        # Of dictionaries of other tools the model's name is all that is known.
        record = dictionary.record.model or record_without_weights(dictionary.model_name)
        return self.shelf.model(record), dictionary, highest

    def _ready(self, feature: int | None) -> tuple[LanguageModel, Dictionary, list[float]]:
        self.prepare()
        require(self.status["model"] == "ready", self.status["why"])
        model, dictionary, highest = self._loaded()
        if feature is not None:
            _check_feature(feature, dictionary.d_sae)
        return model, dictionary, highest

    def read(self, request: ReadRequest) -> dict[str, Any]:
        """Return the features of a text, the strongest of each token."""
        model, dictionary, _ = self._ready(request.feature)
        return self.shelf.answers.read(model, dictionary, request)

    def steer(self, request: SteerRequest, check: Callable[[], None]) -> dict[str, Any]:
        """Continue a text plainly, with the feature turned, and with a random direction."""
        model, dictionary, highest = self._ready(request.feature)
        unit = highest[request.feature]
        require(
            unit > 0,
            f"feature {request.feature} is dead: it fired nowhere in the text of this atlas, "
            "so it has no highest activation to take multiples of; choose a live one",
        )
        return self.shelf.answers.steer(model, dictionary, unit, request, check)

    def label(self, request: LabelRequest) -> str:
        """Write a label into `labels.csv`, and for the page."""
        _check_feature(request.feature, self.atlas.record.d_sae)
        labels = set_label(self.atlas.folder, request.feature, request.label)
        write_labels_data(self.atlas.folder, labels)
        return labels.label[request.feature]

    def refresh_labels(self) -> None:
        """Write the page's labels anew if `labels.csv` was edited since."""
        folder = self.atlas.folder
        written, edited = (
            path.stat().st_mtime_ns if path.exists() else 0
            for path in (folder / DATA / "labels.js", folder / LABELS_FILE)
        )
        if edited <= written:
            return
        try:
            write_labels_data(folder, read_labels(folder))
        except UserError as error:
            # The page keeps the labels that it had: half an edit may just have been saved.
            say(f"serve: {error}")


def _check_feature(feature: int, d_sae: int) -> None:
    require(
        feature < d_sae,
        f"feature {feature} is out of range; this dictionary has 0 to {d_sae - 1}",
    )
