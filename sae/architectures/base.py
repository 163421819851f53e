"""What the trainer asks of an autoencoder, and what all architectures share."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sae.architectures.directions import initial_directions, random_directions, within_cone
from sae.base import require
from sae.core.scaling import InputScaling
from sae.core.select import Active, Selection, select_and_count
from sae.dictionary import Activation, Dictionary, ReLU

# The encoder's bias learns faster than the directions: raising the bar is the short way to
# fewer active latents. It brings a penalised L0 down in half the steps at the same error, and
# gives TopK half a point of explained variance (docs/log.md).
BIAS_LR_FACTOR = 10.0

# How far from equal figures of a dictionary may be that has to have equal ones: what storing
# in half precision leaves of them.
SAME_WITHIN = 0.01


FROZEN = ("none", "decoder", "decoder_softly", "encoder")
"""What may keep its first directions, drawn at random, in a control."""

Rows = Float[Tensor, "batch d_in"]
"""Scaled rows that are read."""
Targets = Float[Tensor, "batch d_out"]
"""Scaled rows that are to be reconstructed; of an autoencoder those that are read."""
Latents = Float[Tensor, "batch d_sae"]
PerLatent = Float[Tensor, " d_sae"]
Silent = Bool[Tensor, " d_sae"]
"""Which latents have been silent for the whole dead window."""


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """The losses and activity that one forward pass over a batch gives."""

    loss: Float[Tensor, ""]
    """To be minimised; the only one that gradients flow through."""
    mse: Float[Tensor, ""]
    """`‖x̂ − y‖²` summed over the width, averaged over the batch; detached."""
    losses: dict[str, Tensor | float]
    """Other figures of the step, detached: `losses/l1_loss`, `details/l1_coefficient`, ..."""
    fired: Int[Tensor, " d_sae"]
    """Number of rows of the batch in which each latent was active."""


@dataclass(frozen=True, kw_only=True)
class ArchitectureConfig(ABC):
    """Size of an autoencoder; each architecture adds its own keys."""

    architecture: ClassVar[str]
    """The name in the registry, and on the command line: `sae=topk`."""
    saved_as: ClassVar[type[Activation]]
    """The activation of the trained dictionary."""
    autoencoder: ClassVar["type[TrainableSAE]"]
    """What is trained; made by `build`."""
    default_lr: ClassVar[float] = 3e-3
    """Peak learning rate when `optim.lr` is not given."""

    d_sae: int = 4_608
    """Number of latents, the width of the dictionary."""
    skip_connection: bool = False
    """Add a linear path from input to output beside the latents. Only transcoders can have
    one."""
    aligned: bool = False
    """Keep the inner product of each latent's encoder and decoder direction at one."""
    frozen: str = "none"
    """Part whose directions stay the random ones that the training began with, which makes the
    dictionary a control: `none`, `decoder`, `decoder_softly` (directions stay within a cosine
    of 0.8 of the random ones) or `encoder`. To train a control beside a dictionary, use
    `control=`."""

    def __post_init__(self) -> None:
        require(
            self.d_sae > 0,
            f"sae.d_sae={self.d_sae} is impossible; a dictionary needs at least one latent",
        )
        require(
            self.frozen in FROZEN,
            f"sae.frozen={self.frozen} is unknown; choose one of {', '.join(FROZEN)}",
        )
        require(
            not self.aligned or self.frozen == "none",
            f"sae.aligned=True moves the encoder with the decoder, so sae.frozen={self.frozen} "
            "cannot keep either; leave one of them out",
        )

    @property
    @abstractmethod
    def short_name(self) -> str:
        """Begins the name of the dictionary's folder: architecture, width and penalty."""

    def build(
        self, sample: Rows, generator: torch.Generator, target: Targets | None = None
    ) -> "TrainableSAE":
        """Return a fresh autoencoder; `target` is what a transcoder predicts of `sample`."""
        return self.autoencoder(self, sample, generator, target)

    def check_share(self, name: str) -> None:
        """Refuse a share outside of 0 to 1."""
        value = getattr(self, name)
        require(
            0 <= value <= 1, f"sae.{name}={value} is impossible; give a share between 0 and 1"
        )

    def check_target_l0(self, target_l0: float | None) -> None:
        """Refuse an L0 that this width cannot have."""
        require(
            target_l0 is None or 0 < target_l0 < self.d_sae,
            f"sae.target_l0={target_l0} is impossible; give more than 0 and less than "
            f"sae.d_sae={self.d_sae}, such as 50",
        )

    def check_not_negative(self, name: str, usual: str) -> None:
        """Refuse a weight that is negative or not finite."""
        value = getattr(self, name)
        require(
            0 <= value < math.inf, f"sae.{name}={value} is impossible; give 0 or more ({usual})"
        )


