"""Prompts of ids alone for random models, and what patching reads of a run on them."""

from types import SimpleNamespace

import torch
from support.families import MODELS, random_model
from torch import nn

from sae.models import ModelRecord
from sae.patching.pairs import Pair, PairText
from sae.patching.states import Places, both_states

KINDS = ("residual", "attention", "mlp", "head")
CAUSAL = [family for family in MODELS if family != "bert"]


def places_of(module, kinds=KINDS):
    record = ModelRecord("random", "random")
    found = SimpleNamespace(module=module, device=torch.device("cpu"), record=record)
    return Places.of(found, kinds)


def pair(clean, corrupt, answer=3, wrong=4):
    ids = (torch.tensor(one) for one in (clean, corrupt))
    return Pair(PairText("clean", "corrupt", " a", " b"), *ids, answer, wrong)


def random_pairs(n=2, length=7, seed=0):
    """Prompts that differ at the positions 2 and 4."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for i in range(n):
        clean = torch.randint(5, 390, (length,), generator=draw).tolist()
        corrupt = [*clean]
        corrupt[2], corrupt[4] = (clean[2] + 7) % 390 + 2, (clean[4] + 11) % 390 + 2
        found.append(pair(clean, corrupt, 3 + i, 40 + i))
    return found


def states(places, pairs, kinds=KINDS):
    sites = [places.site(kind, layer) for kind in kinds for layer in range(places.n_layers)]
    return both_states(places, pairs, sites)


def linear_model(activation="linear", **changes):
    """GPT-2 without norms: for a single token attention does nothing that is not linear."""
    sizes = {**MODELS["gpt2"][1], "activation_function": activation, **changes}
    module = random_model("GPT2LMHeadModel", sizes)
    for block in module.transformer.h:
        block.ln_1 = block.ln_2 = nn.Identity()
    module.transformer.ln_f = nn.Identity()
    return module
