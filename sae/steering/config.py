"""What steering with features of a dictionary is asked for."""

from dataclasses import dataclass, field

from sae.base import require, require_at_least
from sae.steering.vocabulary import VocabularyConfig
from sae.writing import Sampling


def _prompts() -> list[str]:
    return [
        "I went for a walk and",
        "The most important thing is",
        "She opened the letter:",
        "When we arrived at the house,",
        "My brother told me that",
        "In the second half of the year",
        "The article begins with",
        "He looked at the table and saw",
        "One of the reasons is that",
        "After dinner they talked about",
        "The first chapter describes",
        "It was early in the morning when",
    ]


def _reworded() -> list[str]:
    return [
        "What matters more than anything else is",
        "As soon as we got to the building,",
        "During the last six months",
        "He glanced over at the desk and noticed",
        "Once they had eaten, the conversation turned to",
        "The sun was hardly up when",
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class SteerConfig:
    """Turn features of a dictionary up and down while the model writes.

    The effect and the cost of each dose are shown beside those of a plain prompt, the
    difference of means, the wrong sign, a random direction, a random feature and the bare
    reconstruction.
    """

    run: str = "runs/default"
    """Folder of the run; results go to `{run}/steering/{dictionary}.json`, a picture of them
    beside it."""
    dictionary: str | None = None
    """Name of the dictionary, which needs an atlas. By default it is the only one of the run,
    or of several the one that `sae eval` recommends."""
    features: list[int] = field(default_factory=list)
    """Numbers of the features to steer with. By default some are chosen, and the results say
    how."""
    n_features: int = 4
    """Number of features to choose if `features` is empty."""
    strengths: list[float] | None = None
    """Doses, as multiples of a feature's highest activation, where 0 is the unsteered model. By
    default there are nine doses of both signs, around the dose that costs `max_cost`."""
    max_cost: float = 0.1
    """Highest cost of a chosen dose, in nats a token: the KL divergence from the next-token
    probabilities of the unsteered model on neutral text. 0.1 is about a tenth more
    perplexity."""
    prompts: list[str] = field(default_factory=_prompts)
    """Beginnings of texts that the model continues. Doses are chosen on the first, the third
    and so on, and results are reported on the others."""
    reworded: list[str] | None = None
    """Other wordings of the prompts, on which the chosen dose is checked again. By default
    there are some for the prompts above, and none for prompts of your own."""
    vocabulary: str | None = None
    """Text file of the only words that are allowed. If it is given, several ways to limit what
    the model writes are compared as well. With `n_features=0` nothing else is compared."""
    target: float = 0.05
    """Share of tokens outside the vocabulary that a controller is to keep to, on average."""
    n_suppressed: int = 64
    """Number of features to hold at 0, of those that promote tokens outside the vocabulary."""
    max_new_tokens: int = 32
    """Number of tokens that the model writes."""
    temperature: float = 0.7
    """Temperature of sampling; 0 takes the likeliest token every time."""
    seed: int = 0
    """Seed of sampling and of the random directions."""
    device: str = "auto"
    """Device to compute on: `cpu`, `cuda`, `cuda:1`, ...; `auto` takes a GPU if there is
    one."""

    def __post_init__(self) -> None:
        require(
            self.strengths is None or bool(self.strengths),
            "strengths is empty; give doses such as [-1,0,1], or null for nine of them",
        )
        require(
            bool(self.prompts) and all(p.strip() for p in [*self.prompts, *self.rewordings]),
            "prompts is empty, or it or reworded contains an empty text; give beginnings "
            "to continue",
        )
        for feature in self.features:
            require(
                self.features.count(feature) == 1,
                f"features={feature} occurs twice; give each one once",
            )
        require(0 < self.max_cost < 100, f"max_cost={self.max_cost}; give a number above 0")
        least = 0 if self.vocabulary else 1
        require_at_least(self, max_new_tokens=1, n_features=least, temperature=0)
        if self.limits is not None:
            self.limits.check_temperature(self.temperature)

    def idle_keys(self) -> dict[str, str | None]:
        """Return how many to choose, where features are given, and what limits alone use."""
        idle: dict[str, str | None] = {"n_features": "features=[]"} if self.features else {}
        if self.vocabulary is None:
            idle |= dict.fromkeys(("target", "n_suppressed"), "vocabulary=FILE")
        elif not self.n_features and not self.features:
            idle |= dict.fromkeys(("strengths", "max_cost", "reworded"), "n_features=1")
        return idle

    @property
    def rewordings(self) -> list[str]:
        """Other wordings of the prompts, none where they are not known."""
        if self.reworded is not None:
            return self.reworded
        return _reworded() if self.prompts == _prompts() else []

    @property
    def limits(self) -> VocabularyConfig | None:
        """The words that are allowed and how they are kept to, if all are not."""
        if self.vocabulary is None:
            return None
        return VocabularyConfig(
            vocabulary=self.vocabulary, target=self.target, n_features=self.n_suppressed
        )

    @property
    def sampling(self) -> Sampling:
        """How the texts are drawn."""
        return Sampling(
            max_new_tokens=self.max_new_tokens, temperature=self.temperature, seed=self.seed
        )
