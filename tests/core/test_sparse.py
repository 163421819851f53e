"""Selection and the sparse products, against plain dense autograd in float64."""

import pytest
import torch

from sae.core import cpu_kernels, screen, select
from sae.core.fidelity import squared_error, weighted_l1, weighted_l1_on
from sae.core.select import Above, BatchTopK, TopK, TopKAmong
from sae.core.sparse import Levels, encode_on, reconstruct_on, support_of

pytestmark = pytest.mark.usefixtures("two_threads")


def draws(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return draw


def problem(batch=13, d_in=7, d_sae=19, seed=0, bias=-1.0):
    draw = draws(seed)
    weights = [draw(d_sae, d_in), draw(d_sae) + bias, draw(d_sae, d_in), draw(d_in)]
    return draw(batch, d_in), [w.requires_grad_() for w in weights]


def dense(active):
    support, values = active
    filled = torch.zeros(support.shape, dtype=values.dtype)
    filled[support.rows(), support.columns.long()] = values
    return filled


def dense_loss(mask, x, w_enc, b_enc, w_dec, b_dec):
    feature_acts = torch.where(mask, x @ w_enc.t() + b_enc, 0.0)
    return squared_error(x, feature_acts @ w_dec + b_dec) + 0.3 * weighted_l1(
        feature_acts, w_dec
    )


def sparse_loss(active, x, w_enc, b_enc, w_dec, b_dec):
    values = encode_on(active.support, active.values, x, w_enc, b_enc)
    penalty = weighted_l1_on(values, active.support.columns, w_dec, len(x))
    return reconstruct_on(active.support, values, w_dec, x - b_dec).loss + 0.3 * penalty


SELECTIONS = {
    "positive": lambda d_sae: Above(torch.zeros(d_sae, dtype=torch.float64)),
    "above thresholds": lambda d_sae: Above(torch.linspace(-0.5, 1, d_sae).double()),
    "top k": lambda d_sae: TopK(3),
    "k larger than what is positive": lambda d_sae: TopK(d_sae),
    "batch top k": lambda d_sae: BatchTopK(2),
    "k among some, of any sign": lambda d_sae: TopKAmong(torch.tensor([1, 4, 5, 11]), 3),
}


@pytest.mark.parametrize("name", SELECTIONS)
@pytest.mark.parametrize("bias", [-1.0, -99.0, 99.0], ids=["usual", "none positive", "all"])
def test_loss_and_every_gradient_of_a_selection_equal_dense_autograd(name, bias):
    x, weights = problem(bias=bias)
    x.requires_grad_()
    active = select.select(x, weights[0], weights[1], SELECTIONS[name](19))
    mask = dense(active._replace(values=torch.ones_like(active.values))) > 0
    expected_loss = dense_loss(mask, x, *weights)
    found_loss = sparse_loss(active, x, *weights)
    torch.testing.assert_close(found_loss, expected_loss, rtol=1e-12, atol=1e-12)
    expected = torch.autograd.grad(expected_loss, [x, *weights])
    found = torch.autograd.grad(found_loss, [x, *weights])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["positive", "above thresholds"])
def test_a_bound_keeps_the_entries_that_exceed_it(name):
    x, weights = problem()
    chosen = SELECTIONS[name](19)
    pre_acts = x @ weights[0].t() + weights[1]
    active = select.select(x, *weights[:2], chosen)
    expected = torch.where(pre_acts > chosen.bound, pre_acts, 0.0).detach()
    torch.testing.assert_close(dense(active), expected)


@pytest.mark.parametrize("k", [1, 3, 19, 40])
def test_top_k_is_torchs_topk_after_relu(k):
    x, weights = problem(batch=600)
    pre_acts = (x @ weights[0].t() + weights[1]).detach()
    top = pre_acts.topk(min(k, 19))
    expected = torch.zeros_like(pre_acts).scatter(1, top.indices, top.values.relu())
    active = select.select(x, *weights[:2], TopK(k))
    torch.testing.assert_close(dense(active), expected)
    counts = active.support.row_ends.diff()
    assert torch.equal(counts.long(), (expected > 0).sum(1))


@pytest.mark.parametrize("d_sae", [5, 32, 33, 100, 1000])
def test_top_k_of_rows_whose_sizes_differ_a_thousandfold(d_sae):
    # The rows that give the guess are small; the later ones are all above or all below it.
    pre_acts = draws(d_sae)(90, d_sae)
    pre_acts[30:60] *= 1000
    pre_acts[60:] /= 1000
    pre_acts[70] = -1.0
    bias = draws(1)(d_sae)
    # Rows that are their own products.
    active = select.select(pre_acts - bias, torch.eye(d_sae).double(), bias, TopK(4))
    pre_acts = pre_acts - bias + bias
    top = pre_acts.topk(4)
    expected = torch.zeros_like(pre_acts).scatter(1, top.indices, top.values.relu())
    assert torch.equal(dense(active), expected)


