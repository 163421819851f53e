"""One training step of each peer, at given weights and rows, for timing beside ours.

Every factory builds the peer's own trainer at its best settings for a CPU and gives back a
function without arguments that does one whole step: forward, loss, backward, clipping,
optimiser, the peer's own statistics. What is the same for all:

- The weights mean what they mean in `sae.dictionary.Dictionary`: pre-activations are
  `x @ W_enc + b_enc`. A peer that subtracts `b_dec` from its input gets that folded into its
  encoder bias, so it selects the same latents as ours.
- The learning rate is too small to move a float32 weight, so every step does the same work.
- A step is one from the middle of a run: past all warm-ups and initialisation from data.
- No latent counts as dead unless `n_dead` asks for some; those fire on none of the rows.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

Step = Callable[[], object]
Weights = dict[str, Tensor]

LR = 1e-9
FOREVER = 10**9
"""Steps of a run, or rows since a dead latent fired."""
MIDDLE = 10_000
"""The step number handed to dictionary_learning: its thresholds average from step 1,000 on."""


SPARSIFY_CHOICES: list[dict[str, Any]] = [
    {"optimizer": optimizer, "micro_acc_steps": n_chunks}
    for optimizer in ("adam", "signum")
    for n_chunks in (1, 4, 8)
]
"""Settings of `sparsify_step` worth timing; which is fastest depends on the sizes."""


def saelens_choices(architecture: str) -> list[dict[str, Any]]:
    """Return settings of `saelens_step` worth timing, all float32 and all the same function."""
    choices: list[dict[str, Any]] = [{}]
    if "topk" in architecture:
        # At a decoder of unit norm the scaling changes the work and not the result.
        choices.append({"rescale_acts_by_decoder_norm": False})
    choices += [{**choice, "compile_sae": True} for choice in choices]
    return choices + [{"use_sparse_activations": True}] * (architecture == "topk")


def matryoshka_widths(d_sae: int) -> list[int]:
    """Nested widths, each twice the last, from a sixteenth of the latents to all of them."""
    return [d_sae // 16, d_sae // 8, d_sae // 4, d_sae // 2, d_sae]


def saelens_step(
    architecture: str,
    weights: Weights,
    x: Tensor,
    *,
    k: int | None = None,
    coefficient: float | None = None,
    n_dead: int = 0,
    **settings: Any,
) -> Step | None:
    """SAELens's `SAETrainer._train_step`; `None` where SAELens is not installed.

    `architecture` is SAELens's name: `standard`, `topk`, `batchtopk`, `jumprelu` or
    `matryoshka_batchtopk`. `settings` are further fields of its SAE's or its trainer's
    configuration, and its runner's `compile_sae`: see `saelens_trainer`.
    """
    if not _installed("sae_lens", "sae-lens"):
        return None
    d_in, d_sae = weights["W_enc"].shape
    weights, dead = _with_dead(weights, x, n_dead)
    trainer = saelens_trainer(
        architecture,
        d_in=d_in,
        d_sae=d_sae,
        batches=iter(()),
        total_training_samples=FOREVER,
        train_batch_size_samples=len(x),
        lr=LR,
        **saelens_sparsity(architecture, d_sae, k, coefficient),
        **settings,
    )
    model = trainer.sae
    shift = weights["b_dec"] if model.cfg.apply_b_dec_to_input else None
    _copy(weights, model.W_enc, model.b_enc, model.W_dec, model.b_dec, shift)
    if architecture == "jumprelu":
        model.threshold.data.copy_(weights["threshold"])
    trainer.n_forward_passes_since_fired[dead] = FOREVER
    return partial(trainer._train_step, model, x)


def saelens_trainer(
    architecture: str, *, d_in: int, d_sae: int, batches: Iterator[Tensor], **settings: Any
) -> Any:
    """SAELens's trainer around a fresh SAE; each setting goes to the configuration it is of.

    Settings that change the speed: `use_sparse_activations=True` (`topk` only),
    `autocast=True` (bfloat16), `apply_b_dec_to_input` (off here, as in SAELens's tutorial: the
    model is then ours exactly, and no gradient is taken for the input) and
    `compile_sae=True`, which does what SAELens's runner does and needs a C++ compiler.

    Sparse activations come without `rescale_acts_by_decoder_norm`: on a CPU the backward of
    that scaling fails on sparse tensors (no `view` for them), at SAELens 6.54 and torch 2.13.
    """
    from sae_lens.config import SAETrainerConfig
    from sae_lens.registry import get_sae_training_class
    from sae_lens.training.sae_trainer import SAETrainer

    # Its own default, None, fails an assertion in its trainer.
    settings = {"apply_b_dec_to_input": False, "lr_end": settings["lr"], **settings}
    compiled = settings.pop("compile_sae", False)
    if settings.get("use_sparse_activations"):
        settings.setdefault("rescale_acts_by_decoder_norm", False)
    names = {field.name for field in fields(SAETrainerConfig)}
    of_trainer = {name: value for name, value in settings.items() if name in names}
    of_sae = {name: value for name, value in settings.items() if name not in names}
    sae_class, config_class = get_sae_training_class(architecture)
    model = sae_class(config_class(d_in=d_in, d_sae=d_sae, **of_sae))
    if compiled:
        # The compiler keeps eight versions of a function, over all models; then it gives up.
        torch.compiler.reset()
        model.training_forward_pass = torch.compile(model.training_forward_pass)
    return SAETrainer(SAETrainerConfig(**of_trainer), model, data_provider=batches)


def saelens_sparsity(
    architecture: str, d_sae: int, k: float | None, coefficient: float | None
) -> dict[str, Any]:
    """How SAELens is told the sparsity; `jumprelu` aims at `k` latents where it is given."""
    if architecture == "standard":
        return {"l1_coefficient": coefficient}
    if architecture == "jumprelu":
        weight = {"l0_coefficient": 1.0 if coefficient is None else coefficient}
        aim = {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": k}
        return weight if k is None else weight | aim
    if architecture == "matryoshka_batchtopk":
        return {"k": k, "matryoshka_widths": matryoshka_widths(d_sae)}
    return {"k": k}


def dictionary_learning_step(
    architecture: str,
    weights: Weights,
    x: Tensor,
    *,
    k: int | None = None,
    coefficient: float | None = None,
    n_dead: int = 0,
) -> Step | None:
    """dictionary_learning's `update`; `None` where it is not installed.

    `standard` is its `StandardTrainerAprilUpdate`, whose loss is ours; the older
    `StandardTrainer` has another penalty and constrains the decoder.
    """
    if not _installed("dictionary_learning", "dictionary-learning"):
        return None
    d_in, d_sae = weights["W_enc"].shape
    weights, dead = _with_dead(weights, x, n_dead)
    trainer_class, settings = _dictionary_learning_trainer(architecture, k, coefficient)
    trainer = trainer_class(
        steps=FOREVER,
        activation_dim=d_in,
        dict_size=d_sae,
        layer=0,
        lm_name="",
        lr=LR,
        warmup_steps=0,
        device="cpu",
        **settings,
    )
    ae, b_dec = trainer.ae, weights["b_dec"]
    if architecture == "jumprelu":
        _copy(weights, ae.W_enc, ae.b_enc, ae.W_dec, ae.b_dec, None)
        ae.threshold.data.copy_(weights["threshold"])
    elif architecture == "matryoshka_batchtopk":
        _copy(weights, ae.W_enc, ae.b_enc, ae.W_dec, ae.b_dec, b_dec)
    else:
        encoder, decoder = ae.encoder, ae.decoder.weight.data.t()
        bias = ae.bias if architecture == "standard" else ae.b_dec
        _copy(weights, encoder.weight.data.t(), encoder.bias, decoder, bias, b_dec)
    if architecture != "standard":
        trainer.num_tokens_since_fired[dead] = FOREVER
    return partial(trainer.update, MIDDLE, x)


def _dictionary_learning_trainer(
    architecture: str, k: int | None, coefficient: float | None
) -> tuple[Any, dict[str, Any]]:
    """Return the trainer's class, and what is particular to it."""
    module = partial(_dictionary_learning_module, "dictionary_learning.trainers")
    if architecture == "topk":
        return module("top_k").TopKTrainer, {"k": k}
    if architecture == "batchtopk":
        return module("batch_top_k").BatchTopKTrainer, {"k": k}
    if architecture == "matryoshka_batchtopk":
        trainer = module("matryoshka_batch_top_k").MatryoshkaBatchTopKTrainer
        return trainer, {"k": k, "group_fractions": [1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2]}
    if architecture == "jumprelu":
        penalty = 1.0 if coefficient is None else coefficient
        settings = {"sparsity_penalty": penalty, "sparsity_warmup_steps": None}
        aim = {} if k is None else {"target_l0": float(k)}
        return module("jumprelu").JumpReluTrainer, settings | aim
    if architecture == "standard":
        settings = {"l1_penalty": coefficient, "sparsity_warmup_steps": None}
        return module("standard").StandardTrainerAprilUpdate, settings
    raise ValueError(f"dictionary_learning has no {architecture}")


