"""Patching as a whole: from what is asked for to tables, and what is told of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from sae.base import UserError, progress, require, say
from sae.dictionary import Dictionary
from sae.models import LanguageModel, locate
from sae.models.resume import first_block
from sae.patching.config import PatchConfig
from sae.patching.features import Lens, check_of_model
from sae.patching.pairs import LeftOut, Pair, PairText, drawn, pair_text, read_table, tokenised
from sae.patching.paths import Receiver
from sae.patching.states import HOOKS, Places
from sae.patching.study import Found, Study
from sae.patching.table import agreement_of, control_rows, cost_rows, table_of
from sae.text.token_texts import TokenTexts

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True, slots=True)
class Patched:
    """What patching has found."""

    summary: dict[str, Any]
    table: "pyarrow.Table"
    directions: Mapping[str, Float[Tensor, "layer position d"]]
    """Mean of clean less corrupt activations, by `GROUP.KIND`."""


def pair_texts(config: PatchConfig) -> list[PairText]:
    """Return the pairs that are asked for, words put into slots.

    Raises:
        UserError: if they cannot be read or drawn.
    """
    if config.table is not None:
        texts = read_table(config.table)
    elif config.pairs:
        texts = [pair_text(row, f"pairs[{i}]") for i, row in enumerate(config.pairs)]
    else:
        texts = [PairText(config.clean, config.corrupt, config.answer, config.wrong)]
    return drawn(texts, config.slots, config.n_pairs, config.seed) if config.slots else texts


def patch(
    config: PatchConfig,
    texts: Sequence[PairText],
    model: LanguageModel,
    dictionary: tuple[str, Dictionary] | None,
) -> Patched:
    """Patch pairs, and tell what was found; pairs that cannot be patched are left out.

    Raises:
        UserError: if no pair is left, the model has not all places, or the dictionary is of
            another model.
    """
    groups, left_out = _grouped(model, texts)
    places = Places.of(model, [*config.sites, *(("head", "mlp") if config.receivers else ())])
    receivers = _receivers(config, places)
    lens = None if dictionary is None else _lens(places, *dictionary)
    exact = _shared_out(config, [len(pairs) for pairs in groups])
    found: list[Found] = []
    with progress(_total(config, places, groups, exact), "patch", "prompt") as bar:
        for pairs, n_exact in zip(groups, exact, strict=True):
            study = Study(config, places, lens, receivers, bar.update)
            one, alike = study.of(pairs, n_exact)
            left_out += alike
            found += [one] if one is not None else []
    for pair in left_out:
        say(f"patch: {pair.text.clean!r} is left out: {pair.why}")
    require(bool(found), "no pair is left to patch")
    told = None if lens is None or dictionary is None else (dictionary[0], lens)
    summary = _summary(config, places, found, left_out, told)
    directions = {
        f"{number}.{kind}": values
        for number, one in enumerate(found)
        for kind, values in one.directions.items()
    }
    return Patched(summary, table_of(found), directions)


def _grouped(
    model: LanguageModel, texts: Sequence[PairText]
) -> tuple[list[list[Pair]], list[LeftOut]]:
    """Return pairs whose positions mean the same together, and those that cannot be patched.

    Raises:
        UserError: with a sentence for each pair, if none can.
    """
    groups: dict[object, list[Pair]] = {}
    left_out = []
    for text in texts:
        pair = tokenised(model, text)
        if isinstance(pair, Pair):
            groups.setdefault(pair.shape, []).append(pair)
        else:
            left_out.append(pair)
    if not groups:
        raise UserError(*(f"{one.text.clean!r}: {one.why}" for one in left_out))
    return [*groups.values()], left_out


def _receivers(config: PatchConfig, places: Places) -> tuple[Receiver, ...]:
    found = [Receiver.of(name, places) for name in config.receivers]
    wrong = [one for one in found if isinstance(one, str)]
    if wrong:
        raise UserError(*wrong)
    return tuple(one for one in found if isinstance(one, Receiver))


def _lens(places: Places, name: str, dictionary: Dictionary) -> Lens:
    check_of_model(dictionary, places, name)
    written = locate(places.model.module, dictionary.writes[0].place)
    block = first_block(places.model.module, written)
    # What a block returns is the input of the next one.
    return Lens.of(dictionary, places, block - (written.side == "output" and block > 0))


def _shared_out(config: PatchConfig, sizes: Sequence[int]) -> list[int]:
    """Return how many pairs of each group are patched exactly: one of each in turn."""
    if "exact" not in config.methods:
        return [0] * len(sizes)
    left = sum(sizes) if config.n_exact is None else config.n_exact
    given = [0] * len(sizes)
    while left and given != [*sizes]:
        for i, size in enumerate(sizes):
            if left and given[i] < size:
                given[i], left = given[i] + 1, left - 1
    return given


def _total(
    config: PatchConfig, places: Places, groups: Sequence[Sequence[Pair]], exact: Sequence[int]
) -> int:
    """Return about how many patched prompts are to be run, for the bar."""
    each = 0.0
    for pairs, n in zip(groups, exact, strict=True):
        positions = len(pairs[0].clean) - pairs[0].differing[0]
        kinds = [places.n_heads if kind == "head" else positions for kind in config.sites]
        each += n * places.n_layers * (sum(kinds) + len(config.receivers) * places.n_heads)
    return int(each * len(config.patches))


def _summary(
    config: PatchConfig,
    places: Places,
    groups: Sequence[Found],
    left_out: Sequence[LeftOut],
    dictionary: tuple[str, Lens] | None,
) -> dict[str, Any]:
    record = places.model.record
    hooks = {kind: f"blocks.{{layer}}.{HOOKS[kind]}" for kind in config.sites}
    about = None
    if dictionary is not None:
        name, lens = dictionary
        changes = {str(k): v for one in groups for k, v in one.code_changes.items()}
        about = {"name": name, "hook_name": lens.written.hook_name, "code_changes": changes}
    return {
        "name": config.name,
        "model": record.hub_id,
        "model_name": record.name,
        "weight_digest": record.weight_digest,
        "hook_names": hooks,
        "n_layers": places.n_layers,
        "n_heads": places.n_heads,
        "n_begin": len(places.model.marks.begin),
        "frozen": config.frozen if config.receivers else None,
        "groups": [_group(places.model, number, one) for number, one in enumerate(groups)],
        "left_out": [{"pair": one.text.clean, "why": one.why} for one in left_out],
        "agreement": agreement_of(groups),
        "controls": control_rows(groups),
        "cost": cost_rows(groups),
        "dictionary": about,
    }


def _group(model: LanguageModel, number: int, found: Found) -> dict[str, Any]:
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
