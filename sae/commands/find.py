"""`sae find`: the features that tell one text from another."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sae.atlas import labels_at
from sae.base import (
    digest,
    is_whole,
    read_object,
    require,
    require_at_least,
    say,
    show,
    write_json,
)
from sae.dictionary import Dictionary
from sae.evaluation.contrast import Contrast, Windows, contrast, read_windows
from sae.models.load import recorded_model
from sae.pages.found import AGAIN, Found
from sae.run import Run, keep_settings, make
from sae.text.source import DataConfig, documents

__all__ = ["FindConfig", "Found", "run"]

_FEWEST = 8
"""Windows that each half of a text needs, so that an AUC means something."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FindConfig:
    """Find the features of a dictionary that fire in one text and not in another."""

    first: str
    """The text where the features are to fire: a file, a folder, a pattern, or a name as for
    `data=`."""
    second: str
    """The text that it is told from, given in the same way."""
    run: str = "runs/default"
    """Folder of the run that has the dictionary; the result is `{run}/find/{name}.json`."""
    dictionary: str | None = None
    """Name of the dictionary in the run. By default it is the only one, or of several the one
    that `sae eval` recommends."""
    name: str | None = None
    """Name of the result. By default it is made of the names of both texts."""
    n_features: int = 20
    """How many features to return."""
    window: int = 32
    """Tokens in a window. A feature's activations are averaged over each window."""
    max_tokens: int = 8_192
    """Tokens of each text that are read at most."""
    seed: int = 0
    """Seed of the shuffled labels and random directions that chance is measured with."""
    device: str = "auto"
    """Where the model runs: auto, cpu or cuda."""

    def __post_init__(self) -> None:
        require_at_least(self, n_features=1, window=1)
        fewest = 2 * _FEWEST * self.window
        require(
            self.max_tokens >= fewest,
            f"max_tokens={self.max_tokens} is too few; {2 * _FEWEST} windows of {self.window} "
            f"tokens need {fewest}",
        )


def run(config: FindConfig) -> Found:
    """Find them, or reuse what was found in the same texts with the same settings."""
    home = Run.at(config.run)
    name, dictionary = home.load(config.dictionary)
    texts = [_texts(place, config.max_tokens) for place in (config.first, config.second)]
    labels = labels_at(home.atlas(name))
    settings = [config.n_features, config.window, config.max_tokens, config.seed]
    wanted = digest(["find", dictionary.digest, texts, settings, labels])
    path = home.found(config.name or _name(config))

    def is_current() -> bool:
        return is_whole(path) and read_object(path, AGAIN).values.get("digest") == wanted

    def build(temporary: Path) -> None:
        first, second = _windows(config, dictionary, texts)
        found = contrast(first, second, config.n_features, config.seed)
        about = {"digest": wanted, "dictionary": name, "texts": [config.first, config.second]}
        write_json(temporary, about | _told(found, dictionary, labels))

    made = make(path, lambda: path.exists() and is_current(), build, command="find")
    if made:
        keep_settings(config, "find", path)
    result = Found(path)
    for line in result.lines():
        show(line)
    first = result.features[0]
    say(f"find: {path} is written; look at a feature with: sae serve {config.run} (#f={first})")
    return result


def _texts(place: str, most: int) -> list[str]:
    """Return the documents of a text, as many as hold the tokens that are read at most."""
    found, n_characters = [], 0
    for document in documents(DataConfig(name=place)):
        require(isinstance(document, str), f"{place} holds no plain text; give a text file")
        found.append(str(document))
        n_characters += len(found[-1])
        # A token has fewer characters than this in every script.
        if n_characters > 16 * most:
            break
    require(bool("".join(found).strip()), f"{place} holds no text")
    return found


def _windows(
    config: FindConfig, dictionary: Dictionary, texts: list[list[str]]
) -> Iterator[Windows]:
    record = dictionary.record.model
    require(
        record is not None,
        "the dictionary does not say which model it is of; import it with sae import",
    )
    assert record is not None
    model = recorded_model(record, config.device)
    for place, documents_ in zip((config.first, config.second), texts, strict=True):
        found = read_windows(
            model, dictionary, iter(documents_), config.window, config.max_tokens
        )
        n = len(found.features)
        require(
            n >= 2 * _FEWEST,
            f"{place} has {n} windows of {config.window} tokens, too few to rank features on "
            f"one half and to measure them on the other; give {2 * _FEWEST} at least, or a "
            "smaller window=...",
        )
        yield found


def _told(
    found: Contrast, dictionary: Dictionary, labels: Mapping[int, str]
) -> dict[str, object]:
    features = [
        {
            "feature": one.feature,
            "label": labels.get(one.feature, ""),
            "ranking_auc": one.ranking_auc,
            "auc": one.auc.mean,
            "auc_low": one.auc.low,
            "auc_high": one.auc.high,
            "mean_first": one.mean[0],
            "mean_second": one.mean[1],
        }
        for one in found.told
    ]
    return {
        "d_sae": dictionary.d_sae,
        "n_windows": list(found.n_windows),
        "features": features,
        "shuffled": list(found.shuffled),
        "random_direction": found.random_direction.to_json(),
        "difference_of_means": found.difference_of_means.to_json(),
    }


def _name(config: FindConfig) -> str:
    return "-or-".join(Path(place).stem for place in (config.first, config.second))