def _dictionary_learning_module(package: str, name: str) -> ModuleType:
    """Return a module of dictionary_learning, with or without nnsight.

    Its `__init__` imports its activation buffer, and that imports nnsight's `LanguageModel`
    for a type annotation. No trainer uses either, and nnsight brings a remote execution
    service's client along; so an empty stand-in takes its place during the import only.
    """
    from importlib import import_module

    stub = None if find_spec("nnsight") else ModuleType("nnsight")
    if stub is None:
        return import_module(f"{package}.{name}")
    vars(stub)["LanguageModel"] = object
    sys.modules["nnsight"] = stub
    try:
        return import_module(f"{package}.{name}")
    finally:
        del sys.modules["nnsight"]


def sparsify_step(
    weights: Weights,
    x: Tensor,
    *,
    k: int,
    optimizer: str = "adam",
    micro_acc_steps: int = 1,
    n_dead: int = 0,
) -> Step | None:
    """One step of sparsify's `Trainer` for one TopK coder; `None` where it is not installed.

    Its trainer's loop cannot be called without a language model, so the calls are repeated
    here in its order, less the copies of the batch that its hook makes. `optimizer` is
    `signum` (its default) or `adam`; `micro_acc_steps` splits the batch, which bounds the
    (rows, k, d_in) tensor of its encoder's backward. AuxK is off by default there, and so
    here without dead latents.
    """
    if not _installed("sparsify", "eai-sparsify"):
        return None
    weights, dead = _with_dead(weights, x, n_dead)
    return _SparsifyStep(weights, x, k, optimizer, micro_acc_steps, dead)


