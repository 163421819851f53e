"""`sae serve`: the atlas of a run in a browser, with a model that answers."""

import threading
import webbrowser
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sae.analysis.reading import read_text
from sae.atlas import Atlas
from sae.base import UserError, require, say
from sae.dictionary import Dictionary
from sae.edits import Edits
from sae.interactive import Model
from sae.lenses import Question, ask_of_feature, ask_of_token, read_lens
from sae.models import LanguageModel, locate
from sae.pages.lens import Lens
from sae.pages.server.app import Pages, application
from sae.pages.server.guard import name_check
from sae.pages.server.listening import (
    address_of,
    check_no_loop,
    check_place,
    listen,
    serve_until_stopped,
    warn_if_open,
)
from sae.pages.server.live import LiveAtlas, Shelf
from sae.pages.server.requests import (
    AskRequest,
    AskStateRequest,
    LensRequest,
    ReadRequest,
    SteerRequest,
    Work,
    WriteRequest,
)
from sae.pages.server.shown import check_shown, why_none
from sae.run import Run
from sae.steering.arms import unit_dose
from sae.steering.generate import generate_beside, with_baseline
from sae.writing import Sampling, chat_ids, checked_prompt_ids, write_beside

_LENS_TOKENS = 64
"""Tokens of a text that a page shows a lens of: a column each, and a row for each block."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeConfig:
    """Show the atlases of a run in a browser, and try features on your own text there.

    The pages are served, with the model behind them, until you press Ctrl-C.
    """

    run: str = "runs/default"
    """Folder of a run that has an atlas, made by `sae analyze`."""
    host: str = "127.0.0.1"
    """Address to listen on. The default answers this machine alone. With any other address,
    everybody who reaches it can read the atlas, run the model and change labels."""
    port: int = 8321
    """Port to listen on. 0 takes any free port."""
    open: bool = False
    """Open the page in a browser."""
    device: str = "auto"
    """Device to compute on: `cpu`, `cuda`, `cuda:1`, ...; `auto` takes a GPU if there is
    one."""

    def __post_init__(self) -> None:
        check_place(self.host, self.port)


def run(config: ServeConfig) -> None:
    """Serve until Ctrl-C.

    Raises:
        UserError: for a run without an atlas, or a port that is taken.
    """
    pages = pages_of(config)
    check_no_loop()
    with listen(config.host, config.port) as listening:
        address = address_of(listening)

        def started(_: Callable[[], None]) -> None:
            warn_if_open(config.host, "read the atlas, run the model and change labels")
            say(f"serve: {config.run} is at {address} (Ctrl-C stops it)")
            if config.open:
                # In a thread: a browser of the terminal comes back when it is closed.
                threading.Thread(target=webbrowser.open, args=[address], daemon=True).start()

        own = name_check(config.host)
        serve_until_stopped(lambda: application(pages, own), listening, started)
    say("serve: stopped")


def pages_of(config: ServeConfig) -> Pages:
    """Return the atlases of a run, by name.

    Raises:
        UserError: if there is none that can be shown.
    """
    run = Run.at(config.run)
    require(run.folder.is_dir(), f"run={config.run}: there is no such folder; give a run")
    root = run.folder.resolve()
    hands: dict[int, Model] = {}

    def write(model: LanguageModel, *asked: Any) -> list[str]:
        # With what edits name, which is loaded once for each model.
        return _write(hands.setdefault(id(model), Model(model)), *asked)

    shelf = Shelf(run, config.device, Work(_read, _steer, write, _ask, _lens, _ask_state))
    found, unreadable = {}, []
    for path in sorted(run.atlases.glob("[!.]*")):
        if not path.is_dir():
            continue
        try:
            check_shown(path, Run.at(root).atlas(path.name))
            found[path.name] = LiveAtlas(path.name, Atlas(path), shelf)
        except UserError as error:
            unreadable.append(str(error))
    if not found:
        raise UserError(unreadable[0] if unreadable else why_none(run))
    for sentence in unreadable:
        say(f"serve: {sentence}")
    return Pages(root, found, unreadable)


def _read(model: LanguageModel, dictionary: Dictionary, request: ReadRequest) -> dict[str, Any]:
    found = read_text(model, dictionary, request.text, feature=request.feature)
    acts = {} if found.acts is None else {"acts": found.acts}
    return {"tokens": found.tokens, "features": found.strongest, **acts}


def _write(
    model: Model, arms: Sequence[Edits], request: WriteRequest, check: Callable[[], None]
) -> list[str]:
    sampling = Sampling(
        max_new_tokens=request.max_new_tokens,
        temperature=request.temperature,
        seed=request.seed,
        to_the_end=not request.chat,
    )
    lm, ids_of = model.language_model, chat_ids if request.chat else checked_prompt_ids
    edits = model.planned(per_sequence=[None, *arms])
    written = write_beside(lm, ids_of(lm, request.text), 1 + len(arms), edits, sampling, check)
    return [one.text for one in written]


def _steer(
    model: LanguageModel,
    dictionary: Dictionary,
    max_activation: float,
    request: SteerRequest,
    check: Callable[[], None],
) -> dict[str, Any]:
    direction = unit_dose(dictionary, request.feature, max_activation)
    directions = with_baseline(direction, request.strength, request.seed + request.feature)
    sampling = Sampling(
        max_new_tokens=request.max_new_tokens,
        temperature=request.temperature,
        seed=request.seed,
    )
    site = locate(model.module, dictionary.writes[0].place)
    by = dictionary.writes[0].normalisation
    texts = generate_beside(model, site, request.text, directions, sampling, check, by)
    shown = ({"text": c.text, "perplexity": c.perplexity} for c in texts)
    return {
        "prompt": request.text,
        **dict(zip(("plain", "steered", "random"), shown, strict=True)),
        "norm": float(torch.linalg.vector_norm(directions[0])),
        # Whether that is a multiple of each token's own length.
        "relative": by is not None,
    }


def _ask(
    model: LanguageModel,
    dictionary: Dictionary,
    request: AskRequest,
    check: Callable[[], None],
) -> dict[str, Any]:
    question, feature = Question(**request.question), (dictionary, request.feature)
    return ask_of_feature(model, question, feature, check=check).for_page()


def _ask_state(
    model: LanguageModel,
    dictionary: Dictionary,
    request: AskStateRequest,
    check: Callable[[], None],
) -> dict[str, Any]:
    question, token = Question(**request.question), (request.text, request.position)
    return ask_of_token(model, question, token, dictionary, check).for_page()


def _lens(model: LanguageModel, request: LensRequest) -> dict[str, Any]:
    table = read_lens(model, request.text, n_tokens=_LENS_TOKENS, marks=False)
    found = Lens(table, model.record.hub_id, request.text).for_page()
    return {**found, "n_tokens": len(model.text_ids(request.text))}
