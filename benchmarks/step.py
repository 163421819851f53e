"""One L1 training step: sparse and exact, against dense autograd, SAELens, and the floor."""

from collections.abc import Callable, Iterator

import torch

from benchmarks.common import real_rows, side_by_side, write_results
from sae.architectures import StandardConfig, StandardSAE
from sae.core.scaling import InputScaling, moments
from sae.training.loop import Trainer
from sae.training.optim import OptimConfig

D_SAE, BATCH, WARM_STEPS = 9_216, 4_096, 150


def main() -> None:
    """Median seconds of a step at the L0 that training reached."""
    rows = real_rows(40_960)
    scaling = InputScaling.from_moments(*moments(rows))
    generator = torch.Generator().manual_seed(0)
    config = StandardConfig(d_sae=D_SAE, l1_coefficient=4.0, l1_warm_up_fraction=0.0)
    sae = StandardSAE(config, scaling(rows), generator)
    # No warm-up and no decay: the run has no end to take shares of.
    optim = OptimConfig(lr=3e-3, lr_warm_up_steps=0, lr_decay_steps=0)
    trainer = Trainer(sae, scaling, optim, d_sae=D_SAE)

    def batches() -> Iterator[torch.Tensor]:
        while True:
            yield from torch.split(rows[torch.randperm(len(rows), generator=generator)], BATCH)

    steps = trainer.fit(batches(), 10**9, 10**9)
    for _ in range(WARM_STEPS):
        report = next(steps)
    l0 = report.metrics()["metrics/l0"]
    x = scaling(rows[:BATCH])
    contenders: dict[str, Callable[[], object]] = {
        "encoder GEMM alone": lambda: torch.nn.functional.linear(x, sae.W_enc_t, sae.b_enc),
        "sae-atlas": lambda: next(steps),
        "dense autograd, same loss and optimiser": _dense_step(sae, x),
    }
    if (theirs := _saelens_step(sae, x)) is not None:
        contenders["SAELens SAETrainer step"] = theirs
    medians = side_by_side(contenders, rounds=7)
    ours = medians["sae-atlas"]
    write_results(
        "step",
        f"One L1 step, d_in 576, d_sae {D_SAE}, batch {BATCH}, L0 {l0:.0f}",
        [
            {"what": n, "seconds": round(s, 3), "times ours": round(s / ours, 2)}
            for n, s in medians.items()
        ],
    )


def _dense_step(sae: StandardSAE, x: torch.Tensor) -> Callable[[], object]:
    """The same step through plain autograd on dense matrices."""
    weights = [p.detach().clone().requires_grad_() for p in sae.parameters()]
    optimizer = torch.optim.Adam(weights, lr=1e-9, fused=True)

    def step() -> None:
        w_enc, b_enc, w_dec, b_dec = weights
        feature_acts = torch.relu(torch.nn.functional.linear(x, w_enc, b_enc))
        x_hat = feature_acts @ w_dec + b_dec
        loss = (x - x_hat).square().sum(-1).mean()
        loss = loss + 4.0 * (feature_acts.mean(0) @ w_dec.norm(dim=1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def _saelens_step(sae: StandardSAE, x: torch.Tensor) -> Callable[[], object] | None:
    """SAELens's trainer at the same weights; None where it is not installed."""
    try:
        import sae_lens
        from sae_lens.config import LoggingConfig, SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer
    except ImportError:
        return None
    config = sae_lens.StandardTrainingSAEConfig(
        d_in=x.shape[1], d_sae=sae.config.d_sae, l1_coefficient=4.0
    )
    model = sae_lens.StandardTrainingSAE(config)
    with torch.no_grad():
        model.W_enc.copy_(sae.W_enc_t.t())
        model.W_dec.copy_(sae.W_dec)
        model.b_enc.copy_(sae.b_enc)
        model.b_dec.copy_(sae.b_dec)
    settings = SAETrainerConfig(
        total_training_samples=10**9,
        device="cpu",
        autocast=False,
        lr=1e-9,
        lr_end=1e-10,
        lr_scheduler_name="constant",
        lr_warm_up_steps=0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        lr_decay_steps=0,
        n_restart_cycles=1,
        train_batch_size_samples=BATCH,
        dead_feature_window=1000,
        feature_sampling_window=2000,
        save_final_checkpoint=False,
        checkpoint_path=None,
        n_checkpoints=0,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(settings, model, data_provider=iter([]))
    return lambda: trainer._train_step(model, x)


if __name__ == "__main__":
    main()