def test_of_equal_entries_exactly_k_are_kept_and_the_first_ones():
    pre_acts = torch.ones(40, 50, dtype=torch.float64)
    pre_acts[:, 20] = 2.0
    bias = torch.zeros_like(pre_acts[0])
    support = select.select(pre_acts, torch.eye(50).double(), bias, TopK(4)).support
    assert support.row_ends.diff().tolist() == [4] * 40
    assert support.columns.view(40, 4).tolist() == [[0, 1, 2, 20]] * 40


def test_batch_top_k_keeps_the_largest_of_the_whole_batch_and_the_first_of_equals():
    x, weights = problem(batch=50)
    pre_acts = (x @ weights[0].t() + weights[1]).detach()
    active = select.select(x, *weights[:2], BatchTopK(2))
    least = pre_acts.flatten().topk(100).values[-1]
    torch.testing.assert_close(dense(active), torch.where(pre_acts >= least, pre_acts, 0.0))
    same = torch.ones(6, 1, dtype=torch.float64)
    weight = torch.ones(5, 1, dtype=torch.float64)
    active = select.select(same, weight, torch.zeros(5, dtype=torch.float64), BatchTopK(2))
    assert active.support.row_ends.tolist() == [0, 5, 10, 12, 12, 12, 12]


def test_batch_top_k_looks_again_when_the_sample_misleads():
    x, weights = problem(batch=1024, d_sae=500)
    # The sample is every fourth row.
    x[::4] *= 1000
    weights = [w.detach() for w in weights]
    guess = BatchTopK(20)._careful_guess(x, *weights[:2])
    active = select.select(x, *weights[:2], BatchTopK(20))
    pre_acts = x @ weights[0].t() + weights[1]
    assert (pre_acts > guess).sum() < 1024 * 20
    least = pre_acts.flatten().topk(1024 * 20).values[-1]
    torch.testing.assert_close(dense(active), torch.where(pre_acts >= least, pre_acts, 0.0))


@pytest.mark.parametrize("name", SELECTIONS)
def test_blocks_of_rows_change_nothing(name, monkeypatch):
    x, weights = problem(batch=29)
    whole = select.select(x, *weights[:2], SELECTIONS[name](19))
    monkeypatch.setattr(screen, "MIN_BLOCK_ROWS", 4)
    monkeypatch.setattr(screen, "BLOCK_BYTES", 1)
    parts = select.select(x, *weights[:2], SELECTIONS[name](19))
    assert torch.equal(whole.support.columns, parts.support.columns)
    assert torch.equal(whole.support.row_ends, parts.support.row_ends)
    torch.testing.assert_close(whole.values, parts.values, rtol=1e-12, atol=1e-12)


def test_among_some_latents_entries_of_any_sign_are_kept_and_no_others():
    x, weights = problem(bias=-5.0)
    some = torch.tensor([1, 4, 5, 11])
    active = select.select(x, *weights[:2], TopKAmong(some, 3))
    pre_acts = (x @ weights[0].t() + weights[1]).detach()[:, some]
    kept = dense(active)[:, some]
    assert torch.equal(active.support.row_ends.diff(), torch.full((13,), 3, dtype=torch.int32))
    torch.testing.assert_close(kept.sum(1), pre_acts.sum(1) - pre_acts.amin(1))


def test_a_row_without_active_latents_reconstructs_to_nothing():
    x, weights = problem()
    with torch.no_grad():
        x[3] = 0
        weights[1].clamp_(max=-0.1)
    active = select.select(x, *weights[:2], SELECTIONS["positive"](19))
    assert active.support.row_ends[3] == active.support.row_ends[4]
    target = (x - weights[3]).detach()
    found = reconstruct_on(active.support, active.values, weights[2], target)
    torch.testing.assert_close(found.error[3], -target[3])


def test_an_activation_of_exactly_zero_is_not_active_and_gets_no_gradient():
    x = torch.ones(1, 1, dtype=torch.float64)
    weight = torch.tensor([[1.0], [1.0]], dtype=torch.float64, requires_grad=True)
    bias = torch.tensor([-1.0, 0.0], dtype=torch.float64)
    active = select.select(x, weight, bias, SELECTIONS["positive"](2))
    assert active.support.columns.tolist() == [1]
    values = encode_on(active.support, active.values, x, weight, bias)
    decoder = torch.ones(2, 1, dtype=torch.float64)
    loss = reconstruct_on(active.support, values, decoder, 3 * x).loss
    (grad,) = torch.autograd.grad(loss, weight)
    assert grad[0] == 0
    assert grad[1] != 0


