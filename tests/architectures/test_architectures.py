"""Every architecture: its step against a dense float64 reference, its options, its folding."""

import copy
import dataclasses
import itertools
from functools import cache

import pytest
import torch

from sae.architectures import ARCHITECTURES
from sae.architectures.penalised import Coefficient
from sae.base.errors import UserError
from sae.core.scaling import InputScaling
from sae.core.screen import MATMULS, matmuls_here

pytestmark = pytest.mark.usefixtures("two_threads")

D_IN, D_SAE, BATCH = 12, 40, 30
DEAD = torch.arange(D_SAE) % 5 == 0


def rows(n=400, seed=0, width=D_IN):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, width, generator=generator, dtype=torch.float64)


def built(name, seed=1, target=None, **settings):
    config = ARCHITECTURES[name](d_sae=settings.pop("d_sae", D_SAE), **settings)
    sae = config.build(rows(), torch.Generator().manual_seed(seed), target)
    # Away from the symmetric start, so that no gradient vanishes by chance.
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(0.05 * noise * (name != "threshold"))
    return sae


def jump(z, theta, width):
    """The dense estimator, written as a detached value plus what carries the gradient."""
    near = ((z - theta).abs() < width / 2).double()
    gate = (z > theta).double()
    theta_free = theta - theta.detach()
    value = z.relu() * gate.detach() - (theta.detach() / width) * near * theta_free
    return value, gate - near / width * theta_free


def top_mask(z, k):
    return torch.zeros_like(z).scatter(1, z.topk(k).indices, 1.0) * (z > 0)


def batch_mask(z, k):
    return (z >= z.flatten().topk(k * len(z)).values[-1]).double() * (z > 0)


