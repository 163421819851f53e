"""A trained dictionary: weights, how to encode and decode with them, where they belong."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.base import UNKNOWN, digest_bytes, require
from sae.core.select import Active
from sae.core.sparse import decode_on
from sae.dictionary.activations import Activation, ReLU, TopK
from sae.dictionary.normalisation import Normalisation
from sae.dictionary.record import Record
from sae.dictionary.shown import alignment, as_frame, as_html
from sae.models.site import Site

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Place = Site | str
"""Where activations are: a site, or only the name of a hook, as in files of other tools."""
CODER = ("W_enc", "b_enc", "W_dec", "b_dec")
"""The tensors that every dictionary has."""
SHAPES = {
    "W_enc": ("d_in", "d_sae"),
    "W_dec": ("d_sae", "d_out"),
    "b_dec": ("d_out",),
    "W_skip": ("d_out", "d_in"),
}
"""Names of the dimensions of tensors; any other tensor has a number for each latent."""


@dataclass(frozen=True, slots=True)
class Port:
    """One place that a dictionary reads or writes, with a direction for each latent."""

    place: Place
    W: Float[Tensor, "d_sae d"]
    """Row j is what latent j reads of the activations, or adds to them where it is one."""
    b: Float[Tensor, " d"] | None = None
    """What is added to the activations besides; None of a place that is read."""
    normalisation: Normalisation | None = None
    """What is done to each row that is read, or undone in what is written of it."""

    @property
    def hook_name(self) -> str:
        """Name of the hook; "unknown" where nothing says it."""
        return self.place.hook_name if isinstance(self.place, Site) else self.place

    @property
    def site(self) -> Site | None:
        """The place in the model, if it was looked up in one."""
        return self.place if isinstance(self.place, Site) else None


@dataclass(frozen=True, slots=True)
class Dictionary:
    """A trained sparse autoencoder or transcoder, which reads raw activations of one model.

    Scales, centring and norms of the training are folded into the weights, except for a
    normalisation of each single row. An autoencoder reconstructs what it reads, and a
    transcoder reads one place and reconstructs another. `Dictionary.from_weights` makes one
    from tensors.
    """

    reads: tuple[Port, ...]
    """What is encoded; one place today."""
    writes: tuple[Port, ...]
    """What is reconstructed; one place today."""
    b_enc: Float[Tensor, " d_sae"]
    activation: Activation = field(default_factory=ReLU)
    """What makes its latents active."""
    record: Record = field(default_factory=Record)
    """Where the dictionary comes from: its model, text and training."""
    W_skip: Float[Tensor, "d_out d_in"] | None = None
    """`x @ W_skip.T` is added to the reconstruction of `x`."""

    def __post_init__(self) -> None:
        require(
            len(self.reads) == len(self.writes) == 1,
            "a dictionary reads exactly one place and writes exactly one, not "
            f"{len(self.reads)} and {len(self.writes)}",
        )
        (d_in, d_sae), d_out = self.W_enc.shape, self.W_dec.shape[-1]
        sizes = {"d_in": d_in, "d_sae": d_sae, "d_out": d_out}
        for name, tensor in self.tensors.items():
            found = tuple(tensor.shape)
            expected = tuple(sizes[key] for key in SHAPES.get(name, ("d_sae",)))
            require(
                found == expected,
                f"{name} has shape {found} instead of {expected}, which would fit W_enc "
                f"{(d_in, d_sae)} and W_dec {tuple(self.W_dec.shape)}",
            )
        self.activation.check(d_sae)

    @classmethod
    def from_weights(
        cls,
        W_enc: Float[Tensor, "d_in d_sae"],
        b_enc: Float[Tensor, " d_sae"],
        W_dec: Float[Tensor, "d_sae d_out"],
        b_dec: Float[Tensor, " d_out"],
        activation: Activation | None = None,
    ) -> "Dictionary":
        """Return a dictionary of these weights, of which nothing else is known yet.

        `placed` says where it belongs, and `dataclasses.replace` adds a record or `W_skip`.

        Args:
            activation: what makes latents active; `ReLU()` if left out.

        Raises:
            UserError: if the shapes do not fit each other.
        """
        read, write = Port(UNKNOWN, W_enc.t()), Port(UNKNOWN, W_dec, b_dec)
        return cls((read,), (write,), b_enc, activation or ReLU())

    def __repr__(self) -> str:
        """One line: the architecture, the sizes, and where it belongs as far as it says."""
        numbers = "".join(f", {name}={n}" for name, n in self.activation.numbers.items())
        sizes = f"{self.d_in} to {self.d_sae} latents"
        sizes += "" if self.d_out == self.d_in else f" to {self.d_out}"
        hook = "?" if self.hook_name == UNKNOWN else self.hook_name
        model = self.record.model_name or "?"
        return f"Dictionary({self.architecture}{numbers}, {sizes}, {hook} of {model})"

    def _repr_html_(self) -> str:
        """Return its facts as a table, for notebooks."""
        return as_html(self)

    def to_pandas(self) -> Any:
        """Return a data frame with a record for each feature: norms, bias, and the cosine."""
        return as_frame(self)

    def plot(self) -> "Figure":
        """Return a histogram of how well each feature's encoder points along its decoder."""
        return alignment(self)

    @property
    def W_enc(self) -> Float[Tensor, "d_in d_sae"]:
        """Encoder weights, (d_in, d_sae): `x @ W_enc + b_enc` are pre-activations of `x`."""
        return self.reads[0].W.t()

    @property
    def W_dec(self) -> Float[Tensor, "d_sae d_out"]:
        """Decoder directions, (d_sae, d_out): a latent adds its row times its activation."""
        return self.writes[0].W

    @property
    def b_dec(self) -> Float[Tensor, " d_out"]:
        """Decoder bias, shape (d_out,), which is added to every reconstruction."""
        bias = self.writes[0].b
        assert bias is not None
        return bias

    @property
    def architecture(self) -> str:
        """SAELens's word for the activation: `standard`, `jumprelu`, `topk`, `gated`, ..."""
        return self.activation.name

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The weights that it has, by name, in an order that never changes."""
        found = {name: getattr(self, name) for name in CODER} | self.activation.tensors
        return found if self.W_skip is None else found | {"W_skip": self.W_skip}

    @property
    def d_in(self) -> int:
        """Width of the activations that it reads."""
        return self.reads[0].W.shape[1]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.reads[0].W.shape[0]

    @property
    def d_out(self) -> int:
        """Width of the activations that it reconstructs."""
        return self.writes[0].W.shape[1]

    @property
    def digest(self) -> str:
        """Identifies the weights: what was measured on one dictionary holds for no other."""
        parts = [w.detach().cpu().contiguous().numpy().tobytes() for w in self.tensors.values()]
        if self.architecture != "standard" or self.W_skip is not None:
            # The bytes alone do not tell a topk from a standard one.
            numbers = self.activation.numbers
            others = [numbers[name] for name in sorted(numbers) if name != "k"]
            about = [self.architecture, numbers.get("k"), list(self.tensors), *others]
            parts.append(json.dumps(about).encode())
        names = [port.normalisation and port.normalisation.name for port in self.ports]
        if any(names):
            parts.append(json.dumps(names).encode())
        return digest_bytes(parts)

    @property
    def ports(self) -> tuple[Port, ...]:
        """All places that it reads, then those that it writes."""
        return self.reads + self.writes

    @property
    def hook_name(self) -> str:
        """The hook that it reads; "unknown" where nothing says it."""
        return self.reads[0].hook_name

    @property
    def hook_name_out(self) -> str:
        """The hook that it reconstructs; of an autoencoder the one that it reads."""
        return self.writes[0].hook_name

    @property
    def hook_names(self) -> tuple[str, str]:
        """The hooks that it reads and reconstructs."""
        return self.hook_name, self.hook_name_out

    @property
    def is_transcoder(self) -> bool:
        """Whether it reconstructs something else than it reads.

        By its weights, by its hooks, or because its file says so and not to which hook.
        """
        if self.W_skip is not None or self.d_in != self.d_out:
            return True
        return self.hook_name != self.hook_name_out or self.record.transcoder

    @property
    def model_name(self) -> str:
        """The model that it was trained on, as others know it, or "unknown"."""
        return self.record.model_name or UNKNOWN

    def with_weights(
        self, weights: Mapping[str, Tensor], activation: Activation | None = None
    ) -> "Dictionary":
        """Return the dictionary with other tensors in the place of some, named as in `tensors`.

        Args:
            activation: what takes the place of its activation, before tensors of `weights` do.

        Raises:
            UserError: if the shapes do not fit each other.
        """
        (read,), (write,) = self.reads, self.writes
        new = {**self.tensors, **weights}
        return replace(
            self,
            reads=(replace(read, W=new["W_enc"].t()),),
            writes=(replace(write, W=new["W_dec"], b=new["b_dec"]),),
            b_enc=new["b_enc"],
            activation=(activation or self.activation).with_tensors(weights),
            W_skip=new.get("W_skip"),
        )

    def placed(self, read_at: Place, write_at: Place | None = None) -> "Dictionary":
        """Return the dictionary at other places: those that it reads and reconstructs."""
        (read,), (write,) = self.reads, self.writes
        output = read_at if write_at is None else write_at
        return replace(
            self, reads=(replace(read, place=read_at),), writes=(replace(write, place=output),)
        )

    def normalised(self, by: Normalisation | None) -> "Dictionary":
        """Return the dictionary reading rows so, and undoing it if it writes where it reads.

        What a transcoder reconstructs has a length of its own, which nobody knows beforehand.
        """
        (read,), (write,) = self.reads, self.writes
        back = None if self.is_transcoder else by
        return replace(
            self,
            reads=(replace(read, normalisation=by),),
            writes=(replace(write, normalisation=back),),
        )

    def to(self, device: torch.device | str) -> "Dictionary":
        """Return the dictionary with its weights on `device`, ready to encode many rows.

        What a latent reads then lies side by side in memory, as `encode_sparse` wants it.
        """
        weights = {name: w.to(device) for name, w in self.tensors.items()}
        weights["W_enc"] = weights["W_enc"].t().contiguous().t()
        return self.with_weights(weights)

    def of_latents(self, kept: Int[Tensor, " kept"]) -> "Dictionary":
        """Return the dictionary of some latents, in the order given; at least one.

        Where the others never fire it encodes and reconstructs the same.
        """
        if len(kept) == self.d_sae and bool((kept.diff() == 1).all()):
            return self
        weights = {
            "W_enc": self.W_enc[:, kept],
            "W_dec": self.W_dec[kept],
            "b_enc": self.b_enc[kept],
        }
        return self.with_weights(weights, self.activation.of_latents(kept))

    def with_k(self, k: int) -> "Dictionary":
        """Return a topk dictionary with another number of active latents.

        Any k can be chosen, but how well the dictionary reconstructs with it depends on the
        training. `sae=hierarchical_topk` trains for every k up to its own.

        Raises:
            UserError: if the dictionary is not a TopK dictionary, or has fewer latents than
                `k`.
        """
        require(
            isinstance(self.activation, TopK),
            f"k={k} has an effect only on TopK dictionaries, where the k largest latents "
            f"are active; this one is {self.architecture}, so leave out k",
        )
        activation = TopK(k)
        activation.check(self.d_sae)
        return replace(self, activation=activation)

    def encode(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_sae"]:
        """Return the feature activations of raw activations `x`; they are never negative.

        `x` may have any floating-point type, and the result is computed in the type of the
        weights.
        """
        return self.activation.encode(self._read(x) @ self.W_enc, self.b_enc)

    def encode_sparse(self, x: Float[Tensor, "rows d_in"]) -> Active:
        """Return the active entries of `encode(x)` and nothing else, equal up to rounding.

        The values are the activations, in the order of the rows. If latents with equal
        activations compete for the last of the k places, the first of them are taken, while
        `encode` leaves the choice to torch.
        """
        return self.activation.select(self._read(x), self.W_enc.t(), self.b_enc)

    def decode(self, feature_acts: Float[Tensor, "... d_sae"]) -> Float[Tensor, "... d_out"]:
        """Return the reconstruction that feature activations add up to.

        Raises:
            UserError: if the reconstruction also depends on the row that they were computed
                from.
        """
        undone = self.writes[0].normalisation
        require(
            undone is None,
            "this dictionary scales each row by its own norm, so the reconstruction "
            "depends on the row; give the row as well: reconstruct(x, feature_acts)",
        )
        return self._decoded(feature_acts)

    def reconstruct(
        self, x: Float[Tensor, "... d_in"], feature_acts: Float[Tensor, "... d_sae"]
    ) -> Float[Tensor, "... d_out"]:
        """Return the reconstruction, from feature activations that were computed from `x`."""
        return self._completed(x, self._decoded(feature_acts))

    def reconstruct_sparse(
        self, x: Float[Tensor, "rows d_in"], active: Active
    ) -> Float[Tensor, "rows d_out"]:
        """Return the reconstruction, from what `encode_sparse` found in `x`."""
        decoded = decode_on(active.support, active.values, self.W_dec) + self.b_dec
        return self._completed(x, decoded)

    def __call__(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        """Return the reconstruction of what `encode` finds in raw activations `x`."""
        return self.reconstruct(x, self.encode(x))

    def _read(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_in"]:
        x, normalisation = self._cast(x, self.d_in, "d_in"), self.reads[0].normalisation
        return x if normalisation is None else normalisation.read(x)

    def _completed(
        self, x: Float[Tensor, "... d_in"], decoded: Float[Tensor, "... d_out"]
    ) -> Float[Tensor, "... d_out"]:
        """Undo what was done to each row, and add the skip connection."""
        x, undone = self._cast(x, self.d_in, "d_in"), self.writes[0].normalisation
        if undone is not None:
            decoded = undone.undo(decoded, x)
        return decoded if self.W_skip is None else decoded + x @ self.W_skip.t()

    def _decoded(self, feature_acts: Float[Tensor, "... d_sae"]) -> Float[Tensor, "... d_out"]:
        return self._cast(feature_acts, self.d_sae, "d_sae") @ self.W_dec + self.b_dec

    def _cast(self, given: Tensor, width: int, name: str) -> Tensor:
        """Return what is given in the type of the weights, if it can be computed with."""
        require(
            given.layout == torch.strided,
            f"a sparse tensor of shape {tuple(given.shape)} was given; make it dense with "
            "to_dense()",
        )
        require(
            given.dim() > 0 and given.shape[-1] == width,
            f"a tensor of shape {tuple(given.shape)} was given, but its last dimension must "
            f"be {name}={width}",
        )
        return given.to(self.W_enc.dtype)
