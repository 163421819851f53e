"""The learning rate of a training for which none is given."""

import pytest

from sae import OptimConfig, TopKConfig, TrainConfig
from sae.training.optim import usual_lr


@pytest.mark.parametrize(
    ("rows", "d_sae"),
    [(400_000, 4_608), (1_600_000, 2_304), (2_000_000, 2_304), (8_000_000, 512)],
)
def test_the_budgets_that_were_measured_keep_the_rate_that_was_best_or_near_it(rows, d_sae):
    config = TrainConfig(training_tokens=rows, sae=TopKConfig(d_sae=d_sae))
    assert config.lr == TopKConfig.default_lr == 3e-3


def test_the_rate_falls_with_the_root_of_steps_and_of_width_alone_and_down_to_a_floor():
    far = usual_lr(3e-3, 40_000, 2_304)
    assert far < 3e-3
    assert usual_lr(3e-3, 160_000, 2_304) == pytest.approx(far / 2)
    assert usual_lr(3e-3, 40_000, 4 * 2_304) == pytest.approx(far / 2)
    assert usual_lr(3e-3, 10**9, 10**6) == 5e-5
    # SynthSAEBench takes 3e-4 there.
    assert usual_lr(3e-3, 195_312, 4_096) == pytest.approx(2.4e-4, rel=0.02)


def test_it_depends_on_steps_and_not_on_rows_and_a_given_rate_stays():
    settings = {"training_tokens": 64_000_000, "sae": TopKConfig(d_sae=4_608)}
    small, large = (
        TrainConfig(**settings, train_batch_size_tokens=size).lr for size in (1_024, 4_096)
    )
    assert large == pytest.approx(2 * small, rel=1e-3)
    assert TrainConfig(**settings, optim=OptimConfig(lr=3e-3)).lr == 3e-3
