"""Attention probes of a task at each hook, whose tokens are in memory while they are fitted."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from sae.base import require
from sae.classifiers import score
from sae.models import LanguageModel, Site, quietly
from sae.probing.attention import TokenRows, fit_attention
from sae.probing.config import ATTENTION
from sae.probing.fit import Material, Record
from sae.probing.readings import RAW
from sae.probing.tasks import Task
from sae.rows.pooled import TokenizedTexts, token_batches

_MOST_BYTES = 4 << 30
"""What token rows may take in memory."""


def attention_probes(
    model: LanguageModel,
    sites: Sequence[Site],
    task: Task,
    tokens: TokenizedTexts,
    seed: int,
) -> Iterator[Record]:
    """Yield the record of an attention probe at each hook.

    Its control is one probe of shuffled labels, for it takes as long as the probe.

    Raises:
        UserError: if the tokens of all texts do not fit into memory.
    """
    width = max(len(one.ids) for one in tokens.texts)
    size = 4 * len(tokens.texts) * width * sum(max(1, site.width) for site in sites)
    require(
        size <= _MOST_BYTES,
        f"pools=attention needs {size / (1 << 30):.1f} GiB for the tokens of {task.name}; give "
        "fewer hooks, smaller n_train and n_test, or a smaller max_tokens",
    )
    held = _token_rows(model, sites, tokens, width)
    labels, everything = task.texts.labels, np.arange(len(task.texts))
    train, test = everything[task.train], everything[task.test]
    shuffled = np.random.default_rng(seed).permutation(labels[task.train])
    for i, site in enumerate(sites):
        rows = held[site.hook_name]
        fitted = fit_attention(rows.of(train), labels[task.train], seed)
        floor = fit_attention(rows.of(train), shuffled, seed)
        auc = score(floor.logits(rows.of(test)), labels[task.test]).auc.mean
        place: Record = {"task": task.name, "hook_name": site.hook_name, "layer": i}
        place |= {"pool": ATTENTION, "inputs": RAW, "k": None}
        material = Material(task, np.zeros((len(labels), 1)), seed)
        record = material.scored(fitted.logits(rows))
        record["validation_auc"] = fitted.validation_auc
        yield place | record | {"permuted_auc": auc, "permuted_high": auc}


def _token_rows(
    model: LanguageModel, sites: Sequence[Site], tokens: TokenizedTexts, width: int
) -> Mapping[str, TokenRows]:
    """Return all tokens of all texts at each hook; marks are left out."""
    n = len(tokens.texts)
    own = torch.zeros(n, width, dtype=torch.bool)
    held: dict[str, Tensor] = {}
    with quietly(model.module, model.device):
        for batch in token_batches(model, tokens.texts, sites):
            wide = batch.own.shape[1]
            own[batch.rows, :wide] = batch.own.cpu()
            for name, x in batch.at.items():
                if name not in held:
                    held[name] = torch.zeros(n, width, x.shape[2])
                held[name][batch.rows, :wide] = x.float().cpu()
    # What is made in inference mode cannot be differentiated through.
    return {name: TokenRows(x.clone(), own.clone()) for name, x in held.items()}