class TrainableSAE(nn.Module, ABC):
    """An autoencoder in training. Rows that it sees are centred and scaled.

    Weights are kept latent by latent: row j of `W_enc_t` and of `W_dec` is latent j.
    """

    unit_norm_decoder: bool = False
    """Whether the optimiser keeps the rows of `W_dec` at norm one."""
    lr_factors: ClassVar[dict[str, float]] = {"b_enc": BIAS_LR_FACTOR}
    """Parameters that learn faster or slower than the others, by name."""

    matmul: str = "auto"
    """The product that finds the active latents (`screen.MATMULS`); nothing depends on it."""

    def __init__(
        self,
        config: ArchitectureConfig,
        sample: Rows,
        generator: torch.Generator,
        target: Targets | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.d_sae = config.d_sae
        self.aligned = config.aligned
        is_control = config.frozen != "none"
        directions = (
            random_directions(config.d_sae, sample, generator)
            if is_control
            else initial_directions(config.d_sae, sample, generator)
        )
        d_out = sample.shape[1] if target is None else target.shape[1]
        self.W_enc_t = nn.Parameter(directions)
        self.b_enc = nn.Parameter(sample.new_zeros(config.d_sae))
        self.W_dec = nn.Parameter(
            directions.clone()
            if target is None
            else random_directions(config.d_sae, target, generator)
            if is_control
            else self._predicting_directions(sample, target, generator)
        )
        self.b_dec = nn.Parameter(sample.new_zeros(d_out))
        if config.skip_connection:
            self.W_skip = nn.Parameter(sample.new_zeros(d_out, sample.shape[1]))
        if not config.aligned:
            gain = self._matching_gain(sample, sample if target is None else target)
            self.W_enc_t.data.mul_(gain)
        self._freeze(config.frozen)
        self.prepare(sample)

    def _freeze(self, what: str) -> None:
        """Keep first directions as they are, or remember them to stay near."""
        self.W_enc_t.requires_grad_(what != "encoder")
        self.W_dec.requires_grad_(what != "decoder")
        if what == "decoder_softly":
            self.first_directions: Tensor
            self.register_buffer("first_directions", self.W_dec.detach().clone())

    def prepare(self, sample: Rows) -> None:
        """Make what an architecture has of its own; the constructor calls it last."""
        return

    @abstractmethod
    def activation(self, pre_acts: Latents) -> Latents:
        """Feature activations at initialisation, of pre-activations without a bias; dense."""

    @abstractmethod
    def step(self, x: Rows, y: Targets, progress: float, dead: Silent) -> TrainingStep:
        """Return the loss on a batch; `progress` is the share of the run that is over."""

    def encoder(self) -> Float[Tensor, "d_sae d_in"]:
        """Return the encoder's weight, a row a latent.

        With `aligned` it is the free weight moved along the decoder's direction until their
        inner product is one (aligned training, arXiv 2605.18629).
        """
        if not self.aligned:
            return self.W_enc_t
        inner = (self.W_enc_t * self.W_dec).sum(1, keepdim=True)
        squares = self.W_dec.square().sum(1, keepdim=True)
        return self.W_enc_t + (1 - inner) / squares * self.W_dec

    def select(
        self, x: Rows, encoder: Float[Tensor, "d_sae d_in"], selection: Selection
    ) -> tuple[Active, float]:
        """Return what the selection keeps of the pre-activations of `x`.

        And how many entries of a row the product left open, which is logged.
        """
        return select_and_count(x, encoder, self.b_enc, selection, self.matmul)

    def target(self, x: Rows, y: Targets) -> Targets:
        """Return what is left for the latents: `y` less the decoder's bias and the skip."""
        left = y - self.b_dec
        skip = getattr(self, "W_skip", None)
        return left if skip is None else left - nn.functional.linear(x, skip)

    def after_update(self) -> None:
        """Put parameters back within their constraints, after each step of the optimiser."""
        if self.config.frozen == "decoder_softly":
            self.W_dec.data.copy_(within_cone(self.W_dec.data, self.first_directions))

    def dictionary(self, scaling: InputScaling, output: InputScaling) -> Dictionary:
        """Return a dictionary that does on raw activations what this does on scaled ones.

        Rows of its decoder have norm one: each activation is the length that it adds, in the
        unit of the model's activations.
        """
        gains = self.gains(output)
        encoder, decoder = self.encoder().detach().double(), self.W_dec.detach().double()
        skip = getattr(self, "W_skip", None)
        w_enc, b_enc = scaling.fold_encoder(encoder.t() * gains, self.b_enc.detach() * gains)
        w_dec, b_dec = output.fold_decoder(decoder / gains[:, None], self.b_dec.detach())
        raw = None
        if skip is not None:
            raw = skip.detach().double() * (scaling.scale / output.scale)
            b_dec = (b_dec.double() - raw @ scaling.mean.double()).float()
        activation = self.trained_activation(gains, b_enc)
        found = Dictionary.from_weights(w_enc.contiguous(), b_enc, w_dec, b_dec, activation)
        return found if raw is None else replace(found, W_skip=raw.float())

    def trained_activation(self, gains: PerLatent, b_enc: PerLatent) -> Activation:
        """Return the activation of the dictionary, whose encoder has the bias `b_enc`."""
        return ReLU()

    def gains(self, output: InputScaling) -> PerLatent:
        """Length that each latent adds to raw activations where it is one here, in float64."""
        if self.unit_norm_decoder:
            return torch.full_like(self.b_enc, 1 / output.scale, dtype=torch.float64)
        norms = self.W_dec.detach().double().norm(dim=1)
        # What adds nothing keeps its row of zeros.
        return torch.where(norms > 0, norms, 1) / output.scale

    @torch.no_grad()
    def begin_with(
        self, dictionary: Dictionary, scaling: InputScaling, output: InputScaling
    ) -> None:
        """Take over a dictionary, so that `dictionary` gives one that does the same.

        Norms of decoder rows move into the encoder: latents fire and add up as before, and
        each activation is as long as what it adds. A row of zeros adds nothing, so its latent
        stops firing and keeps its first direction. Nothing else of the training's state
        changes: `k` and penalties are those of the configuration.

        Raises:
            UserError: if this architecture cannot do what the dictionary does.
        """
        self._check_fit(dictionary)
        w_enc, b_enc = scaling.unfold_encoder(dictionary.W_enc, dictionary.b_enc)
        b_dec = dictionary.b_dec
        if dictionary.W_skip is not None:
            b_dec = b_dec.double() + dictionary.W_skip.double() @ scaling.mean.double()
        w_dec, b_dec = output.unfold_decoder(dictionary.W_dec, b_dec)
        decoder = w_dec.double()
        gains = decoder.norm(dim=1)
        silent = (gains == 0)[:, None]
        decoder = torch.where(silent, self.W_dec.double(), decoder / gains[:, None])
        encoder = w_enc.t().double() * gains[:, None]
        if self.aligned:
            _check_aligned(encoder, decoder)
        self.take_activation(dictionary, gains, scaling)
        self.W_enc_t.copy_(encoder)
        self.b_enc.copy_(b_enc * gains)
        self.W_dec.copy_(decoder)
        self.b_dec.copy_(b_dec)
        if dictionary.W_skip is not None:
            self.W_skip.copy_(dictionary.W_skip.double() * (output.scale / scaling.scale))

    def take_activation(
        self, dictionary: Dictionary, gains: PerLatent, scaling: InputScaling
    ) -> None:
        """Take over what tells active latents, or refuse; called before anything changes.

        `gains` multiply the activations; they are 0 for latents whose decoder row is zero.
        """
        fields = [*dictionary.activation.tensors, *dictionary.activation.numbers]
        require(
            not fields,
            f"the dictionary of init_from has a {' and a '.join(fields)} that "
            f"sae={self.config.architecture} cannot use; leave out init_from",
        )

    def _check_fit(self, dictionary: Dictionary) -> None:
        """Refuse a dictionary of another activation or shape."""
        has, config = "the dictionary of init_from has", self.config
        require(
            isinstance(dictionary.activation, config.saved_as),
            f"{has} architecture {dictionary.architecture}, but sae={config.architecture} "
            f"makes a {config.saved_as.name} one; give sae={dictionary.architecture}",
        )
        require(
            dictionary.d_sae == self.d_sae,
            f"{has} {dictionary.d_sae} latents, but sae.d_sae={self.d_sae}; give "
            f"sae.d_sae={dictionary.d_sae}",
        )
        by = dictionary.reads[0].normalisation
        require(
            by is None,
            f"{has} a normalisation for each row ({by and by.name}), but a training scales "
            "all rows alike; leave out init_from",
        )
        require(
            bool(dictionary.W_dec.any()), f"{has} only zeros in W_dec; its files may be damaged"
        )
        widths = {
            "hook_name": (dictionary.d_in, self.W_enc_t.shape[1], "reads"),
            "hook_name_out": (dictionary.d_out, self.W_dec.shape[1], "reconstructs"),
        }
        for key, (found, wanted, does) in widths.items():
            require(
                found == wanted,
                f"{has} width {found} where it {does}, but {key}'s activations have {wanted}; "
                f"give the {key} that it was trained on",
            )
        skip = dictionary.W_skip is not None
        require(
            skip == config.skip_connection,
            f"{has} {'a' if skip else 'no'} skip connection, but sae.skip_connection="
            f"{config.skip_connection}; give sae.skip_connection={skip}",
        )

    def _matching_gain(self, sample: Tensor, target: Tensor) -> float:
        """Return the encoder's scale that brings the first reconstruction closest to the rows.

        Tied weights add up what overlapping directions see; least squares over one factor
        undoes that (OpenAI's code rescales the encoder for the same reason).
        """
        x, y = sample[:1024], target[:1024]
        with torch.no_grad():
            y_hat = self.activation(x @ self.W_enc_t.t()) @ self.W_dec
            gain = float((y * y_hat).sum() / y_hat.square().sum().clamp_min(1e-12))
        return gain if gain > 0 else 1.0

    def _predicting_directions(
        self, sample: Tensor, target: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Return the mean direction of the target where each latent fires, mixed with noise."""
        with torch.no_grad():
            mean = self.activation(sample @ self.W_enc_t.t()).t() @ target
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype).to(mean.device)
        unit = nn.functional.normalize
        return unit(unit(mean, dim=1) + unit(noise, dim=1), dim=1)


def _check_aligned(
    encoder: Float[Tensor, "d_sae d_in"], decoder: Float[Tensor, "d_sae d_in"]
) -> None:
    """Refuse directions that `aligned` would move."""
    inner = (encoder * decoder).sum(1)
    require(
        bool(((inner - 1).abs() <= SAME_WITHIN).all()),
        "the dictionary of init_from has encoder and decoder directions with inner products "
        f"from {inner.min():.3g} to {inner.max():.3g}, but sae.aligned=True keeps them at "
        "one; give sae.aligned=False",
    )


def same(values: Float[Tensor, " n"]) -> bool:
    """Whether values, none negative, are equal up to `SAME_WITHIN`."""
    return bool(values.max() - values.min() <= SAME_WITHIN * values.max())


def level(pre_acts: Float[Tensor, "rows d_sae"], l0: float) -> float:
    """Return the value that `l0` latents of a row exceed on average."""
    n = max(1, int(min(l0, pre_acts.shape[1] / 2) * len(pre_acts)))
    return float(pre_acts.detach().flatten().topk(n, sorted=False).values.amin())
