"""What of each token is probed: activations, features, and features of a random dictionary."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from sae.base import require
from sae.core.nulls import random_directions
from sae.dictionary import Dictionary, TopK
from sae.models import LanguageModel, Site, find_site, list_sites
from sae.models.probe import quietly
from sae.probing.config import ALL, ProbeConfig
from sae.rows.pooled import Reading, TokenizedText, token_batches

RAW, FEATURES, RANDOM = "raw", "features", "random_decoder"
_SAMPLE_TEXTS = 64


def wanted_sites(module: nn.Module, config: ProbeConfig) -> list[Site]:
    """Return the sites that are asked for, in the model's order; it needs no weights.

    Those that have no TransformerLens name come first.

    Raises:
        UserError: if the model has no such place, or no blocks where all are asked for.
    """
    if config.hooks == [ALL]:
        ends = "hook_resid_post"
        found = [site for site in list_sites(module) if site.hook_name.endswith(ends)]
        require(
            bool(found),
            f"hooks=all, and {type(module).__name__} has no blocks with a {ends}; name places "
            "with hooks=[...] (sae harvest --list-hooks lists them)",
        )
        return found
    order = [site.hook_name for site in list_sites(module)]
    found = [find_site(module, name) for name in config.hooks]
    known = {name: i for i, name in enumerate(order)}
    return sorted(found, key=lambda site: known.get(site.hook_name, -1))


def dictionary_site(
    module: nn.Module, name: str, dictionary: Dictionary, sites: Sequence[Site]
) -> Site:
    """Return where the features of a dictionary are probed: at the hook that it reads.

    Raises:
        UserError: if the model has no such hook, or it is none of those that are asked for.
    """
    hook = dictionary.hook_name
    require(
        hook in [site.hook_name for site in sites],
        f"dictionary={name} reads {hook}, which is not among the given hooks; give "
        f"hooks=[{hook}] or leave hooks out",
    )
    return find_site(module, hook)


@dataclass(frozen=True, slots=True)
class Control:
    """The dictionary of random directions beside a trained one."""

    dictionary: Dictionary
    l0: float
    """Mean number of active features of the trained one, on tokens of the first task."""


def random_control(
    dictionary: Dictionary,
    model: LanguageModel,
    site: Site,
    texts: Sequence[TokenizedText],
    seed: int,
) -> Control:
    """Return a dictionary of the same shape with random directions, as sparse as the other.

    Its encoder is its decoder, on activations less their mean, and TopK keeps as many features
    of a token as the trained one has active on average: nothing of it was trained.
    """
    rows, active, n = [], 0, 0
    with quietly(model.module, model.device):
        for batch in token_batches(model, texts[:_SAMPLE_TEXTS], [site]):
            own = batch.at[site.hook_name][batch.own].float()
            rows.append(own.mean(0) * len(own))
            active += int((dictionary.encode(own) > 0).sum())
            n += len(own)
    l0, mean = active / n, (torch.stack(rows).sum(0) / n).cpu()
    directions = random_directions(dictionary.d_sae, dictionary.d_in, seed)
    made = Dictionary.from_weights(
        W_enc=directions.t().contiguous(),
        b_enc=-(directions @ mean),
        W_dec=directions,
        b_dec=mean,
        activation=TopK(max(1, round(l0))),
    )
    return Control(made, l0)


def readings_of(
    sites: Sequence[Site],
    at: Site | None,
    dictionary: Dictionary | None,
    control: Control | None,
    device: torch.device,
) -> list[Reading]:
    """Return all that is read of a token: activations everywhere, features where there are."""
    found = [Reading(RAW, site) for site in sites]
    if at is not None and dictionary is not None and control is not None:
        for name, one in ((FEATURES, dictionary), (RANDOM, control.dictionary)):
            found.append(Reading(name, at, one.to(device).encode, one.digest))
    return found
