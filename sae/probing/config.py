"""What `sae probe` can be asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sae.base import nearest, require, require_at_least
from sae.base.names import check_names
from sae.models import ModelConfig
from sae.rows.pooled import POOLS

ATTENTION = "attention"
ALL = "all"
_POOLS = (*POOLS, ATTENTION)


def _usual_k() -> list[str]:
    return ["1", "5", "16", ALL]


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeConfig:
    """Find out what can be told from a model's activations, at which hooks.

    A task is a set of texts, each with one of two labels. At each hook a classifier is fitted
    to the activations of some texts and tested on others, and its controls are shown beside it.
    """

    run: str = "runs/default"
    """Folder of the run; results go to `{run}/probing/{name}/`: tables, a page, pictures."""
    name: str = "default"
    """Name of the results. Results under the same name that were made with other settings are
    replaced."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The model to look into."""
    tasks: list[str] = field(default_factory=lambda: ["noun-or-verb"])
    """Labelled texts: `noun-or-verb`; one of the embedded data sets, such as
    `sae-probes:5_hist_fig_ismale`, or all of them with `sae-probes:all`; a .csv, .jsonl or
    .parquet file; or a data set on the Hub."""
    text_column: str = "text"
    """Column that holds the texts, in a file or in a data set on the Hub."""
    label_column: str = "label"
    """Column that holds the labels, of which there must be exactly two. The columns `start` and
    `end`, if there are any, say which characters of a text the question is about, and `split`
    says which texts are for training and which for testing."""
    hooks: list[str] = field(default_factory=lambda: [ALL])
    """Hooks to look at, as TransformerLens names or module paths. `all` is the output of every
    block."""
    dictionary: str | None = None
    """Dictionary whose features are probed at the hook that it reads: a name in the run,
    `recommended` for the one that its comparison recommends, a folder, or an address on the
    Hub."""
    k: list[str] = field(default_factory=_usual_k)
    """Numbers of features that a probe may read, those that differ most; `all` is all."""
    pools: list[str] = field(default_factory=list)
    """How the tokens of a text become one row of activations: its `last` token, the `mean` or
    `max` over its tokens, the last token of the `span` that the question is about, or
    `attention`, a probe that learns which tokens to look at. By default it is `span` if the
    texts have one, and otherwise last, mean and max."""
    n_train: int = 128
    """Number of texts of each task that the classifier is fitted to, half of them with either
    label."""
    n_test: int = 128
    """Number of texts of each task that the classifier is tested on, half of them with either
    label."""
    max_tokens: int = 256
    """Largest number of tokens that are read from the beginning of a text."""
    learning_curve: list[int] = field(default_factory=list)
    """Smaller numbers of training texts that are tried at the best hook of each task."""
    causal: bool = True
    """Whether to steer and ablate along the best probe of each task, to see whether the model
    uses what the probe reads."""
    seed: int = 0
    """Seed of the choice of texts, of the folds, and of the random controls."""

    def __post_init__(self) -> None:
        check_names(self.name)
        require(
            self.name not in ("", ".", "..") and "/" not in self.name,
            f"name={self.name} cannot be the name of a folder; give a word without slashes",
        )
        require(bool(self.tasks), "tasks is empty; give one such as tasks=[noun-or-verb]")
        require(bool(self.hooks), "hooks is empty; give names, or hooks=[all]")
        require(
            ALL not in self.hooks or len(self.hooks) == 1,
            f"hooks={','.join(self.hooks)} names other hooks beside all; give all alone",
        )
        require_at_least(self, n_train=4, n_test=4, max_tokens=1, seed=0)
        require(bool(self.k), "k is empty; give numbers of features, or k=[all]")
        for one in self.k:
            require(
                one == ALL or (one.isdecimal() and int(one) > 0),
                f"k={one} is not a number of features; give whole numbers of at least 1, or "
                "all",
            )
        _check_once("k", self.k)
        _check_once("hooks", self.hooks)
        _check_once("pools", self.pools)
        for pool in self.pools:
            require(
                pool in _POOLS,
                f"pools={pool} is unknown{nearest(pool, _POOLS)}; give some of "
                f"{', '.join(_POOLS)}",
            )
        for n in self.learning_curve:
            require(
                4 <= n < self.n_train,
                f"learning_curve={n} is not between 4 and n_train={self.n_train}; give smaller "
                "numbers of texts than that",
            )

    @property
    def ks(self) -> list[int | None]:
        """The numbers of features; None is all."""
        return [None if one == ALL else int(one) for one in self.k]

    def idle_keys(self) -> dict[str, str | None]:
        """Return what has an effect with other keys alone."""
        return {} if self.dictionary is not None else {"k": "dictionary=NAME"}


def _check_once(key: str, words: Sequence[str]) -> None:
    for word in words:
        require(words.count(word) == 1, f"{key}={word} occurs twice; give it once")
