"""How a notebook shows a dictionary: facts, a record a feature, encoder beside decoder."""

import math
from typing import TYPE_CHECKING, Any, Protocol

from jaxtyping import Float
from torch import Tensor, nn

from sae.base.notebook import html_table
from sae.dictionary.activations import Activation
from sae.dictionary.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class _Dictionary(Protocol):
    @property
    def architecture(self) -> str: ...
    @property
    def activation(self) -> Activation: ...
    @property
    def record(self) -> Record: ...
    @property
    def hook_name(self) -> str: ...
    @property
    def hook_name_out(self) -> str: ...
    @property
    def is_transcoder(self) -> bool: ...
    @property
    def d_in(self) -> int: ...
    @property
    def d_sae(self) -> int: ...
    @property
    def d_out(self) -> int: ...
    @property
    def W_enc(self) -> Float[Tensor, "d_in d_sae"]: ...
    @property
    def W_dec(self) -> Float[Tensor, "d_sae d_out"]: ...
    @property
    def b_enc(self) -> Float[Tensor, " d_sae"]: ...


def as_html(dictionary: "_Dictionary") -> str:
    """Return what the dictionary is as a table of facts."""
    numbers = "".join(f", {n} = {v}" for n, v in dictionary.activation.numbers.items())
    facts = [
        ("architecture", f"{dictionary.architecture}{numbers}"),
        ("features", dictionary.d_sae),
        ("reads", dictionary.hook_name),
        ("of the model", dictionary.record.model_name or "not known"),
        ("width", dictionary.d_in),
    ]
    if dictionary.is_transcoder:
        facts.append(("writes", dictionary.hook_name_out))
    return html_table((), facts, title="_Dictionary")


def cosines(dictionary: "_Dictionary") -> "Float[Tensor, ' d_sae'] | None":
    """Return how well each feature's encoder points along its decoder, -1 to 1.

    None for a dictionary whose input and output are of different widths.
    """
    if dictionary.d_in != dictionary.d_out:
        return None
    found: Tensor = nn.functional.cosine_similarity(
        dictionary.W_enc.t().float(), dictionary.W_dec.float(), dim=1
    )
    return found.detach().cpu()


def as_frame(dictionary: "_Dictionary") -> Any:
    """Return a data frame with a record for each feature: norms, bias and the cosine."""
    import pandas

    columns = {
        "encoder_norm": dictionary.W_enc.detach().float().norm(dim=0).cpu().numpy(),
        "encoder_bias": dictionary.b_enc.detach().float().cpu().numpy(),
        "decoder_norm": dictionary.W_dec.detach().float().norm(dim=1).cpu().numpy(),
    }
    along = cosines(dictionary)
    if along is not None:
        columns["encoder_decoder_cosine"] = along.numpy()
    found = pandas.DataFrame(columns)
    found.index.name = "feature"
    return found.reset_index()


def alignment(dictionary: "_Dictionary") -> "Figure":
    """Return a histogram of `cosines`, beside what random directions of the width have."""
    from sae.base import require
    from sae.base.picture import Picture

    along = cosines(dictionary)
    require(
        along is not None,
        f"a transcoder from {dictionary.d_in} to {dictionary.d_out} has no cosine between "
        "encoder and decoder to plot; to_pandas() has the norms",
    )
    assert along is not None
    figure = Picture(6.4, 3.4)
    axes = figure.subplots()
    axes.hist(along.numpy(), bins=60, range=(-1, 1), color="#0b6f6a")
    spread = 2 / math.sqrt(dictionary.d_in)
    words = "two standard deviations of random directions"
    axes.axvspan(-spread, spread, color="#dfe4e2", zorder=0, label=words)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    axes.set_xlabel("cosine between a feature's encoder and its decoder")
    axes.set_ylabel("features")
    return figure
