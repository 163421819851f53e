"""One atlas as a server offers it: what its pages may ask for, and how that is answered."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

from sae.atlas import LABELS_FILE, RECORD_FILE, Atlas, read_labels, set_label
from sae.base import UserError, require, say
from sae.dictionary import Dictionary, TopK
from sae.dictionary.files import WEIGHTS_FILE
from sae.edits.file import parsed_edits
from sae.models import LanguageModel, ModelRecord, record_without_weights, recorded_model
from sae.pages.server.desk import (
    Desk,
    edits_of_dials,
    file_of_dials,
    others,
    plain,
)
from sae.pages.server.requests import (
    AskRequest,
    AskStateRequest,
    LabelRequest,
    LensRequest,
    OpenRequest,
    ReadRequest,
    SaveRequest,
    SteerRequest,
    Work,
    WriteRequest,
)
from sae.pages.site import DATA, write_labels_data
from sae.run import Run

_HELD = 4
"""Dictionaries that are held in memory at once, of all that a run has."""


class Shelf:
    """Models and dictionaries of a run, each loaded once, and what is computed with them."""

    def __init__(self, run: Run, device: str, work: Work) -> None:
        self.run, self.work = run, work
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
    """`model`: loading, ready or absent; `why`; and `k` of a topk dictionary, a dial."""

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
        why, more = "", {}
        try:
            activation = self._loaded()[1].activation
            more = {"k": str(activation.k)} if isinstance(activation, TopK) else {}
        except UserError as error:
            why = " ".join(str(error).split())
        except Exception as error:
            # Libraries fail in their own ways, and the pages are of use without a model.
            why = f"the model could not be loaded ({type(error).__name__}: {error})"
        self.status = {"model": "absent" if why else "ready", "why": why, **more}
        if why:
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
        require(
            feature is None or feature < dictionary.d_sae,
            f"feature {feature} is out of range; this dictionary has 0 to "
            f"{dictionary.d_sae - 1}",
        )
        return model, dictionary, highest

    def read(self, request: ReadRequest) -> dict[str, Any]:
        """Return the features of a text, the strongest of each token."""
        model, dictionary, _ = self._ready(request.feature)
        if request.k is not None:
            dictionary = dictionary.with_k(request.k)
        return self.shelf.work.read(model, dictionary, request)

    def steer(self, request: SteerRequest, check: Callable[[], None]) -> dict[str, Any]:
        """Continue a text plainly, with the feature turned, and with a random direction."""
        model, dictionary, highest = self._ready(request.feature)
        unit = highest[request.feature]
        require(
            unit > 0,
            f"feature {request.feature} is dead: it fired nowhere in the text of this atlas, "
            "so it has no highest activation to take multiples of; choose a live one",
        )
        return self.shelf.work.steer(model, dictionary, unit, request, check)

    def ask(self, request: AskRequest, check: Callable[[], None]) -> dict[str, Any]:
        """Let the model say what a feature is, beside what it says of nothing and of chance."""
        model, dictionary, _ = self._ready(request.feature)
        return self.shelf.work.ask(model, dictionary, request, check)

    def lens(self, request: LensRequest) -> dict[str, Any]:
        """Return what the model would predict after each block, token by token."""
        model, _, _ = self._ready(None)
        return self.shelf.work.lens(model, request)

    def ask_state(self, request: AskStateRequest, check: Callable[[], None]) -> dict[str, Any]:
        """Let the model say what its state at a token is, beside controls."""
        model, dictionary, _ = self._ready(None)
        return self.shelf.work.ask_state(model, dictionary, request, check)

    def write(self, request: WriteRequest, check: Callable[[], None]) -> dict[str, Any]:
        """Write plainly, with the dials turned, and with other features turned as far."""
        require(bool(request.dials), "no dial is turned; add a feature")
        model, _, highest = self._ready(None)
        for dial in request.dials:
            self._ready(dial.feature)
            require(
                highest[dial.feature] > 0, f"feature {dial.feature} is dead; take a live one"
            )
        drawn = others(request.dials, highest, request.seed)
        folder = str(self.shelf.run.dictionary(self.name))
        arms = [edits_of_dials(folder, dials) for dials in (request.dials, drawn)]
        texts = self.shelf.work.write(model, arms, request, check)
        found = dict(zip(("plain", "edited", "random"), texts, strict=True))
        return {"prompt": request.text, "chat": request.chat, **found, "others": plain(drawn)}

    def save(self, request: SaveRequest) -> dict[str, Any]:
        """Return the edit file that turns dials."""
        _, dictionary, _ = self._ready(None)
        folder = str(self.shelf.run.dictionary(self.name))
        return {"file": file_of_dials(folder, dictionary.digest, request.dials)}

    def open(self, request: OpenRequest) -> dict[str, Any]:
        """Return the dials of an edit file."""
        return {"dials": plain(self._desk().opened(parsed_edits(request.text, "the file")))}

    def presets(self) -> dict[str, Any]:
        """Return the edit files of the run, with the dials that they set."""
        return {"presets": self._desk().presets(self.shelf.run.edits)}

    def _desk(self) -> Desk:
        _, dictionary, highest = self._ready(None)
        return Desk(self.shelf.run.dictionary(self.name), dictionary.digest, highest)

    def label(self, request: LabelRequest) -> str:
        """Write a label into `labels.csv`, and for the page."""
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
