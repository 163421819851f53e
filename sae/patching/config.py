"""What patching is asked for."""

import re
from dataclasses import dataclass, field
from typing import Literal, get_args

from sae.base import nearest, require, require_at_least
from sae.models import ModelConfig

Patch = Literal["denoising", "noising"]
Method = Literal["exact", "plain", "relp", "ig"]
Kind = Literal["residual", "attention", "mlp", "head"]
Frozen = Literal["all", "attention", "nothing"]
_RECEIVER = re.compile(r"logits|L(\d+)H(\d+)|(attention|mlp)(\d+)")


def _sites() -> list[str]:
    return list(get_args(Kind))


def _patches() -> list[str]:
    return list(get_args(Patch))


def _methods() -> list[str]:
    return list(get_args(Method))


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchConfig:
    """Find out which places of a model carry an answer: patching and attribution.

    Two prompts of equal length, clean and corrupt, differ in what decides between two answers.
    Activations of one prompt are put into a run on the other, place by place. The effect of a
    place is how far the difference between the logits of both answers moves from its value on
    one prompt to its value on the other.
    """

    run: str = "runs/default"
    """Folder of the run. Results go to `{run}/patching/{name}/`: a page, pictures and
    tables."""
    name: str = "pair"
    """Name of the results."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The model to look into."""
    clean: str = "The Eiffel Tower is in the city of"
    """Prompt that the model answers correctly. It may contain {slots}."""
    corrupt: str = "The Colosseum is in the city of"
    """Prompt that differs from the clean one in what decides the answer."""
    answer: str = " Paris"
    """Correct answer to the clean prompt: one token, with the space before it."""
    wrong: str = " Rome"
    """Answer that the corrupt prompt suggests: one token, with the space before it."""
    slots: dict[str, list[str]] = field(default_factory=dict)
    """Words for each {slot} of the prompts and answers. Different slots never get the same
    word."""
    n_pairs: int = 16
    """Number of pairs to draw from a template, which is a prompt with slots."""
    pairs: list[dict[str, str]] = field(default_factory=list)
    """Several pairs instead of one, each with `clean`, `corrupt`, `answer` and `wrong`."""
    table: str | None = None
    """File with several pairs: `.csv`, `.jsonl` or `.parquet` with these four columns."""
    sites: list[str] = field(default_factory=_sites)
    """Kinds of places to patch: `residual` (the output of each block), `attention` and `mlp`
    (what each of them adds to the stream), all at each position, and `head`, at all positions
    together."""
    patches: list[str] = field(default_factory=_patches)
    """Directions of patching. `denoising` puts clean activations into the corrupt run and shows
    what is enough for the answer. `noising` puts corrupt activations into the clean run and
    shows what is needed for it."""
    methods: list[str] = field(default_factory=_methods)
    """How effects are found. `exact` patches each place. `plain` gradients, `relp` and
    integrated gradients (`ig`) estimate all places from a few passes, and the results say how
    well they agree with exact patching."""
    n_exact: int | None = None
    """Number of pairs to patch exactly, by default all. The others are only estimated."""
    ig_steps: int = 5
    """Number of points between the embeddings of both prompts at which `ig` takes gradients."""
    receivers: list[str] = field(default_factory=list)
    """Receivers for path patching, which heads and MLPs are to reach directly: `logits`, a head
    such as `L23H3`, or `attention23` or `mlp23`."""
    frozen: str = "all"
    """What is held fixed on the way to a receiver: `all` attention and MLPs, `attention` alone,
    as in the paper on indirect objects, or `nothing`."""
    dictionary: str | None = None
    """Dictionary whose features and error are patched: a name in the run, `recommended` for the
    one that its comparison recommends, a folder, or an address on the Hub."""
    n_features: int = 16
    """Number of single features to patch. Those with the largest estimated effect are taken, by
    RelP or else by the first estimate in `methods`."""
    batch_size: int = 64
    """Number of prompts in a forward pass. Fewer prompts need less memory."""
    seed: int = 0
    """Seed of the random choice of words for the slots."""

    def __post_init__(self) -> None:
        require(
            bool(self.name) and "/" not in self.name,
            f"name={self.name}; give a word without slashes",
        )
        require_at_least(self, n_pairs=1, ig_steps=1, n_features=0, batch_size=1, seed=0)
        require(
            self.n_exact is None or self.n_exact >= 0,
            f"n_exact={self.n_exact}; give 0 or more, or null for all pairs",
        )
        _check_words("sites", self.sites, get_args(Kind))
        _check_words("patches", self.patches, get_args(Patch))
        _check_words("methods", self.methods, get_args(Method))
        _check_words("frozen", [self.frozen], get_args(Frozen))
        require(
            bool(self.sites or self.dictionary or self.receivers),
            "sites, receivers and dictionary are empty, so there is nothing to patch; give "
            "sites=[residual]",
        )
        require(
            bool(self.patches) and bool(self.methods),
            "patches or methods is empty; name at least one of each",
        )
        for receiver in self.receivers:
            require(
                _RECEIVER.fullmatch(receiver) is not None,
                f"receivers={receiver} is not a receiver; give logits, a head such as "
                "L23H3, or attention23 or mlp23",
            )
        require(
            not self.receivers or "exact" in self.methods,
            "receivers needs exact patching, but methods leaves it out; add exact to methods",
        )
        self._check_pairs()

    def _check_pairs(self) -> None:
        require(
            not self.pairs or self.table is None,
            f"pairs and table={self.table} are both given; give one of them",
        )
        for key in ("clean", "corrupt", "answer", "wrong"):
            require(bool(getattr(self, key).strip()), f"{key} is empty; say what it is")

    def idle_keys(self) -> dict[str, str | None]:
        """Return what has an effect with other keys alone."""
        idle: dict[str, str | None] = {}
        if self.pairs or self.table is not None:
            one = dict.fromkeys(("clean", "corrupt", "answer", "wrong"))
            idle |= dict.fromkeys(one, "pairs=[]" if self.pairs else "table=null")
        if not self.receivers:
            idle["frozen"] = "receivers=[logits]"
        if self.dictionary is None:
            idle["n_features"] = "dictionary=NAME"
        if "exact" not in self.methods:
            idle["n_exact"] = "methods=[exact]"
        if "ig" not in self.methods:
            idle["ig_steps"] = "methods=[ig]"
        if not self.slots:
            idle |= dict.fromkeys(("n_pairs", "seed"), "slots={...}")
        return idle


def _check_words(key: str, words: list[str], known: tuple[str, ...]) -> None:
    for word in words:
        require(
            word in known,
            f"{key}={word} is unknown{nearest(word, known)}; choose from {', '.join(known)}",
        )
        require(words.count(word) == 1, f"{key}={word} occurs twice; give it once")
