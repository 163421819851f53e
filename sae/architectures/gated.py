"""Gated autoencoder: whether a latent is active, and how strongly, are told apart.

`π = W_enc x + b_gate` opens the gate where it is positive; the activation there is
`relu(exp(r_mag) W_enc x + b_mag)`. Loss: `‖x − x̂‖² + λ Σ relu(π) + ‖x − x̂(relu(π))‖²`, the last
through a decoder that takes no gradient from it (Rajamanoharan et al., arXiv 2404.16014). Both
penalties act where the gate is open and nowhere else, so one product with the encoder is all
that is dense.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sae.architectures.base import TrainableSAE, TrainingStep, level
from sae.architectures.standard import INITIAL_L0, PenalisedConfig, start_sparse
from sae.core.scaling import InputScaling
from sae.core.select import Above
from sae.core.sparse import encode_on, reconstruct_on
from sae.dictionary import Activation, Dictionary, Gated


class GatedSAE(TrainableSAE):
    """`b_enc` is the gate's bias; decoder rows have norm one, as in the paper."""

    unit_norm_decoder = True
    config: "GatedConfig"

    def prepare(self, sample: Float[Tensor, "rows d_in"]) -> None:
        self.coefficient = self.config.coefficient()
        start_sparse(self, sample)
        self.b_mag = nn.Parameter(self.b_enc.detach().clone())
        self.r_mag = nn.Parameter(torch.zeros_like(self.b_enc))

    def activation(
        self, pre_acts: Float[Tensor, "batch d_sae"]
    ) -> Float[Tensor, "batch d_sae"]:
        return torch.relu(pre_acts - level(pre_acts, INITIAL_L0))

    def step(
        self,
        x: Float[Tensor, "batch d_in"],
        y: Float[Tensor, "batch d_out"],
        progress: float,
        dead: Bool[Tensor, " d_sae"],
    ) -> TrainingStep:
        encoder, target = self.encoder(), self.target(x, y)
        (active,) = self.select(x, encoder, Above(torch.zeros_like(self.b_enc)))
        support, columns = active.support, active.support.columns
        gates = encode_on(support, active.values, x, encoder, self.b_enc)
        read = gates - self.b_enc.index_select(0, columns)
        scales = self.r_mag.exp().index_select(0, columns)
        values = torch.relu(scales * read + self.b_mag.index_select(0, columns))
        main = reconstruct_on(support, values, self.W_dec, target)
        frozen = reconstruct_on(support, gates, self.W_dec.detach(), target.detach())
        coefficient = self.coefficient.at(progress)
        l1 = coefficient * gates.sum() / len(x)
        # A gate may be open on a magnitude of zero; only what the decoder sees is active.
        open_and_active = values.detach() > 0
        fired = torch.zeros_like(support.column_ends[1:]).index_add_(
            0, columns, open_and_active.int()
        )
        self.coefficient.observe(float(open_and_active.sum()) / len(x), progress)
        losses: dict[str, Tensor | float] = {
            "losses/l1_loss": l1.detach(),
            "losses/auxiliary_reconstruction_loss": frozen.loss.detach(),
            "details/l1_coefficient": coefficient,
        }
        return TrainingStep(main.loss + l1 + frozen.loss, main.mse[-1], losses, fired)

    def trained_activation(
        self, gains: Float[Tensor, " d_sae"], b_enc: Float[Tensor, " d_sae"]
    ) -> Activation:
        # The magnitude reads `W_enc x` without the gate's bias: it folds the mean by itself.
        moved = b_enc - self.b_enc.detach() * gains
        b_mag = self.b_mag.detach() * gains + self.r_mag.detach().exp() * moved
        return Gated(b_mag.float(), self.r_mag.detach().float().clone())

    def take_activation(
        self, dictionary: Dictionary, gains: Float[Tensor, " d_sae"], scaling: InputScaling
    ) -> None:
        gated = dictionary.activation
        assert isinstance(gated, Gated)
        # The norms scale the gate's path too, whose own loss decodes by the same rows.
        _, moved = scaling.unfold_encoder(dictionary.W_enc, torch.zeros_like(gated.b_mag))
        self.b_mag.copy_((gated.b_mag + gated.r_mag.exp() * moved) * gains)
        self.r_mag.copy_(gated.r_mag)


@dataclass(frozen=True, kw_only=True)
class GatedConfig(PenalisedConfig):
    """Gated autoencoder with an L1 penalty on its gates (SAELens's `gated`)."""

    architecture: ClassVar[str] = "gated"
    saved_as: ClassVar[type[Activation]] = Gated
    autoencoder: ClassVar[type[TrainableSAE]] = GatedSAE
