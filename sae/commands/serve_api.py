"""`sae serve --api`: the model of a run behind OpenAI's interface, with edits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sae.base import UserError, nearest, require, say
from sae.edits import Edits, record_of
from sae.interactive import Model
from sae.models import recorded_model
from sae.pages.server.completions import Complete, Completion, application
from sae.pages.server.guard import name_check
from sae.pages.server.listening import (
    address_of,
    check_place,
    listen,
    serve_until_stopped,
    warn_if_open,
)
from sae.run import Run
from sae.writing import Sampling, Written, chat_ids, checked_prompt_ids, write


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeApiConfig:
    """Answer requests of OpenAI's interface with the model of a run, under edits.

    `/v1/completions` and `/v1/chat/completions` accept the requests of OpenAI's clients. In
    addition a request may have `edits`, a list as in an edit file, in which a dictionary is
    named as it is in the run.
    """

    run: str = "runs/default"
    """Folder of a run that has dictionaries."""
    edits: str | None = None
    """Edit file whose edits are made in every request that has no edits of its own."""
    host: str = "127.0.0.1"
    """Address to listen on. The default answers this machine alone. With any other address,
    everybody who reaches it can run the model."""
    port: int = 8322
    """Port to listen on. 0 takes any free port."""
    device: str = "auto"
    """Device to compute on: `cpu`, `cuda`, `cuda:1`, ...; `auto` takes a GPU if there is
    one."""

    def __post_init__(self) -> None:
        check_place(self.host, self.port)


def api(config: ServeApiConfig) -> None:
    """Answer until Ctrl-C.

    Raises:
        UserError: for a run without dictionaries, edits that cannot be made, or a port that is
            taken.
    """
    run, always = Run.at(config.run), Edits(())
    if config.edits is not None:
        always = Edits.read(config.edits)
    name, dictionary = run.load(run.dictionary_names[0] if run.dictionary_names else None)
    record = dictionary.record.model
    if record is None:
        raise UserError(
            f"{name} does not say which model it belongs to; serve a run that was made by "
            "this package"
        )
    with listen(config.host, config.port) as listening:
        model = Model(recorded_model(record, config.device))
        with model.edited(always):
            pass
        complete = complete_with(run, model, always)

        def started(_: Callable[[], None]) -> None:
            warn_if_open(config.host, "run the model")
            say(f"serve: {record.hub_id} is at {address_of(listening)}v1 (Ctrl-C stops it)")

        own = name_check(config.host)
        serve_until_stopped(
            lambda: application(record.hub_id, complete, own), listening, started
        )
    say("serve: stopped")


def complete_with(run: Run, model: Model, always: Edits) -> Complete:
    """Return what answers requests: under their own edits, or under those that are `always`."""

    def complete(asked: Completion, check: Callable[[], None]) -> Sequence[Written]:
        edits = always if asked.edits is None else _requested(run, asked.edits)
        how = Sampling(
            max_new_tokens=asked.max_tokens,
            temperature=asked.temperature,
            seed=asked.seed,
            to_the_end=False,
        )
        lm = model.language_model
        ids = [checked_prompt_ids(lm, prompt) for prompt in asked.prompts]
        if asked.messages:
            ids = [chat_ids(lm, asked.messages)]
        with model.edited(edits):
            return write(lm, ids, how, check)

    return complete


def _requested(run: Run, given: Sequence[object]) -> Edits:
    """Return the edits of a request, which names nothing on this disk but dictionaries.

    Raises:
        UserError: if something is wrong, with one sentence for each mistake.
    """
    wrong: list[str] = []
    found = (record_of(_placed(run, one), f"edits[{i}]", wrong) for i, one in enumerate(given))
    records = tuple(record for record in found if record is not None)
    if wrong:
        raise UserError(*wrong)
    return Edits(records)


def _placed(run: Run, given: object) -> object:
    """Return an edit with the folders of the dictionaries that it names."""
    if not isinstance(given, Mapping):
        return given
    for key in ("direction", "cache"):
        require(
            given.get(key) is None,
            f"edits: {key} names a file, which a request is not allowed to do",
        )
    found: dict[str, Any] = dict(given)
    if isinstance(found.get("when"), Mapping):
        found["when"] = _placed(run, found["when"])
    name = found.get("dictionary")
    if isinstance(name, str):
        names = run.dictionary_names
        require(
            name in names,
            f"edits: dictionary={name[:80]!r} is not in this run{nearest(name[:80], names)}",
        )
        found["dictionary"] = str(run.dictionary(name))
    return found
