"""`sae find`: the features that tell one text from another, or examples of two labels."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
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
from sae.base.names import check_name
from sae.dictionary import Dictionary
from sae.evaluation.contrast import Contrast, contrast
from sae.evaluation.sides import FEWEST, Source, examples, two_texts
from sae.models import LanguageModel
from sae.models.load import recorded_model
from sae.pages.found import AGAIN, Found
from sae.run import Run, keep_settings, make

__all__ = ["FindConfig", "Found", "run"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FindConfig:
    """Find the features of a dictionary that fire in one text and not in another.

    In place of two texts there may be examples of a concept and of its absence: one table of
    texts with two labels.
    """

    first: str
    """The text where the features are to fire: a file, a folder, a pattern, or a name as for
    `data=`. Alone it is a set of labelled examples, as for `sae probe`: a table with the
    columns `text` and `label`, or a name such as `noun-or-verb`."""
    second: str | None = None
    """The text that the first is told from, given in the same way."""
    label: str | None = None
    """Label of the examples where the features are to fire. By default it is the second of the
    two in the order of letters, such as 1 of 0 and 1."""
    run: str = "runs/default"
    """Folder of the run that has the dictionary; the result is `{run}/find/{name}.json`."""
    dictionary: str | None = None
    """Name of the dictionary in the run. By default it is the only one, or of several the one
    that `sae eval` recommends."""
    name: str | None = None
    """Name of the result. By default it is made of the names of both texts, or labels."""
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
        if self.name is not None:
            check_name(self.name, f"name={self.name}")
        require(
            self.second is None or self.label is None,
            f"label={self.label} is for examples alone; leave it out, or second={self.second}",
        )
        for known in fields(self):
            given = getattr(self, known.name)
            require(
                self.second is not None
                or known.name not in ("window", "max_tokens")
                or given == known.default,
                f"{known.name}={given} has no effect on examples; it is for two texts",
            )
        fewest = 2 * FEWEST * self.window
        require(
            self.max_tokens >= fewest,
            f"max_tokens={self.max_tokens} is too few; {2 * FEWEST} windows of {self.window} "
            f"tokens need {fewest}",
        )

    def source(self) -> Source:
        """Read what is told apart."""
        if self.second is None:
            return examples(self.first, self.label, self.seed)
        return two_texts([self.first, self.second], self.window, self.max_tokens)


def run(config: FindConfig) -> Found:
    """Find them, or reuse what was found in the same texts with the same settings."""
    home = Run.at(config.run)
    name, dictionary = home.load(config.dictionary)
    source = config.source()
    labels = labels_at(home.atlas(name))
    settings = [config.n_features, config.seed]
    wanted = digest(["find", dictionary.digest, source.digest, settings, labels])
    path = home.found(config.name or source.name)

    def is_current() -> bool:
        return is_whole(path) and read_object(path, AGAIN).values.get("digest") == wanted

    def build(temporary: Path) -> None:
        choosing, measuring = source.read(_model(config, dictionary), dictionary)
        found = contrast(choosing, measuring, config.n_features, config.seed)
        about = {"digest": wanted, "dictionary": name, "texts": source.names, "of": source.unit}
        write_json(temporary, about | _told(found, dictionary, labels))

    made = make(path, lambda: path.exists() and is_current(), build, command="find")
    if made:
        keep_settings(config, "find", path)
    result = Found(path)
    for line in result.lines():
        show(line)
    first = result.features[0]
    say(
        f"find: {path} is written; look at a feature with: sae serve {config.run} "
        f"(#f={first}), or turn it up with: sae steer {config.run} dictionary={name} "
        f"features=[{first}]"
    )
    return result


def _model(config: FindConfig, dictionary: Dictionary) -> LanguageModel:
    record = dictionary.record.model
    require(
        record is not None,
        "the dictionary does not say which model it is of; import it with sae import",
    )
    assert record is not None
    return recorded_model(record, config.device)


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
