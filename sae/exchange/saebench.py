"""SAEBench and sae-probes on our dictionaries.

SAEBench 0.6 takes autoencoders of its own loaders, or any object with the interface of its
`custom_saes/base_sae.py`: `W_enc` (d_in, d_sae), `W_dec` (d_sae, d_in), `b_enc`, `b_dec`,
`cfg`, `device`, `dtype`, `encode`, `decode`, `forward` and `to`. Several of its evaluations
take the rows of `W_dec` for unit vectors without asking. `as_custom_sae` makes such an object:

    from sae_bench.evals.core.main import multiple_evals
    multiple_evals([("mine", as_custom_sae(sae.load(folder)))], ...)

sae-probes 0.4 asks for no more than `encode`, so it takes a `Dictionary` as it is, a transcoder
too: `sae_probes.run_sae_evals(sae=dictionary, hook_name=dictionary.hook_name, ...)`.

Neither package is needed here.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae.base import require
from sae.dictionary import Dictionary, TopK
from sae.dictionary.folding import scaled_by_decoder_norm, with_directions
from sae.exchange.formats.parts import layer_of


@dataclass
class CustomSAEConfig:
    """What SAEBench's evaluations read of `cfg`, by the names of its own class."""

    model_name: str
    """Name of the model in TransformerLens; change it if TransformerLens uses another name."""
    d_in: int
    d_sae: int
    hook_layer: int
    hook_name: str
    context_size: int | None
    prepend_bos: bool
    architecture: str
    """`gated` makes SAEBench read the magnitudes' bias, `b_mag`."""
    training_tokens: int
    dtype: str = "float32"
    device: str = "cpu"
    hook_head_index: int | None = None
    apply_b_dec_to_input: bool = False
    normalize_activations: str = "none"
    model_from_pretrained_kwargs: dict[str, Any] = field(default_factory=dict)
    dataset_path: str = ""
    dataset_trust_remote_code: bool = False
    seqpos_slice: tuple[int | None, ...] = (None,)

    def to_dict(self) -> dict[str, Any]:
        """Return what SAEBench writes beside its results."""
        return asdict(self)


class CustomSAE(nn.Module):
    """A dictionary with unit rows in its decoder, as SAEBench wants one.

    Activations are those of the dictionary times the norms of its decoder's rows, and
    reconstructions are the same. A latent whose row is zero keeps firing, with an activation
    too small to matter.
    """

    W_enc: nn.Parameter
    b_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter
    norms: Tensor
    """(d_sae,): of the dictionary's rows, by which its top-k does not choose."""
    # Asked for at a hook_z, whose heads SAEBench joins by itself.
    hook_z_reshaping_mode = False

    def __init__(self, dictionary: Dictionary, cfg: CustomSAEConfig) -> None:
        super().__init__()
        self.cfg = cfg
        plain = {name: w.detach().float() for name, w in dictionary.tensors.items()}
        directed = with_directions(dictionary.with_weights(plain))
        self.register_buffer("norms", directed.W_dec.norm(dim=-1))
        scaled = scaled_by_decoder_norm(directed)
        self.activation = scaled.activation
        for name, tensor in scaled.tensors.items():
            copy = tensor.clone(memory_format=torch.contiguous_format)
            self.register_parameter(name, nn.Parameter(copy, requires_grad=False))
        self._note()

    @property
    def device(self) -> torch.device:
        """Device that the weights are on."""
        return self.W_enc.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return self.W_enc.dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "CustomSAE":
        # What `to`, `cuda`, `bfloat16` and the others come down to.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._note()
        return self

    def _note(self) -> None:
        """SAEBench asks the configuration for type and device as well."""
        self.cfg.dtype = str(self.dtype).removeprefix("torch.")
        self.cfg.device = str(self.device)

    def encode(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_sae"]:
        """Return the activations of the features."""
        products = x.to(self.dtype) @ self.W_enc
        activation = self.activation
        if isinstance(activation, TopK):
            return self._largest(torch.relu(products + self.b_enc), activation.k)
        # The parameters, which may have moved to another device or type.
        own = {name: getattr(self, name) for name in activation.tensors}
        return activation.with_tensors(own).encode(products, self.b_enc)

    def _largest(self, positive: Tensor, k: int) -> Tensor:
        """Return the k that the dictionary would choose, which has other norms."""
        norms = self.norms.clamp_min(torch.finfo(positive.dtype).tiny)
        chosen = (positive / norms).topk(k, dim=-1, sorted=False).indices
        return torch.zeros_like(positive).scatter(-1, chosen, positive.gather(-1, chosen))

    def decode(self, feature_acts: Float[Tensor, "*rows d_sae"]) -> Float[Tensor, "*rows d_in"]:
        """Return what activations of features add up to."""
        return feature_acts.to(self.dtype) @ self.W_dec + self.b_dec

    def forward(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_in"]:
        """Return the reconstruction of `x`."""
        return self.decode(self.encode(x))

    def turn_off_forward_pass_hook_z_reshaping(self) -> None:
        """Nothing: it is never on."""


def as_custom_sae(dictionary: Dictionary) -> CustomSAE:
    """Return what `selected_saes` of SAEBench's evaluations takes, with a copy of the weights.

    Raises:
        UserError: if it is a transcoder, which SAEBench would put where it reads, normalises
            each row, or does not say its model or, in TransformerLens's words, its hook.
    """
    record, by = dictionary.record, dictionary.reads[0].normalisation
    require(
        by is None,
        "SAEBench decodes activations without their rows, but this dictionary normalises "
        f"each row ({by and by.name}); give a dictionary that reads rows as they are",
    )
    require(
        not dictionary.is_transcoder,
        "SAEBench puts a reconstruction back where it was read, but that of a transcoder "
        "belongs elsewhere; give an autoencoder",
    )
    require(
        record.model_name is not None,
        "the dictionary does not name its model, which SAEBench loads by name; add a "
        "model_name to its metadata",
    )
    hook_name, layer = dictionary.hook_name, layer_of(dictionary)
    require(
        layer is not None and hook_name.startswith("blocks."),
        f"hook_name={hook_name} is not a hook of TransformerLens, which SAEBench needs; "
        "give one such as blocks.6.hook_resid_post",
    )
    assert layer is not None
    training = record.training
    trained = record.others.get("training_architecture") or dictionary.architecture
    config = CustomSAEConfig(
        model_name=dictionary.model_name,
        d_in=dictionary.d_in,
        d_sae=dictionary.d_sae,
        hook_layer=layer,
        hook_name=hook_name,
        context_size=record.context_size,
        prepend_bos=record.prepend_bos is not False,
        architecture=str(trained) if training is None else training.architecture,
        # SAEBench's own word for unknown.
        training_tokens=-100_000 if training is None else training.training_tokens,
    )
    return CustomSAE(dictionary, config)
