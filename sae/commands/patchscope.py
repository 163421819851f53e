"""`sae patchscope`: what a model itself says of a hidden state, or of a feature."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae.base import (
    UserError,
    digest,
    is_whole,
    plain,
    read_object,
    require,
    say,
    show,
    write_json,
)
from sae.base.names import check_name
from sae.exchange.dictionaries import RECOMMENDED, load_named
from sae.lenses.patchscope import IDENTITY, Question, placed, source_of
from sae.lenses.patchscope_asked import (
    SCALES,
    Patchscopes,
    ask_of_feature,
    ask_of_state,
    check_feature,
    place_of_feature,
    places_of_state,
)
from sae.models import (
    ModelConfig,
    load_model,
    load_skeleton,
    recorded_config,
    recorded_model,
)
from sae.run import Run, keep_settings, make

_ANEW = "remove it and run sae patchscope again"


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchscopeConfig:
    """Ask a model what a hidden state of a text, or a feature of a dictionary, is.

    The vector takes the place of one token of a prompt, and the model continues the prompt. For
    comparison, the same is done with the prompt left alone and with other vectors of equal
    length that have nothing to do with it.
    """

    run: str = "runs/default"
    """Folder of the run; results go to `{run}/patchscopes/{name}.json`."""
    name: str | None = None
    """Name of the results. By default it is made of the text or the feature in question."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The language model, unless a dictionary says of which one it is."""
    text: str | None = None
    """Text whose hidden states the question is about. Give either a text or a feature."""
    token: int = -1
    """Position in the text. 0 is the token that the model puts before a text, if there is one,
    and negative numbers count from the end."""
    at: list[str] = field(default_factory=list)
    """Hooks at which the state is read. Several of them show from which block on a state tells
    its token. By default these are the ends of some blocks, from the first to the last."""
    dictionary: str | None = None
    """Dictionary that has the feature: a name in the run, a folder, or an address on the Hub.
    By default it is the only one of the run, or of several the one that `sae eval`
    recommends."""
    feature: int | None = None
    """Number of a feature, if the question is about one."""
    scales: list[float] = field(default_factory=lambda: [*SCALES])
    """Lengths of the feature's direction to try, as multiples of the median length of the
    prompt's own states at that place."""
    into: str | None = None
    """Hook at which the vector is put. By default a state goes where it was read. A feature of
    the residual stream goes to the end of block 3, which is early enough for most of the model
    to read it."""
    prompt: str = IDENTITY
    r"""The prompt, with a placeholder. By default it is a list of words that are each repeated.
    `\n` is the end of a line."""
    placeholder: str = "?"
    """The token of the prompt that the vector replaces. It must occur exactly once."""
    max_new_tokens: int = 16
    """Largest number of tokens that the model writes. It always takes the likeliest token."""
    seed: int = 0
    """Seed of the random vectors that the vector is compared with."""

    def __post_init__(self) -> None:
        require(self.text != "", "text is empty; write something")
        require(
            self.text is None or self.dictionary is None,
            f"text={self.text} and dictionary={self.dictionary}; give one of the two",
        )
        require(
            self.text is None or self.feature is None,
            f"text={self.text} and feature={self.feature}; give one of the two",
        )
        require(
            self.dictionary is None or self.feature is not None,
            f"dictionary={self.dictionary} without a feature; give feature=N too",
        )
        if self.name is not None:
            check_name(self.name, f"name={self.name}")
        _ = self.question

    def idle_keys(self) -> dict[str, str | None]:
        """Return the keys of a state for a feature, and those of a feature for a state."""
        if self.text is not None:
            return {"scales": "feature=N"}
        return dict.fromkeys(("token", "at"), "text=...") if self.feature is not None else {}

    @property
    def question(self) -> Question:
        """The prompt, and how the model goes on from it."""
        return Question(
            prompt=self.prompt.replace("\\n", "\n"),
            placeholder=self.placeholder,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
        )


def run(config: PatchscopeConfig) -> dict[str, Any]:
    """Ask, or reuse what the model said before to the same settings.

    Returns:
        What was asked, and in `records` what the model wrote with each vector and control.
    """
    require(
        config.text is not None or config.feature is not None,
        "there is no text and no feature to ask about; give text=... or feature=N",
    )
    name, about, ask = (_of_state if config.feature is None else _of_feature)(config)
    settings = {k: v for k, v in plain(config).items() if k not in ("run", "name")}
    del settings["model"]["device"]
    wanted = digest([settings, about])
    path = Run.at(config.run).patchscope(config.name or f"{name}-{wanted[:8]}")

    def is_current() -> bool:
        if not path.exists() or not is_whole(path):
            return False
        return read_object(path, _ANEW).values.get("digest") == wanted

    def build(temporary: Path) -> None:
        found = ask()
        write_json(temporary, {"digest": wanted, "told": [*found.lines()]} | found.to_json())

    made = make(path, is_current, build, command="patchscope")
    if made:
        keep_settings(config, "patchscope", path)
    results = read_object(path, _ANEW)
    for line in results.get("told", list):
        show(str(line))
    if made:
        say(f"patchscope: {path} is written")
    return {**results.values}


_Asked = tuple[str, list[str], Callable[[], Patchscopes]]
"""A name for the results, digests of what they are made of, and what makes them."""


def _of_state(config: PatchscopeConfig) -> _Asked:
    text, question = config.text or "", config.question
    # Unknown hooks are refused before weights are loaded.
    places_of_state(load_skeleton(config.model), config.at, config.into)
    model = load_model(config.model)
    placed(model, question)
    source = source_of(model, text, config.token)
    places = places_of_state(model.module, config.at, config.into)
    return (
        "state",
        [model.record.weight_digest],
        lambda: ask_of_state(model, question, source, places),
    )


def _of_feature(config: PatchscopeConfig) -> _Asked:
    run, feature = Run.at(config.run), config.feature or 0
    place, dictionary = load_named(run, config.dictionary or RECOMMENDED)
    check_feature(dictionary, feature, config.scales)
    record, usual = dictionary.record.model, ModelConfig().name
    if record is not None and config.model.name not in (usual, record.name, record.hub_id):
        raise UserError(
            f"model.name={config.model.name}, but {place} belongs to {record.hub_id}; leave "
            "out model"
        )
    chosen = config.model if record is None else recorded_config(record, config.model.device)
    place_of_feature(load_skeleton(chosen), dictionary, config.into)
    model = load_model(chosen) if record is None else recorded_model(record, chosen.device)
    placed(model, config.question)
    of = dictionary.to(model.device), feature
    return (
        f"{Path(place).name}-{feature}",
        [model.record.weight_digest, dictionary.digest],
        lambda: ask_of_feature(model, config.question, of, config.into, config.scales),
    )
