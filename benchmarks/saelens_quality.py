"""Train with SAELens's own trainer, at good documented settings, for comparing quality.

The caller centres and scales the rows, so that each coordinate has mean square one: that is
the scale of SAELens's `expected_average_only_in`, for which its coefficients are meant, less
the thousand batches that it reads to estimate the scale and then throws away.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import saelens_sparsity, saelens_trainer
from sae.dictionary import CODER, Activation, Dictionary, JumpReLU, ReLU, TopK
from sae.dictionary.folding import without_b_dec


def train_saelens(
    architecture: str,
    rows_iterator: Iterator[Tensor],
    *,
    d_in: int,
    d_sae: int,
    n_rows: int,
    batch_size: int,
    seed: int,
    **settings: Any,
) -> Dictionary:
    """Train on `n_rows` rows, and return the dictionary that reads prepared rows.

    `rows_iterator` gives float32 batches of `batch_size` prepared rows, at least
    `n_rows // batch_size` of them. Give `k`, or `coefficient` (the L1 or L0 coefficient), or
    both for a `jumprelu` that aims at `k` active latents; and `lr`, SAELens's 3e-4 without.
    Other `settings` are fields of SAELens's configurations and override what is chosen here.

    `batchtopk` and Matryoshka become `jumprelu`, as what SAELens saves of them does.
    """
    n_steps = n_rows // batch_size
    k, coefficient = settings.pop("k", None), settings.pop("coefficient", None)
    settings = {
        **saelens_sparsity(architecture, d_sae, k, coefficient),
        **_schedule(architecture, n_steps),
        **settings,
    }
    # SAELens seeds nothing; its initialisation is all that it draws.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trainer = saelens_trainer(
            architecture,
            d_in=d_in,
            d_sae=d_sae,
            batches=rows_iterator,
            total_training_samples=n_steps * batch_size,
            train_batch_size_samples=batch_size,
            **settings,
        )
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        model = trainer.fit()
    return _dictionary(model)


def _schedule(architecture: str, n_steps: int) -> dict[str, Any]:
    """SAELens's tutorial: decay over the last fifth, penalties rising over a twentieth.

    The learning rate has no warm-up there, with the remark that one can help against latents
    that die at the start; here it rises over a twentieth too, at most 1,000 steps. Latents
    count as dead after 1,000 silent steps there; here after a fifth of the run where that is
    less, or a short run would be without its auxiliary loss.
    """
    twentieth = max(1, n_steps // 20)
    schedule: dict[str, Any] = {
        "lr": 3e-4,
        "lr_scheduler_name": "constant",
        "lr_warm_up_steps": min(1_000, max(2, twentieth)),
        "lr_decay_steps": n_steps // 5,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "dead_feature_window": min(1_000, max(1, n_steps // 5)),
        # Beyond the end: no histogram is built for a log that nobody reads.
        "feature_sampling_window": n_steps + 1,
        "normalize_activations": "none",
    }
    if architecture == "standard":
        schedule["l1_warm_up_steps"] = twentieth
    if architecture == "jumprelu":
        schedule["l0_warm_up_steps"] = twentieth
    return schedule


@torch.no_grad()
def _dictionary(model: Any) -> Dictionary:
    """Return what SAELens would save for inference, with its shift of the input folded."""
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    model.process_state_dict_for_saving_inference(state)
    activation: Activation = ReLU()
    architecture = model.cfg.get_inference_config_class().architecture()
    if architecture == TopK.name:
        activation = TopK(int(model.cfg.k))
    elif architecture == JumpReLU.name:
        activation = JumpReLU(state["threshold"])
    W_enc, b_enc, W_dec, b_dec = (state[name] for name in CODER)
    found = Dictionary.from_weights(W_enc, b_enc, W_dec, b_dec, activation)
    return without_b_dec(found) if model.cfg.apply_b_dec_to_input else found