class _SparsifyStep:
    """The body of `sparsify.trainer.Trainer.fit` and of its hook, loss `fvu`, one process."""

    def __init__(
        self,
        weights: Weights,
        x: Tensor,
        k: int,
        optimizer: str,
        micro_acc_steps: int,
        dead: Tensor,
    ) -> None:
        from sparsify import SparseCoder, SparseCoderConfig, sparse_coder
        from sparsify.utils import eager_decode

        # What SPARSIFY_DISABLE_TRITON=1 does: Triton's decoder has no CPU path.
        sparse_coder.decoder_impl = eager_decode
        d_in, d_sae = weights["W_enc"].shape
        self.x, self.n_chunks = x, micro_acc_steps
        self.coder = SparseCoder(d_in, SparseCoderConfig(num_latents=d_sae, k=k))
        encoder, b_dec = self.coder.encoder, weights["b_dec"]
        w_enc = encoder.weight.data.t()
        _copy(weights, w_enc, encoder.bias, self.coder.W_dec, self.coder.b_dec, b_dec)
        self.optimizer, self.scheduler = _sparsify_optimizer(self.coder, optimizer)
        self.auxk_alpha = 1 / 32 if len(dead) else 0.0
        self.tokens_since_fired = torch.zeros(d_sae, dtype=torch.long)
        self.tokens_since_fired[dead] = FOREVER
        self.did_fire = torch.zeros(d_sae, dtype=torch.bool)
        self.fvu = 0.0

    def __call__(self) -> float:
        """Return the step; its fraction of variance unexplained."""
        self.coder.set_decoder_norm_to_unit_norm()
        threshold = 10_000_000
        dead_mask = self.tokens_since_fired > threshold if self.auxk_alpha else None
        self.fvu = 0.0
        total_variance = (self.x - self.x.mean(0)).pow(2).sum()
        for chunk in self.x.chunk(self.n_chunks):
            out = self.coder(
                x=chunk, y=chunk, dead_mask=dead_mask, total_variance=total_variance
            )
            self.did_fire[out.latent_indices.flatten()] = True
            self.fvu += float(out.fvu.detach())
            loss = out.fvu + self.auxk_alpha * out.auxk_loss + out.multi_topk_fvu / 8
            loss.div(self.n_chunks).backward()
        self.coder.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.scheduler is not None:
            self.scheduler.step()
        self.tokens_since_fired += len(self.x)
        self.tokens_since_fired[self.did_fire] = 0
        self.did_fire.zero_()
        return self.fvu


def _sparsify_optimizer(coder: torch.nn.Module, name: str) -> tuple[Any, Any]:
    """Return the optimiser and its schedule as sparsify's trainer makes them."""
    groups = [{"params": coder.parameters(), "lr": LR}]
    if name == "adam":
        from transformers import get_linear_schedule_with_warmup

        adam = torch.optim.Adam(groups)
        return adam, get_linear_schedule_with_warmup(adam, 0, FOREVER)
    from schedulefree import ScheduleFreeWrapper
    from sparsify.sign_sgd import SignSGD

    signum = ScheduleFreeWrapper(SignSGD(groups), momentum=0.95)
    signum.train()
    return signum, None


def _installed(module: str, package: str) -> bool:
    found = find_spec(module) is not None
    if not found:
        print(f"{package} is not installed, so its step is left out.")
    return found


def _copy(
    weights: Weights,
    w_enc: Tensor,
    b_enc: Tensor,
    w_dec: Tensor,
    b_dec: Tensor,
    subtracted: Tensor | None,
) -> None:
    """Write `weights` into a peer's parameters, in the memory layout that the peer chose.

    `subtracted` is what the peer takes from its input before it encodes.
    """
    with torch.no_grad():
        w_enc.copy_(weights["W_enc"])
        w_dec.copy_(weights["W_dec"])
        b_dec.copy_(weights["b_dec"])
        b_enc.copy_(weights["b_enc"])
        if subtracted is not None:
            b_enc += subtracted @ weights["W_enc"]


def _with_dead(weights: Weights, x: Tensor, n_dead: int) -> tuple[Weights, Tensor]:
    """`weights` with the `n_dead` quietest latents silent on all of `x`, and which they are."""
    if n_dead == 0:
        return weights, torch.empty(0, dtype=torch.long)
    loudest = (x @ weights["W_enc"] + weights["b_enc"]).amax(0)
    dead = loudest.topk(n_dead, largest=False).indices
    b_enc = weights["b_enc"].clone()
    b_enc[dead] -= loudest[dead].clamp_min(0) + 0.01
    return {**weights, "b_enc": b_enc}, dead