def auxiliary(sae, z, error):
    z_dead = torch.where(DEAD, z, -torch.inf)
    chosen = z_dead.topk(min(D_IN // 2, int(DEAD.sum()))).indices
    acts = torch.zeros_like(z).scatter(1, chosen, z.gather(1, chosen))
    left = (acts @ sae.W_dec + error).square().sum(1).mean()
    return sae.config.aux_loss_coefficient * D_IN * left / error.square().sum(1).mean()


def dense_topk(sae, x, y, progress, mask=top_mask):
    z = x @ sae.encoder().t() + sae.b_enc
    x_hat = (z * mask(z.detach(), sae.config.k_at(progress))) @ sae.W_dec + sae.b_dec
    mse = (y - x_hat).square().sum(1).mean()
    return mse + auxiliary(sae, z, (x_hat - y).detach())


def dense_matryoshka(sae, x, y, progress):
    z = x @ sae.encoder().t() + sae.b_enc
    acts = z * batch_mask(z.detach(), sae.config.k_at(progress))
    latents = torch.arange(D_SAE)
    if sae.config.sort_by_frequency:
        # Of a first batch alone the running mean is its own share.
        latents = (acts > 0).double().mean(0).argsort(descending=True, stable=True)
    acts, w_dec = acts[:, latents], sae.W_dec[latents]
    widths = [0, *sae.config.level_widths]
    x_hats = [acts[:, :w] @ w_dec[:w] + sae.b_dec for w in widths]
    if sae.config.detach_inner:
        # Of the earlier levels' decode only the bias is left to the first one's error.
        parts = [acts[:, a:b] @ w_dec[a:b] for a, b in itertools.pairwise(widths)]
        inner = [x_hats[1], *(x_hats[g].detach() + parts[g] for g in range(1, len(parts) - 1))]
        x_hats = [x_hats[0], *inner[: len(parts) - 1], x_hats[-1]]
    mse = sum((y - x_hat).square().sum(1).mean() for x_hat in x_hats[1:]) / len(widths[1:])
    return mse + auxiliary(sae, z, (x_hats[-1] - y).detach())


def dense_hierarchical(sae, x, y, progress):
    z = x @ sae.encoder().t() + sae.b_enc
    ks = [*sae.config.ks, sae.config.k] if sae.config.ks else [1, 2, 3, 4, 5]
    x_hats = [(z * top_mask(z.detach(), k)) @ sae.W_dec + sae.b_dec for k in ks]
    mse = sum((y - x_hat).square().sum(1).mean() for x_hat in x_hats) / len(ks)
    return mse + auxiliary(sae, z, (x_hats[-1] - y).detach())


def dense_ordered(sae, x, y, progress):
    z = x @ sae.encoder().t() + sae.b_enc
    acts = z * top_mask(z.detach(), sae.config.k_at(progress))
    x_hats = [acts[:, :m] @ sae.W_dec[:m] + sae.b_dec for m in range(1, D_SAE + 1)]
    mse = sum((y - x_hat).square().sum(1).mean() for x_hat in x_hats) / D_SAE
    return mse + auxiliary(sae, z, (x_hats[-1] - y).detach())


def dense_standard(sae, x, y, progress):
    acts = torch.relu(x @ sae.encoder().t() + sae.b_enc)
    mse = (y - acts @ sae.W_dec - sae.b_dec).square().sum(1).mean()
    return mse + sae.coefficient.at(progress) * (acts @ sae.W_dec.norm(dim=1)).mean()


def dense_p_anneal(sae, x, y, progress):
    acts = torch.relu(x @ sae.encoder().t() + sae.b_enc)
    mse = (y - acts @ sae.W_dec - sae.b_dec).square().sum(1).mean()
    weighted = (acts * sae.W_dec.norm(dim=1))[acts > 0]
    powers = (weighted + 0.01).pow(sae.p(progress)).sum()
    scale = (weighted.sum() / powers).detach()
    return mse + sae.coefficient.at(progress) * scale * powers / len(x)


def dense_gated(sae, x, y, progress):
    read = x @ sae.encoder().t()
    gates = torch.relu(read + sae.b_enc)
    acts = torch.relu(sae.r_mag.exp() * read + sae.b_mag) * (gates > 0)
    mse = (y - acts @ sae.W_dec - sae.b_dec).square().sum(1).mean()
    frozen = (y - gates @ sae.W_dec.detach() - sae.b_dec.detach()).square().sum(1).mean()
    return mse + sae.coefficient.at(progress) * gates.sum(1).mean() + frozen


def dense_jumprelu(sae, x, y, progress):
    config = sae.config
    z = x @ sae.encoder().t() + sae.b_enc
    acts, gates = jump(z, sae.threshold, config.bandwidth)
    mse = (y - acts @ sae.W_dec - sae.b_dec).square().sum(1).mean()
    l0 = gates.sum(1).mean()
    penalty = {
        "step": l0,
        "tanh": torch.tanh(config.tanh_scale * acts).sum(1).mean(),
        "quadratic": 2 / (config.target_l0 or 1) * (l0 - (config.target_l0 or 1)) ** 2,
    }[config.penalty]
    pull = torch.relu(sae.threshold - z)[:, DEAD].sum(1).mean()
    often = torch.relu(gates.mean(0) - 0.1).sum()
    loss = mse + sae.coefficient.at(progress) * penalty + config.frequency_coefficient * often
    return loss + config.pre_act_loss_coefficient * pull


CASES = {
    "standard": ("standard", {}, dense_standard),
    "standard, unit norm": ("standard", {"decoder_norm": "unit"}, dense_standard),
    "standard, aligned": ("standard", {"aligned": True}, dense_standard),
    "p-annealing": ("p_anneal", {}, dense_p_anneal),
    "gated": ("gated", {}, dense_gated),
    "topk": ("topk", {"k": 4}, dense_topk),
    "topk, aligned": ("topk", {"k": 4, "aligned": True}, dense_topk),
    "topk, k above what is active": ("topk", {"k": 39}, dense_topk),
    "batchtopk": ("batchtopk", {"k": 4}, lambda *a: dense_topk(*a, mask=batch_mask)),
    "matryoshka": ("matryoshka_batchtopk", {"k": 4}, dense_matryoshka),
    "matryoshka, widths": (
        "matryoshka_batchtopk",
        {"k": 4, "matryoshka_widths": [3, 10]},
        dense_matryoshka,
    ),
    "matryoshka, detached": (
        "matryoshka_batchtopk",
        {"k": 4, "matryoshka_widths": [3, 10], "detach_inner": True},
        dense_matryoshka,
    ),
    "matryoshka, all tricks": (
        "matryoshka_batchtopk",
        {"k": 4, "initial_k": 9, "detach_inner": True, "sort_by_frequency": True},
        dense_matryoshka,
    ),
    "topk, falling k": ("topk", {"k": 4, "initial_k": 20}, dense_topk),
    "hierarchical": ("hierarchical_topk", {"k": 5}, dense_hierarchical),
    "hierarchical, ks": ("hierarchical_topk", {"k": 30, "ks": [3, 9]}, dense_hierarchical),
    "ordered": ("ordered_topk", {"k": 4}, dense_ordered),
    "ordered, k above what is active": ("ordered_topk", {"k": 39}, dense_ordered),
    "jumprelu, often": (
        "jumprelu",
        {"target_l0": 5, "frequency_coefficient": 3.0},
        dense_jumprelu,
    ),
    "jumprelu": ("jumprelu", {"target_l0": 5, "pre_act_loss_coefficient": 0.1}, dense_jumprelu),
    "jumprelu, step": ("jumprelu", {"target_l0": None, "penalty": "step"}, dense_jumprelu),
    "jumprelu, tanh": ("jumprelu", {"target_l0": 5, "penalty": "tanh"}, dense_jumprelu),
}


@pytest.mark.slow
@pytest.mark.parametrize("transcoder", [False, True], ids=["autoencoder", "transcoder"])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_every_gradient_of_a_step_equal_the_dense_definition(case, transcoder):
    name, settings, reference = CASES[case]
    y = rows(BATCH, seed=7) if transcoder else rows(BATCH, seed=6)
    x = rows(BATCH, seed=6)
    sae = built(name, target=rows(seed=3) if transcoder else None, **settings)
    if hasattr(sae, "active_share"):
        sae.active_share = 0.01
    # First: a step may move the controller of the penalty's weight.
    expected = reference(sae, x, y, 0.4)
    found = sae.step(x, y, 0.4, DEAD)
    torch.testing.assert_close(found.loss, expected, rtol=1e-9, atol=1e-9)
    names = [n for n, _ in sae.named_parameters()]
    for n, a, b in zip(
        names,
        torch.autograd.grad(found.loss, list(sae.parameters())),
        torch.autograd.grad(expected, list(sae.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9, msg=lambda m, n=n: f"{n}: {m}")


def test_a_skip_connection_takes_its_part_of_the_target_with_the_right_gradient():
    sae = built("topk", k=4, target=rows(seed=3), skip_connection=True, aux_loss_coefficient=0)
    x, y = rows(BATCH, seed=6), rows(BATCH, seed=7)
    z = x @ sae.W_enc_t.t() + sae.b_enc
    y_hat = (z * top_mask(z.detach(), 4)) @ sae.W_dec + sae.b_dec + x @ sae.W_skip.t()
    expected = torch.autograd.grad((y - y_hat).square().sum(1).mean(), list(sae.parameters()))
    loss = sae.step(x, y, 0.5, DEAD).loss
    for a, b in zip(torch.autograd.grad(loss, list(sae.parameters())), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_the_auxiliary_loss_reaches_the_encoder_rows_of_dead_latents_and_only_when_some_are():
    sae = built("topk", k=1)
    x = rows(BATCH, seed=6)
    grads = {}
    for name, dead in (("some", DEAD), ("none", torch.zeros_like(DEAD))):
        loss = sae.step(x, x, 0.5, dead).loss
        (grads[name],) = torch.autograd.grad(loss, [sae.W_enc_t])
    silent = (grads["none"] == 0).all(1) & DEAD
    assert silent.any()
    assert (grads["some"][silent] != 0).any(1).all()


def test_dense_and_sparse_steps_of_the_standard_architecture_agree():
    sae = built("standard")
    x = rows(BATCH, seed=6)
    results = []
    for share in (1.0, 0.01):
        sae.active_share = share
        step = sae.step(x, x, 0.5, DEAD)
        results.append((step, torch.autograd.grad(step.loss, list(sae.parameters()))))
    (dense, dense_grads), (sparse, sparse_grads) = results
    torch.testing.assert_close(sparse.loss, dense.loss)
    assert torch.equal(sparse.fired.long(), dense.fired.long())
    for a, b in zip(sparse_grads, dense_grads, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_first_reconstruction_is_scaled_to_the_rows(name):
    settings = {"target_l0": 5} if name == "jumprelu" else {}
    config = ARCHITECTURES[name](d_sae=D_SAE, **({"k": 4} if "topk" in name else settings))
    sae = config.build(rows(), torch.Generator().manual_seed(1))
    x = rows()
    x_hat = sae.activation(x @ sae.W_enc_t.detach().t()) @ sae.W_dec.detach()
    assert 0.8 < (x * x_hat).sum() / x_hat.square().sum() < 1.25


@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_saved_dictionary_does_on_raw_rows_what_the_trained_one_does_on_scaled(name, skip):
    d_out = 9
    sae = built(
        name,
        target=rows(seed=3, width=d_out),
        skip_connection=skip,
        **({"k": 4} if "topk" in name else {}),
        **({"target_l0": 5.0} if name == "jumprelu" else {}),
    )
    if sae.unit_norm_decoder:
        sae.W_dec.data = torch.nn.functional.normalize(sae.W_dec.data, dim=1)
    x = rows(50, seed=8)
    means = [10 * rows(1, seed=s, width=w)[0].float() for s, w in ((9, D_IN), (10, d_out))]
    scaling, output = InputScaling(means[0], 0.05), InputScaling(means[1], 7.0)
    if "batchtopk" in name:
        sae.step(rows(50, seed=4), rows(50, seed=3, width=d_out), 0.0, DEAD)
        assert sae.threshold > 0
    dictionary = sae.dictionary(scaling, output)
    z = x @ sae.encoder().t() + sae.b_enc
    kind = ARCHITECTURES[name].saved_as.name
    assert dictionary.architecture == kind
    if kind == "topk":
        acts = z * top_mask(z, 4)
    elif kind == "jumprelu":
        acts = z.relu() * (z > sae.threshold)
    elif kind == "gated":
        read = z - sae.b_enc
        acts = torch.relu(sae.r_mag.exp() * read + sae.b_mag) * (z > 0)
    else:
        acts = z.relu()
    y_hat = acts @ sae.W_dec + sae.b_dec + (x @ sae.W_skip.t() if skip else 0)
    raw = (x / 0.05 + means[0]).float()
    # Each activation is the length that it adds.
    torch.testing.assert_close(dictionary.W_dec.norm(dim=1), torch.ones(D_SAE))
    lengths = (acts * sae.W_dec.norm(dim=1) / 7.0).detach().float()
    torch.testing.assert_close(dictionary.encode(raw), lengths, rtol=2e-4, atol=2e-4)
    expected = (y_hat.detach() / 7.0 + means[1]).float()
    torch.testing.assert_close(dictionary(raw), expected, rtol=2e-4, atol=2e-4)


def train(sae, steps=60, lr=1e-2, seed=0):
    from sae.training.loop import Trainer
    from sae.training.optim import OptimConfig

    same = InputScaling(torch.zeros(D_IN), 1.0)
    trainer = Trainer(sae, same, OptimConfig(), lr=lr, n_steps=steps, dead_window_rows=640)
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(6, D_IN, generator=generator)

    def batches():
        while True:
            codes = torch.randn(64, 6, generator=generator).relu()
            yield codes @ base + 0.1 * torch.randn(64, D_IN, generator=generator)

    some = itertools.islice(batches(), steps)
    return trainer, [trainer.update(*trainer.scaled((x,))).metrics() for x in some]


def trained_rows(n=500):
    """Rows of the kind that `train` trains on, others."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, D_IN, generator=generator)
    generator.manual_seed(99)
    codes = torch.randn(n, 6, generator=generator).relu()
    return codes @ base + 0.1 * torch.randn(n, D_IN, generator=generator)


def float_built(name, **settings):
    config = ARCHITECTURES[name](d_sae=D_SAE, **settings)
    return config.build(rows().float(), torch.Generator().manual_seed(1))


OPTIONS = [
    ("standard", {"frozen": "decoder"}),
    ("standard", {"l1_coefficient": 1.0}),
    ("standard", {"l1_warm_up_fraction": 0.9}),
    ("standard", {"target_l0": 2.0}),
    ("standard", {"decoder_norm": "unit"}),
    ("standard", {"aligned": True}),
    ("p_anneal", {"p_end": 0.9}),
    ("p_anneal", {"anneal_start_fraction": 0.7}),
    ("p_anneal", {"anneal_end_fraction": 0.5}),
    ("p_anneal", {"target_l0": 2.0}),
    ("gated", {"l1_coefficient": 1.0}),
    ("gated", {"l1_warm_up_fraction": 0.9}),
    ("gated", {"target_l0": 2.0}),
    ("topk", {"k": 3}),
    ("topk", {"initial_k": 6}),
    ("topk", {"aux_loss_coefficient": 0.0}),
    ("topk", {"k_aux": 1}),
    ("topk", {"aligned": True}),
    ("batchtopk", {"k": 3}),
    ("batchtopk", {"aux_loss_coefficient": 0.0}),
    ("matryoshka_batchtopk", {"matryoshka_widths": [5]}),
    ("matryoshka_batchtopk", {"detach_inner": True}),
    ("matryoshka_batchtopk", {"sort_by_frequency": True}),
    ("hierarchical_topk", {"ks": []}),
    ("ordered_topk", {"k": 3}),
    ("jumprelu", {"penalty": "step"}),
    ("jumprelu", {"penalty": "tanh"}),
    ("jumprelu", {"penalty": "tanh", "tanh_scale": 1.0}),
    ("jumprelu", {"l0_coefficient": 1.0}),
    ("jumprelu", {"l0_warm_up_fraction": 0.9}),
    ("jumprelu", {"target_l0": 3.0}),
    ("jumprelu", {"bandwidth": 1.0}),
    ("jumprelu", {"frequency_coefficient": 10.0}),
    ("jumprelu", {"pre_act_loss_coefficient": 1.0, "target_l0": 1.0}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "change"), OPTIONS, ids=str)
def test_every_option_changes_the_weights(name, change):
    plain = {"k": 2} if "topk" in name else {}
    if name == "jumprelu":
        plain = {"target_l0": 8.0 if len(change) < 2 else change.get("target_l0", 8.0)}
        plain |= {"penalty": "tanh"} if "tanh_scale" in change else {}
    other = float_built(name, **{**plain, **change})
    train(other)
    assert not torch.equal(trained_encoder(name, *plain.items()), other.W_enc_t)


@cache
def trained_encoder(name, *settings):
    """The encoder that a recipe ends with, trained once for all that is compared with it."""
    sae = float_built(name, **dict(settings))
    train(sae)
    return sae.W_enc_t.detach()


def test_every_key_of_every_architecture_has_an_option_test():
    tested = {(name, key) for name, change in OPTIONS for key in change}
    for name, config in ARCHITECTURES.items():
        for field in dataclasses.fields(config):
            homes = {n for n, c in ARCHITECTURES.items() if issubclass(config, c)}
            homes |= {"standard", "topk"} if field.name in ("aligned", "frozen") else set()
            # The width shows in every shape, and a skip connection has a test of its own.
            if field.name not in ("d_sae", "skip_connection"):
                assert {(home, field.name) for home in homes} & tested, (name, field.name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_learns(name):
    settings = {"k": 4} if "topk" in name else {"target_l0": 4.0}
    sae = float_built(name, **settings)
    _, metrics = train(sae, steps=200)
    assert metrics[-1]["metrics/explained_variance"] > 0.6
    assert metrics[-1]["losses/mse_loss"] < metrics[0]["losses/mse_loss"]
    assert metrics[-1]["metrics/l0"] == pytest.approx(4.0, rel=0.35)


@pytest.mark.parametrize("name", ["topk", "batchtopk", "gated", "jumprelu"])
def test_decoder_rows_keep_norm_one(name):
    sae = float_built(name, **({"k": 4} if "topk" in name else {"target_l0": 4.0}))
    train(sae)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE))


def test_aligned_encoder_and_decoder_directions_have_inner_product_one():
    sae = float_built("topk", k=4, aligned=True)
    train(sae)
    inner = (sae.encoder() * sae.W_dec).sum(1)
    torch.testing.assert_close(inner, torch.ones(D_SAE))
    folded = sae.dictionary(*[InputScaling(torch.zeros(D_IN), 0.5)] * 2)
    inner = (folded.W_enc.t() * folded.W_dec).sum(1)
    torch.testing.assert_close(inner, torch.ones(D_SAE))


@pytest.mark.slow
def test_the_saved_threshold_of_batchtopk_keeps_the_l0_of_training():
    sae = float_built("batchtopk", k=4)
    trainer, _ = train(sae, steps=200, lr=1e-3)
    dictionary = sae.dictionary(trainer.scaling, trainer.output_scaling)
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, D_IN, generator=generator)
    x = torch.randn(4000, 6, generator=generator).relu() @ base
    x += 0.1 * torch.randn(x.shape, generator=generator)
    assert (dictionary.encode(x) > 0).sum(1).float().mean() == pytest.approx(4.0, rel=0.1)


def test_latents_sorted_by_frequency_are_saved_so_and_go_on_to_the_same_bits():
    settings = {"k": 4, "sort_by_frequency": True, "initial_k": 9}
    sae = float_built("matryoshka_batchtopk", **settings)
    trainer, metrics = train(sae, steps=60)
    assert metrics[0]["metrics/l0"] == 9
    assert metrics[-1]["metrics/l0"] == 4
    order = sae.by_frequency()
    assert not torch.equal(order, torch.arange(D_SAE))
    assert (sae.frequency[order].diff() <= 0).all()
    saved = sae.dictionary(trainer.scaling, trainer.output_scaling)
    torch.testing.assert_close(saved.W_dec, sae.W_dec.detach()[order])
    # A new trainer that takes over the state does what the old one does.
    again, _ = train(float_built("matryoshka_batchtopk", **settings), steps=60, seed=5)
    again.load_state_dict(copy.deepcopy(trainer.state_dict()))
    x = rows(64, seed=9).float()
    for one in (trainer, again):
        one.n_steps = 100
        one.update(x, x)
    for name, value in trainer.sae.state_dict().items():
        assert torch.equal(torch.as_tensor(value), again.sae.state_dict()[name]), name


def test_k_falls_linearly_and_then_stays():
    config = ARCHITECTURES["topk"](d_sae=D_SAE, k=4, initial_k=16)
    assert [config.k_at(p) for p in (0.0, 0.3, 0.6, 1.0)] == [16, 10, 4, 4]
    assert ARCHITECTURES["topk"](d_sae=D_SAE, k=4).k_at(0.0) == 4


@pytest.mark.slow
def test_a_hierarchical_dictionary_reconstructs_better_than_topk_at_a_smaller_k():
    x = trained_rows()
    errors = {}
    for name in ("topk", "hierarchical_topk"):
        trainer, _ = train(float_built(name, k=8), steps=60)
        saved = trainer.sae.dictionary(trainer.scaling, trainer.output_scaling)
        assert saved.activation.k == 8
        errors[name] = float((saved.with_k(2)(x) - x).square().mean())
    assert errors["hierarchical_topk"] < errors["topk"]


@pytest.mark.slow
def test_early_prefixes_of_an_ordered_dictionary_reconstruct_better_than_topks():
    x = trained_rows()
    errors = {}
    for name in ("topk", "ordered_topk"):
        trainer, _ = train(float_built(name, k=4), steps=60)
        saved = trainer.sae.dictionary(trainer.scaling, trainer.output_scaling)
        first = saved.encode(x)
        first[:, D_SAE // 4 :] = 0
        errors[name] = float((saved.decode(first) - x).square().mean())
    assert errors["ordered_topk"] < errors["topk"]


@pytest.mark.slow
def test_a_penalty_on_frequent_latents_leaves_fewer_of_them():
    frequent = []
    for weight in (0.0, 100.0):
        sae = float_built("jumprelu", target_l0=8.0, frequency_coefficient=weight)
        trainer, _ = train(sae, steps=200)
        x = trained_rows()
        acts = sae.dictionary(trainer.scaling, trainer.output_scaling).encode(x)
        frequent.append(int(((acts > 0).float().mean(0) > 0.1).sum()))
    assert frequent[1] < frequent[0]


def test_thresholds_never_fall_below_zero():
    sae = float_built("jumprelu", target_l0=30.0)
    sae.threshold.data.fill_(1e-3)
    train(sae, lr=0.1)
    assert sae.threshold.min() >= 0


def test_the_coefficient_rises_linearly_and_then_stays():
    coefficient = Coefficient(4.0, 0.2, None)
    assert [coefficient.at(p) for p in (0.0, 0.1, 0.2, 0.9)] == [0.0, 2.0, 4.0, 4.0]
    coefficient.observe(1000.0, 0.9)
    assert coefficient.at(0.9) == 4.0


def test_the_controller_raises_the_coefficient_while_l0_is_too_high_and_resumes_exactly():
    coefficient = Coefficient(4.0, 0.1, 20.0)
    coefficient.observe(40.0, 0.05)
    assert coefficient.at(0.5) == 4.0
    for _ in range(10):
        coefficient.observe(40.0, 0.5)
    raised = coefficient.at(0.5)
    assert raised > 4.0
    other = Coefficient(4.0, 0.1, 20.0)
    other.load_state_dict(coefficient.state_dict())
    assert other.at(0.5) == raised
    for _ in range(30):
        coefficient.observe(10.0, 0.5)
    assert coefficient.at(0.5) < 4.0


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("topk", {"k": 41}, r"sae\.k=41 .*sae\.d_sae=40"),
        ("topk", {"k": 0}, r"sae\.k=0 "),
        ("topk", {"initial_k": 41}, r"sae\.initial_k=41 .*sae\.d_sae=40"),
        ("hierarchical_topk", {"k": 8, "ks": [8]}, r"sae\.ks=\[8\].*below sae\.k=8"),
        ("hierarchical_topk", {"k": 8, "initial_k": 9}, r"sae\.initial_k=9 .*leave it out"),
        ("jumprelu", {"frequency_coefficient": -1.0}, r"sae\.frequency_coefficient=-1"),
        ("topk", {"d_sae": 0}, r"sae\.d_sae=0 "),
        ("topk", {"k_aux": 0}, r"sae\.k_aux=0 "),
        ("topk", {"aux_loss_coefficient": -1.0}, r"sae\.aux_loss_coefficient=-1"),
        ("matryoshka_batchtopk", {"matryoshka_widths": [20, 10]}, r"\[20, 10\].*rising"),
        ("matryoshka_batchtopk", {"matryoshka_widths": [40]}, r"below sae\.d_sae=40"),
        ("standard", {"target_l0": 40.0}, r"sae\.target_l0=40"),
        ("standard", {"decoder_norm": "half"}, r"decoder_norm=half .*free or unit"),
        ("standard", {"l1_coefficient": -1.0}, r"sae\.l1_coefficient=-1"),
        ("p_anneal", {"p_end": 0.0}, r"sae\.p_end=0"),
        ("p_anneal", {"anneal_start_fraction": 2.0}, r"anneal_start_fraction=2"),
        ("gated", {"l1_warm_up_fraction": -0.1}, r"l1_warm_up_fraction=-0\.1"),
        ("jumprelu", {"penalty": "cubic"}, r"penalty=cubic .*quadratic"),
        ("jumprelu", {"target_l0": None}, r"quadratic needs sae\.target_l0"),
        ("jumprelu", {"target_l0": -3.0}, r"target_l0=-3"),
        ("jumprelu", {"bandwidth": 0.0}, r"sae\.bandwidth=0"),
        ("jumprelu", {"tanh_scale": -1.0}, r"sae\.tanh_scale=-1"),
    ],
    ids=str,
)
def test_an_impossible_value_is_refused_in_one_sentence(name, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        ARCHITECTURES[name](**{"d_sae": D_SAE, **settings})


def test_no_step_makes_a_tensor_of_all_pre_activations(monkeypatch):
    from sae.core import screen

    monkeypatch.setattr(screen, "MIN_BLOCK_ROWS", 8)
    monkeypatch.setattr(screen, "BLOCK_BYTES", 1)
    made = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            made.extend(
                t.shape
                for t in (out if isinstance(out, tuple) else (out,))
                if isinstance(t, torch.Tensor) and not t.is_sparse_csr
            )
            return out

    # More than are sampled for a guess.
    x = rows(1024, seed=6)
    for name in ("topk", "batchtopk", "matryoshka_batchtopk", "gated", "jumprelu", "p_anneal"):
        sae = built(
            name,
            **({"k": 4} if "topk" in name else {}),
            **({"target_l0": 5.0} if name == "jumprelu" else {}),
        )
        with Watch():
            sae.step(x, x, 0.6, torch.zeros_like(DEAD)).loss.backward()
    assert made
    all_of = [s for s in made if len(s) == 2 and s[0] >= len(x) and s[1] >= D_SAE]
    assert not all_of


@pytest.mark.parametrize("matmul", MATMULS)
@pytest.mark.parametrize("name", CASES)
def test_a_step_is_the_same_to_the_bit_with_every_product(name, matmul):
    architecture, settings, _ = CASES[name]
    if matmul not in (*matmuls_here(torch.device("cpu"), torch.float32), "auto"):
        pytest.skip("this processor has no instructions for it")
    x = rows(BATCH, seed=6).float()
    results = []
    for one in ("float32", matmul):
        sae = float_built(architecture, **settings)
        sae.active_share, sae.matmul = 0.01, one
        step = sae.step(x, x, 0.6, torch.arange(D_SAE) % 3 == 0)
        step.loss.backward()
        results.append([step.loss.detach(), *(p.grad for p in sae.parameters())])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("case", CASES)
def test_a_step_on_a_gpu_equals_the_one_on_the_cpu(case):
    name, settings, _ = CASES[case]
    sae, x = built(name, **settings).float(), rows(BATCH, seed=6).float()
    results = []
    for device in ("cpu", "cuda"):
        sae = sae.to(device)
        if hasattr(sae, "active_share"):
            sae.active_share = 0.01
        there = x.to(device)
        loss = sae.step(there, there, 0.05, DEAD.to(device)).loss
        grads = torch.autograd.grad(loss, list(sae.parameters()))
        results.append([t.cpu() for t in (loss.detach(), *grads)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
