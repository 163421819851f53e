"""Patching as a whole: from the pairs that are asked for to what is told of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from sae.base import UserError, progress, require, say
from sae.dictionary import Dictionary
from sae.models import LanguageModel
from sae.patching.config import PatchConfig
from sae.patching.features import PlacedDictionary
from sae.patching.pairs import LeftOut, Pair, PairText, tokenised
from sae.patching.paths import Receiver
from sae.patching.states import Places
from sae.patching.study import Found, Study
from sae.patching.told import Patched, told


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be patched in a model, and which pairs cannot be."""

    places: Places
    groups: list[list[Pair]]
    """Pairs whose positions mean the same."""
    left_out: list[LeftOut]
    receivers: tuple[Receiver, ...]
    dictionary: PlacedDictionary | None


def planned(
    config: PatchConfig,
    texts: Sequence[PairText],
    model: LanguageModel,
    dictionary: tuple[str, Dictionary] | None,
) -> Plan:
    """Return what is to be patched.

    Raises:
        UserError: if no pair can be, the model has not all places, or the dictionary is of
            another model.
    """
    groups, left_out = _grouped(model, texts)
    places = Places.of(model, [*config.sites, *(("head", "mlp") if config.receivers else ())])
    receivers = _receivers(config, places)
    placed = None if dictionary is None else PlacedDictionary.of(*dictionary, places)
    return Plan(places, groups, left_out, receivers, placed)


def patch(config: PatchConfig, plan: Plan) -> Patched:
    """Patch pairs, and tell what was found.

    Raises:
        UserError: if the model tells the prompts of no pair apart.
    """
    places, groups, placed = plan.places, plan.groups, plan.dictionary
    left_out = [*plan.left_out]
    exact = _shared_out(config, [len(pairs) for pairs in groups])
    found: list[Found] = []
    with progress(_total(config, places, groups, exact), "patch", "prompt") as bar:
        for pairs, n_exact in zip(groups, exact, strict=True):
            study = Study(config, places, placed, plan.receivers, bar.update)
            one, alike = study.of(pairs, n_exact)
            left_out += alike
            found += [one] if one is not None else []
    for pair in left_out:
        say(f"patch: {pair.text.clean!r} is left out: {pair.why}")
    require(bool(found), "no pair is left that can be patched")
    return told(config, places, found, left_out, placed)


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
