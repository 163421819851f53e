"""Attribution: the effects of all cells at once, estimated from gradients.

What a patch does is estimated as the change of the activations times the gradient of the
metric: of the run that is patched (`plain`, Nanda 2023, "Attribution patching"), of its
linearised pass (`relp`, see `sae.models.linearised`), or the mean of gradients between both
prompts' embeddings (`ig`: Hanna et al. 2024, "Have faith in faithfulness", arXiv 2403.17806, at
midpoints, which for the same cost are far closer to the integral than left ends).
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from sae.edits import ALL, Edit, Put, edited
from sae.edits.copies import last_logits
from sae.models import Site
from sae.models.calls import hooked
from sae.models.linearised import linearised
from sae.patching.config import PatchConfig
from sae.patching.states import Places, States, Values

Gradients = Mapping[str, Float[Tensor, "prompt position d"]]


def gradients(
    places: Places,
    base: States,
    source: States,
    sites: Sequence[Site],
    method: str,
    config: PatchConfig,
) -> Gradients:
    """Return gradients of the metric at some sites, by hook name.

    Prompts go through the model in parts, as gradients of many need much memory.

    Args:
        base: of the run that is patched.
        source: of the run whose activations go in.
        method: `plain`, `relp` or `ig`.
        config: says how many points `ig` takes gradients at, and how large parts are.

    Raises:
        UserError: for `relp`, if the model cannot be linearised.
    """
    parts = []
    for which in torch.split(torch.arange(len(base.tokens)), config.batch_size):
        some = base.of(which), source.of(which)
        parts.append(_gradients(places, *some, sites, method, config.ig_steps))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _gradients(
    places: Places,
    base: States,
    source: States,
    sites: Sequence[Site],
    method: str,
    steps: int,
) -> Gradients:
    start, end = base.streams[0], source.streams[0]
    if method != "ig":
        context = linearised(places.model.module) if method == "relp" else nullcontext()
        return _at(places, base, start, sites, context)
    total: dict[str, Tensor] = {}
    for step in range(steps):
        between = start + (step + 0.5) / steps * (end - start)
        for name, gradient in _at(places, base, between, sites, nullcontext()).items():
            total[name] = total.get(name, 0) + gradient / steps
    return total


def _at(
    places: Places,
    base: States,
    embeddings: Values,
    sites: Sequence[Site],
    context: AbstractContextManager[None],
) -> Gradients:
    """Return the gradients of one pass on embeddings of our own."""
    module, seen = places.model.module, dict[str, Tensor]()
    leaf = embeddings.clone().requires_grad_()
    with torch.enable_grad(), ExitStack() as inside:
        inside.enter_context(context)
        inside.enter_context(edited(module, [Edit(places.first, Put(leaf), ALL)]))
        for site in sites:
            inside.enter_context(hooked(module, site, partial(_keep, seen, site.hook_name)))
        metric = base.answers.difference(last_logits(module, base.tokens, 1))
        found = torch.autograd.grad(
            metric.sum(), [*seen.values()], allow_unused=True, materialize_grads=True
        )
    return dict(zip(seen, found, strict=True))


def _keep(seen: dict[str, Tensor], name: str, x: Tensor) -> None:
    seen[name] = x
