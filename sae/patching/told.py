"""What is told of patching: the summary that its page reads, and the tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from sae.models import LanguageModel
from sae.patching.config import PatchConfig
from sae.patching.features import PlacedDictionary
from sae.patching.pairs import LeftOut
from sae.patching.states import HOOKS, Places
from sae.patching.study import Found
from sae.patching.table import agreement_of, control_rows, cost_rows, table_of
from sae.text.token_texts import TokenTexts

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True, slots=True)
class Patched:
    """What patching has found."""

    summary: Mapping[str, object]
    table: "pyarrow.Table"
    directions: Mapping[str, Float[Tensor, "layer position d"]]
    """Mean of clean less corrupt activations, by `GROUP.KIND`."""


def told(
    config: PatchConfig,
    places: Places,
    groups: Sequence[Found],
    left_out: Sequence[LeftOut],
    dictionary: PlacedDictionary | None,
) -> Patched:
    """Return the tables and the summary of all groups."""
    directions = {
        f"{number}.{kind}": values
        for number, one in enumerate(groups)
        for kind, values in one.directions.items()
    }
    summary = _summary(config, places, groups, dictionary) | {
        "left_out": [{"pair": one.text.clean, "why": one.why} for one in left_out]
    }
    return Patched(summary, table_of(groups), directions)


def _summary(
    config: PatchConfig,
    places: Places,
    groups: Sequence[Found],
    dictionary: PlacedDictionary | None,
) -> dict[str, object]:
    record = places.model.record
    hooks = {kind: f"blocks.{{layer}}.{HOOKS[kind]}" for kind in config.sites}
    about = None
    if dictionary is not None:
        changes = {str(k): v for one in groups for k, v in one.code_changes.items()}
        about = {
            "name": dictionary.name,
            "hook_name": dictionary.written.hook_name,
            "code_changes": changes,
        }
    return {
        "name": config.name,
        "model": record.hub_id,
        "model_name": record.name,
        "weight_digest": record.weight_digest,
        "hook_names": hooks,
        "n_layers": places.n_layers,
        "n_heads": places.n_heads,
        "frozen": config.frozen if config.receivers else None,
        "groups": [_group(places.model, number, one) for number, one in enumerate(groups)],
        "agreement": agreement_of(groups),
        "controls": control_rows(groups),
        "cost": cost_rows(groups),
        "dictionary": about,
    }


def _group(model: LanguageModel, number: int, found: Found) -> dict[str, object]:
    texts = TokenTexts(model.tokenizer)
    each = [texts.in_context(pair.clean.tolist()) for pair in found.pairs]
    first = found.pairs[0]
    tokens = [
        token if all(one[i] == token for one in each) else f"{token}…"
        for i, token in enumerate(each[0])
    ]
    return {
        "group": number,
        "n_pairs": len(found.pairs),
        "n_exact": found.n_exact,
        "clean": first.text.clean,
        "corrupt": first.text.corrupt,
        "answer": first.text.answer,
        "wrong": first.text.wrong,
        "tokens": tokens,
        "clean_tokens": each[0],
        "corrupt_tokens": texts.in_context(first.corrupt.tolist()),
        "differing": [*first.differing],
        "clean_difference": float(found.clean.mean()),
        "corrupt_difference": float(found.corrupt.mean()),
    }