def test_nested_levels_are_the_prefixes_of_the_dictionary_and_so_are_their_gradients():
    x, weights = problem(batch=17, d_sae=23, bias=0.0)
    ends, level_weights = torch.tensor([3, 4, 11, 23]), torch.tensor([0.4, 0.1, 0.2, 0.3])
    level_weights = level_weights.double()
    active = select.select(x, *weights[:2], TopK(6))
    mask = dense(active._replace(values=torch.ones_like(active.values))) > 0
    feature_acts = torch.where(mask, x @ weights[0].t() + weights[1], 0.0)
    prefixes = [feature_acts[:, :e] @ weights[2][:e] + weights[3] for e in ends]
    errors = torch.stack([squared_error(x, x_hat) for x_hat in prefixes])
    expected = torch.autograd.grad(errors @ level_weights, weights)
    values = encode_on(active.support, active.values, x, *weights[:2])
    target = x - weights[3]
    level = torch.bucketize(active.support.columns, ends, right=True)
    levels = Levels(level, level_weights)
    found = reconstruct_on(active.support, values, weights[2], target, levels)
    torch.testing.assert_close(found.mse, errors.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.error, (prefixes[-1] - x).detach())
    for a, b in zip(torch.autograd.grad(found.loss, weights), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_support_lists_entries_by_row_and_by_latent_and_counts_them():
    active = torch.rand(11, 6, generator=torch.Generator().manual_seed(1)) > 0.6
    support = support_of(active.sum(1), torch.where(active)[1].int(), 6)
    values = torch.arange(int(active.sum()), dtype=torch.float32) + 1
    filled = torch.zeros(11, 6)
    filled[active] = values
    assert torch.equal(support.matrix(values).to_dense(), filled)
    assert torch.equal(support.rows(), torch.where(active)[0])
    assert torch.equal(support.counts().long(), active.sum(0))
    by_latent = torch.where(active.t())
    assert torch.equal(support.rows_by_column.long(), by_latent[1])
    assert torch.equal(values[support.by_column], filled.t()[by_latent])


@pytest.mark.slow
def test_adam_on_unit_rows_is_torchs_adam_with_projection_and_normalisation():
    draw = draws()
    weight = torch.nn.functional.normalize(draw(9, 5), dim=1)
    expected = weight.clone().requires_grad_()
    found, mean, square = weight.clone(), torch.zeros_like(weight), torch.zeros_like(weight)
    optimizer = torch.optim.Adam([expected], lr=0.1, betas=(0.8, 0.9))
    for step in range(1, 4):
        grad = draw(9, 5)
        along = (grad * expected.detach()).sum(1, keepdim=True)
        expected.grad = grad - along * expected.detach()
        optimizer.step()
        with torch.no_grad():
            expected /= expected.norm(dim=1, keepdim=True)
        cpu_kernels.adam_unit_rows_(
            found, grad, mean, square, step=step, lr=0.1, betas=(0.8, 0.9), eps=1e-8
        )
        torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("matmul", ["float32", "bfloat16"])
def test_weights_may_lie_the_other_way_round_in_memory(matmul):
    x, weights = problem(d_in=40)
    x, (weight, bias) = x.float(), (w.detach().float() for w in weights[:2])
    expected = select.select(x, weight, bias, TopK(3), matmul)
    turned = weight.t().contiguous().t()
    found = select.select(x.t().contiguous().t(), turned, bias, TopK(3), matmul)
    assert torch.equal(found.support.columns, expected.support.columns)
    assert torch.equal(found.values, expected.values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_transposed_product_sums_each_latents_rows_however_unevenly_they_fire(dtype):
    generator = torch.Generator().manual_seed(0)
    # The first latents fire in all rows, the last ones never.
    share = torch.linspace(1.3, -0.3, 37)
    active = torch.rand(200, 37, generator=generator) < share
    support = support_of(active.sum(1), torch.where(active)[1].int(), 37)
    values = torch.randn(int(active.sum()), generator=generator, dtype=dtype)
    dense_rows = torch.randn(200, 19, generator=generator, dtype=dtype)
    ends, rows = support.column_ends, support.rows_by_column
    found = cpu_kernels.transposed_product(ends, rows, values[support.by_column], dense_rows)
    whole = support.matrix(values).to_dense().double().t() @ dense_rows.double()
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(found.double(), whole, rtol=0, atol=tolerance)
    torch.set_num_threads(1)
    alone = cpu_kernels.transposed_product(ends, rows, values[support.by_column], dense_rows)
    assert torch.equal(alone, found)
