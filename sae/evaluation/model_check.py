"""Whether a model at hand is the one that a dictionary is of, and how far it is from it.

The same name can stand for other weights: a fine-tune, another precision, weights that were
rounded to four bits and back. Digests tell whether they are others, and a text that is read by
both models tells how much that matters where the dictionary reads.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sae.base import UserError, require
from sae.core.fidelity import ReconstructionStatistics
from sae.dictionary import Dictionary, add_reconstruction
from sae.models import (
    LanguageModel,
    ModelConfig,
    ModelRecord,
    adopted_model,
    load_model,
    locate,
    read_activations,
    recorded_config,
    recorded_model,
)

PROBE = (
    "The harbour was quiet when the ferry came in. Two fishermen, brothers by their looks, "
    "were mending nets beside a stack of blue crates; one of them sang. In 1987 the town had "
    "4,200 people, a school and a cannery. Today the cannery is a museum where visitors learn "
    "how sardines were packed in oil, and why the work ended. If x + 3 = 10, then x = 7. "
    'def area(width, height): return width * height. "Come back before the rain," she said, '
    "and he laughed, because it had been raining since noon."
)
"""The text that both models read."""


@dataclass(frozen=True, slots=True)
class ModelCheck:
    """Comparison of a model with the one that a dictionary was trained on; `print` shows it."""

    recorded: ModelRecord
    found: ModelRecord
    hook_name: str
    n_tokens: int
    """Tokens of the probe text that were compared: special ones, and those whose norm training
    left out, are none."""
    explained_variance: float
    """Explained variance of the dictionary on the given model, over the compared tokens."""
    l0: float
    explained_variance_recorded: float | None = None
    """On the recorded model, read the same way; None where that was not to be had."""
    l0_recorded: float | None = None
    difference: float | None = None
    """‖x − x'‖ / ‖x'‖ over all tokens, of the activations x here and x' of the recorded
    model."""
    floor: float | None = None
    """The same difference between the recorded model and itself, run in the precision of the
    given model."""
    why: str = ""
    """Why there is nothing to compare with."""

    @property
    def same_weights(self) -> bool | None:
        """Whether the weights are the recorded ones; None where their digest is not known."""
        if not self.recorded.weights_known:
            return None
        return self.recorded.weight_digest == self.found.weight_digest

    def __str__(self) -> str:
        """Return the whole check in words, a line for each thing that was found."""
        weights = {
            True: "the weights are the recorded ones",
            False: "the weights are others than the recorded ones",
            None: "which weights were recorded is not known",
        }[self.same_weights]
        if self.same_weights is False and self.recorded.dtype != self.found.dtype:
            weights += ", or only in another precision"
        lines = [
            f"recorded: {_model_line(self.recorded)}",
            f"at hand:  {_model_line(self.found)}",
            weights,
            f"at {self.hook_name}, on {self.n_tokens} tokens of a probe text:",
            f"  explained variance {self.explained_variance:.4f}"
            + _beside(self.explained_variance_recorded, ".4f"),
            f"  L0 {self.l0:.1f}" + _beside(self.l0_recorded, ".1f"),
        ]
        if self.difference is not None and self.floor is not None:
            lines.append(
                f"  the activations differ by {self.difference:.3%} of their norm; "
                f"{self.floor:.3%} is what the precision ({self.found.dtype}) alone makes"
            )
        if self.why:
            lines.append(f"  nothing to compare with: {self.why}")
        return "\n".join(lines)


def check_model(
    dictionary: Dictionary, model: str | ModelConfig | nn.Module, device: str = "auto"
) -> ModelCheck:
    """Compare a model with the one that a dictionary's activations were read from.

    The digests of both models are compared, and both read a short text at the hook that the
    dictionary reads. The recorded model is loaded for that. If it is not available, the
    dictionary is measured on the given model alone.

    Args:
        model: its name or configuration, or the loaded module of `transformers`.
        device: where models are loaded to.

    Raises:
        UserError: if the dictionary does not name its model, if there is no such model, or if
            its tokenizer or its activations are of another kind.
    """
    recorded = dictionary.record.model
    if recorded is None:
        raise UserError(
            f"the dictionary names its model, {dictionary.model_name}, but not the digest "
            "of its weights; only dictionaries that were trained or imported here have it"
        )
    at_hand = _loaded(model, recorded, device)
    try:
        original, why = recorded_model(recorded, str(at_hand.device)), ""
    except UserError as error:
        original, why = None, str(error)
    # Both read the very tokens that stood around texts when the dictionary was trained.
    if recorded.begin is not None and recorded.end is not None:
        marks = replace(at_hand.marks, begin=recorded.begin, end=recorded.end)
        at_hand = replace(at_hand, marks=marks)
    tokens = torch.from_numpy(at_hand.document_ids(PROBE)).long()
    special = at_hand.special_token_ids
    if original is not None:
        theirs = torch.from_numpy(original.document_ids(PROBE)).long()
        require(
            torch.equal(tokens, theirs),
            f"{at_hand.record.name} splits a text into other tokens than {recorded.name}, "
            "so their activations cannot be compared; give a model with the same tokenizer",
        )
        special = original.special_token_ids
    text = ~torch.isin(tokens, torch.tensor(special))
    x, y = _read(dictionary, at_hand, tokens, text)
    keep = _kept(dictionary, x)
    fit = _fit(dictionary, x, y, keep)
    n_tokens, hook_name = int(keep.sum()), dictionary.hook_name
    found = ModelCheck(recorded, at_hand.record, hook_name, n_tokens, *fit, why=why)
    if original is None:
        return found
    x0, y0 = _read(dictionary, original, tokens, text)
    again, _ = _read(dictionary, _in_precision(original, at_hand), tokens, text)
    variance, l0 = _fit(dictionary, x0, y0, keep)
    return replace(
        found,
        explained_variance_recorded=variance,
        l0_recorded=l0,
        difference=_difference(x, x0, keep),
        floor=_difference(again, x0, keep),
    )


def _in_precision(original: LanguageModel, like: LanguageModel) -> LanguageModel:
    """Return the recorded model in the precision of another."""
    if original.record.dtype == like.record.dtype:
        return original
    config = recorded_config(original.record, str(like.device))
    return load_model(replace(config, dtype=like.record.dtype))


def _loaded(
    model: str | ModelConfig | nn.Module, recorded: ModelRecord, device: str
) -> LanguageModel:
    if isinstance(model, nn.Module):
        return adopted_model(model, recorded)
    return load_model(
        ModelConfig(name=model, device=device) if isinstance(model, str) else model
    )


Rows = Float[Tensor, "token d_in"]


def _read(
    dictionary: Dictionary,
    model: LanguageModel,
    tokens: Int[Tensor, " position"],
    text: Bool[Tensor, " position"],
) -> tuple[Rows, Rows]:
    """Return what the dictionary reads and what it is to reconstruct at each token of text."""
    points = [
        locate(model.module, port.place) for port in (dictionary.reads[0], dictionary.writes[0])
    ]
    seen = read_activations(
        model.module,
        [*{p.hook_name: p for p in points}.values()],
        tokens[None].to(model.device),
    )
    x, y = (seen[point.hook_name][0].float().cpu()[text] for point in points)
    require(
        x.shape[1] == dictionary.d_in,
        f"{model.record.name} is {x.shape[1]} wide at {dictionary.hook_name}, but the "
        f"dictionary is {dictionary.d_in} wide; give the model that it was trained on",
    )
    return x, y


def _kept(dictionary: Dictionary, x: Rows) -> Bool[Tensor, " token"]:
    limit, norms = dictionary.record.max_norm_multiple, torch.linalg.vector_norm(x, dim=1)
    highest = torch.inf if limit is None else limit * norms.median()
    kept: Bool[Tensor, " token"] = norms <= highest
    return kept


def _fit(
    dictionary: Dictionary, x: Rows, y: Rows, keep: Bool[Tensor, " token"]
) -> tuple[float, float]:
    on_cpu = dictionary.to("cpu")
    statistics = ReconstructionStatistics(dictionary.d_out, dictionary.d_sae)
    add_reconstruction(statistics, on_cpu, x[keep], y[keep])
    metrics = statistics.metrics()
    return metrics["explained_variance"], metrics["l0"]


def _difference(x: Rows, x0: Rows, keep: Bool[Tensor, " token"]) -> float:
    x, x0 = x[keep].double(), x0[keep].double()
    return float((x - x0).norm() / x0.norm())


def _model_line(model: ModelRecord) -> str:
    origin = "" if model.origin is None else f", {model.origin}"
    return f"{model.hub_id} in {model.dtype}, weights {model.weight_digest}{origin}"


def _beside(value: float | None, form: str) -> str:
    return "" if value is None else f" (on the recorded model {value:{form}})"
