"""What `sae train` can be asked for."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from sae.architectures import ArchitectureConfig, StandardConfig
from sae.base import plain, require, require_at_least
from sae.base.names import check_name
from sae.controls import CONTROLS
from sae.core.screen import MATMULS
from sae.rows.reading import Reading
from sae.run import RANDOM_MODEL_CACHE, RUN_CACHE, Run, cache_location
from sae.training.checkpoint import CheckpointConfig
from sae.training.loggers import LoggerConfig
from sae.training.optim import OptimConfig, usual_lr

_MIX_ROWS = 262_144
_SEED = 42
# Evaluated rows over trained ones, at most; one costs three times the other.
_EVALUATED_SHARE = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepConfig:
    """Settings for a sweep as a whole, which mean nothing for a single dictionary."""

    memory_gb: float | None = None
    """Gigabytes of memory that the dictionaries in training may take, also when there is only
    one. By default it is four fifths of the free memory."""
    evaluate: bool = True
    """Measure all dictionaries of a sweep on held-out text afterwards, as `sae eval` does."""
    n_behaviour_tokens: int = 2_048
    """Number of held-out tokens on which cross-entropy and KL divergence are measured for each
    dictionary of a sweep. `sae eval` takes more by default."""
    max_l0: float = 60.0
    """Highest L0 that the recommended dictionary may have. The most faithful dictionary among
    those is recommended."""
    yes: bool = False
    """Train the whole sweep even if it has more than a hundred dictionaries."""

    def __post_init__(self) -> None:
        require(
            self.memory_gb is None or self.memory_gb > 0,
            f"sweep.memory_gb={self.memory_gb}; give more than 0",
        )
        require_at_least(self, of="sweep.", n_behaviour_tokens=1)
        require(self.max_l0 > 0, f"sweep.max_l0={self.max_l0}; give more than 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Train a dictionary on the activations of a cache, or of a model that runs beside it."""

    run: str = "runs/default"
    """Folder of the run; the dictionary goes to `{run}/dictionaries/{name}`."""
    cache: str | None = RUN_CACHE
    """Cache to train on, a folder or an address. With null the model runs during the training,
    and its activations are not kept."""
    harvest: Reading = field(default_factory=Reading)
    """Model and text whose activations to train on without a cache."""
    mix_rows: int = _MIX_ROWS
    """Number of activations that are kept in memory. Each batch is drawn from them at
    random."""
    hook_name: str | None = None
    """Hook whose activations the dictionary reads. You may leave it out if the cache has only
    one."""
    hook_name_out: str | None = None
    """Hook whose activations the dictionary predicts from those that it reads. This makes it a
    transcoder."""
    name: str | None = None
    """Name of the dictionary. By default it is made of architecture, width, penalty, learning
    rate and seed."""
    sae: ArchitectureConfig = field(default_factory=StandardConfig)
    """Architecture of the dictionary."""
    control: list[str] = field(default_factory=list)
    """Controls to train beside the dictionary: `frozen_decoder`, `soft_frozen`,
    `frozen_encoder`, `random_model`. A dictionary has learned something if it scores better
    than they do."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser and its schedule."""
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    """Logger of the figures of the training."""
    training_tokens: int = 2_000_000
    """Total number of activations to train on. A cache that has fewer is read several times."""
    train_batch_size_tokens: int = 1024
    """Number of activations in a batch."""
    max_norm_multiple: float | None = 10.0
    """Leave out activations whose norm is above this multiple of the median norm. With null all
    are kept."""
    dead_feature_window: float = 0.1
    """A latent counts as dead if it did not fire over this share of the training."""
    seed: int = _SEED
    """Seed of the initial weights."""
    shuffle_seed: int = _SEED
    """Seed of the order in which activations are read. Dictionaries with different orders
    cannot share batches."""
    init_from: str | None = None
    """Folder of a dictionary, ours or one of SAELens, whose weights the training begins
    with."""
    extend: bool = False
    """Continue a training that is finished, up to a total of `training_tokens`."""
    device: str = "auto"
    """Device to compute on: `cpu`, `cuda`, `cuda:1`, ...; `auto` takes a GPU if there is
    one."""
    matmul: str = "auto"
    """Precision of the product with the encoder that finds the active latents: `float32`,
    `bfloat16`, `int8`, or `auto`, which takes the fastest after a short trial. The result is
    the same to the bit with each of them, because a bound on the error of the product decides
    which entries are computed again exactly."""
    log_every_steps: int = 10
    """Number of steps between two lines of figures."""
    eval_every_steps: int | None = None
    """Number of steps between two evaluations on held-out activations, which also count how
    often latents fire. By default it is a tenth of the training."""
    n_eval_rows: int = 1_024
    """Number of held-out activations in an evaluation during the training."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When checkpoints are made, and which are kept."""
    sweep: SweepConfig = field(default_factory=SweepConfig)
    """What holds for several dictionaries that train side by side."""

    def __post_init__(self) -> None:
        check_name(self.id, f"name={self.id}")
        require_at_least(
            self,
            train_batch_size_tokens=1,
            log_every_steps=1,
            eval_every_steps=1,
            n_eval_rows=1,
        )
        require(
            self.training_tokens >= self.train_batch_size_tokens,
            f"training_tokens={self.training_tokens} is less than one batch of "
            f"train_batch_size_tokens={self.train_batch_size_tokens}",
        )
        self.optim.check_fits(self.n_steps)
        require(
            0 < self.dead_feature_window <= 1,
            f"dead_feature_window={self.dead_feature_window}; give a share of the run, "
            "above 0 and up to 1",
        )
        require(
            self.max_norm_multiple is None or self.max_norm_multiple > 0,
            f"max_norm_multiple={self.max_norm_multiple}; give more than 0, or null",
        )
        self._check_control()
        self._check_harvest()
        require(
            self.matmul in MATMULS,
            f"matmul={self.matmul} is unknown; choose auto, float32, bfloat16 or int8",
        )
        require(
            self.hook_name_out is not None or not self.sae.skip_connection,
            "sae.skip_connection=True has an effect only on transcoders; give "
            "hook_name_out=..., the hook to predict",
        )

    def _check_control(self) -> None:
        known = ", ".join(CONTROLS)
        for kind in self.control:
            require(kind in CONTROLS, f"control={kind} is unknown; choose from {known}")
        require(
            len(set(self.control)) == len(self.control),
            f"control={self.control} names one twice; name each one once",
        )
        is_control = self.sae.frozen != "none"
        require(
            not (self.control and is_control),
            f"sae.frozen={self.sae.frozen} makes this dictionary a control, which has no "
            "controls of its own; leave out control or sae.frozen",
        )
        require(
            self.init_from is None or not (self.control or is_control),
            f"init_from={self.init_from} gives trained directions, but a control keeps "
            "random ones; leave out init_from or the control",
        )

    def controls(self) -> list["TrainConfig"]:
        """Return the trainings of the controls, each like this one but for what it controls."""
        return [self._control(kind) for kind in self.control]

    def _control(self, kind: str) -> "TrainConfig":
        control = CONTROLS[kind]
        own = replace(
            self,
            name=control.named(self.id),
            control=[],
            sae=replace(self.sae, frozen=control.frozen),
        )
        if kind != "random_model":
            return own
        if self.cache is not None:
            return replace(own, cache=RANDOM_MODEL_CACHE)
        model = replace(self.harvest.model, random_weights=True)
        return replace(own, harvest=replace(self.harvest, model=model))

    def _check_harvest(self) -> None:
        if self.cache is None:
            require(
                self.mix_rows >= self.train_batch_size_tokens,
                f"mix_rows={self.mix_rows} is less than one batch of "
                f"train_batch_size_tokens={self.train_batch_size_tokens}",
            )
            return
        require(
            self.mix_rows == _MIX_ROWS,
            f"mix_rows={self.mix_rows} has an effect only with cache=null; this training "
            f"reads {self.cache_location}, whose rows are all mixed",
        )
        usual, asked = plain(Reading()), plain(self.harvest)
        idle = [name for name in usual if asked[name] != usual[name]]
        require(
            not idle,
            f"harvest.{', harvest.'.join(idle)} has an effect only with cache=null; this "
            f"training reads {self.cache_location}",
        )

    def idle_keys(self) -> dict[str, str | None]:
        """Return the keys of training without a cache, or with one, whichever this is not."""
        if self.cache is None:
            return {}
        return {"harvest": "cache=null", "mix_rows": "cache=null"}

    @property
    def id(self) -> str:
        """The dictionary's name: as given, or what people sweep."""
        if self.name:
            return self.name
        to = f"-to-{self.hook_name_out}" if self.hook_name_out else ""
        lr = "" if self.optim.lr is None else f"-lr-{self.optim.lr:g}"
        seed = "" if self.seed == _SEED else f"-seed-{self.seed}"
        order = "" if self.shuffle_seed == _SEED else f"-order-{self.shuffle_seed}"
        own = f"{self.sae.short_name}{to}{lr}{seed}{order}"
        kinds = (one for one in CONTROLS.values() if one.frozen == self.sae.frozen != "none")
        # The very control that `control=` trains beside the dictionary of that name.
        return next((kind.named(own) for kind in kinds), own)

    @property
    def cache_location(self) -> str | None:
        """The cache that is read, if any."""
        return None if self.cache is None else cache_location(self.run, self.cache)

    @property
    def dictionary_path(self) -> Path:
        """Return the folder that the dictionary is written to."""
        return Run.at(self.run).dictionary(self.id)

    @property
    def state_path(self) -> Path:
        """Return the folder of the training's own files: checkpoints, figures, time spent."""
        return Run.at(self.run).training(self.id)

    @property
    def lr(self) -> float:
        """Peak learning rate: as given, or the architecture's for so many steps."""
        if self.optim.lr is not None:
            return self.optim.lr
        return usual_lr(self.sae.default_lr, self.n_steps, self.sae.d_sae)

    @property
    def n_steps(self) -> int:
        """Steps of the run."""
        return self.training_tokens // self.train_batch_size_tokens

    @property
    def eval_interval(self) -> int:
        """Steps between two evaluations: a tenth of the run, and more in a short one."""
        if self.eval_every_steps is not None:
            return self.eval_every_steps
        rows_between = self.n_eval_rows / _EVALUATED_SHARE
        return max(1, self.n_steps // 10, int(rows_between / self.train_batch_size_tokens))
