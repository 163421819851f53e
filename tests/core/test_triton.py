"""The GPU kernels against dense torch: on a GPU compiled, elsewhere under Triton's interpreter.

The interpreter must be asked for before triton is imported, and stays on for the process. So
without a GPU one test runs this file again in a process of its own, and another compiles
every kernel for a GPU that is not there.
"""

import pytest
import torch
from support.interpreted import DEVICES, INTERPRETED, compiled, passes_interpreted
from torch.nn.functional import normalize
from torch.testing import assert_close

EXACT = {"rtol": 1e-12, "atol": 1e-12}
NEAR = {"rtol": 1e-5, "atol": 1e-5}

pytest.importorskip("triton")

from sae.core import triton_kernels as kernels  # noqa: E402


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture(params=["wide", "narrow"])
def blocks(request, monkeypatch):
    """With narrow blocks small matrices take every loop several times."""
    if request.param == "narrow":
        for name, size in (("WIDEST", 16), ("ENTRIES", 4), ("PIECE", 4)):
            monkeypatch.setattr(kernels, name, size)


def random(device, *shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)


def activations(device, batch, d_sae, seed=0, dtype=torch.float64):
    """Sparse rows: number 1 is empty; latents 0 and 5 are silent, 3 nearly always active."""
    acts = (random("cpu", batch, d_sae, seed=seed) - 0.8).relu()
    if batch:
        acts[:, 3] = 1.5
        acts[:, [0, 5]] = 0
    if batch > 1:
        acts[1] = 0
    return acts.to(device, dtype)


def ends(counts):
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()


def by_row(acts):
    rows, columns = torch.where(acts != 0)
    return ends((acts != 0).sum(1)), columns.int(), acts[rows, columns]


SHAPES = [(13, 35, 19), (5, 7, 40), (1, 16, 6), (0, 7, 19)]


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize(("batch", "d", "d_sae"), SHAPES)
def test_decoding_equals_the_dense_product(device, batch, d, d_sae):
    acts, weight = activations(device, batch, d_sae), random(device, d_sae, d)
    assert_close(kernels.decode(*by_row(acts), weight), acts @ weight, **EXACT)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize(("batch", "d", "d_sae"), SHAPES)
def test_the_sampled_product_is_the_dense_one_at_each_entry(device, batch, d, d_sae):
    acts = activations(device, batch, d_sae)
    a, weight = random(device, batch, d), random(device, d_sae, d, seed=1)
    row_ends, columns, _ = by_row(acts)
    found = kernels.sampled_product(row_ends, columns, a, weight)
    assert_close(found, (a @ weight.t())[acts != 0], **EXACT)


@pytest.mark.parametrize("splits", [1, 3])
def test_the_sampled_product_does_not_depend_on_how_rows_are_split(device, splits, monkeypatch):
    monkeypatch.setattr(kernels, "ENTRIES", 2)
    monkeypatch.setattr(kernels, "PROGRAMS", splits * 5)
    acts, a, weight = random(device, 5, 23), random(device, 5, 7), random(device, 23, 7)
    row_ends, columns, _ = by_row(acts)
    found = kernels.sampled_product(row_ends, columns, a, weight)
    assert_close(found, (a @ weight.t()).flatten(), **EXACT)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize(("batch", "d", "d_sae"), SHAPES)
def test_the_transposed_product_equals_the_dense_one(device, batch, d, d_sae):
    acts, dense = activations(device, batch, d_sae), random(device, batch, d)
    column_ends, rows, values = by_row(acts.t())
    found = kernels.transposed_product(column_ends, rows, values, dense)
    assert_close(found, acts.t() @ dense, **EXACT)
    again = kernels.transposed_product(column_ends, rows, values, dense)
    assert torch.equal(again, found)


@pytest.mark.parametrize("piece", [1, 3, 4, 100])
@pytest.mark.parametrize(
    "counts", [[12], [8, 0, 0, 4], [0, 3, 12, 0, 1, 7, 4, 0], [1] * 9, [5, 8, 12, 12, 0]]
)
def test_a_latents_sum_does_not_depend_on_where_the_pieces_are_cut(
    device, counts, piece, monkeypatch
):
    monkeypatch.setattr(kernels, "ENTRIES", 2)
    monkeypatch.setattr(kernels, "PIECE", piece)
    acts = random(device, 12, len(counts))
    for latent, count in enumerate(counts):
        acts[count:, latent] = 0
    dense = random(device, 12, 5, seed=1)
    found = kernels.transposed_product(*by_row(acts.t()), dense)
    assert_close(found, acts.t() @ dense, **EXACT)


def test_a_frequent_latent_is_summed_in_pieces_and_a_rare_one_is_not(device, monkeypatch):
    monkeypatch.setattr(kernels, "PIECE", 4)
    sizes = []
    launch = kernels.launch

    def watched(kernel, grid, *args, **constants):
        sizes.append(grid[0])
        launch(kernel, grid, *args, **constants)

    monkeypatch.setattr(kernels, "launch", watched)
    for batch in (3, 9):
        acts = torch.ones(batch, 2, device=device)
        kernels.transposed_product(*by_row(acts.t()), random(device, batch, 5))
    assert sizes == [0, 2, 18 // 4, 2]


def test_nothing_active_gives_zeros_and_empty_lists(device):
    acts = torch.zeros(5, 19, device=device)
    dense, weight = random(device, 5, 7), random(device, 19, 7)
    row_ends, columns, values = by_row(acts)
    assert torch.equal(kernels.decode(row_ends, columns, values, weight), 0 * dense)
    assert kernels.sampled_product(row_ends, columns, dense, weight).shape == (0,)
    assert torch.equal(kernels.transposed_product(*by_row(acts.t()), dense), 0 * weight)


def strided(tensor):
    """The same numbers, with gaps between them and the axes in the other order in memory."""
    wide = tensor.new_full(
        (*tensor.t().shape, 2), torch.nan if tensor.is_floating_point() else 9
    )
    wide[..., 0] = tensor.t()
    return wide[..., 0].t()


def test_strides_make_no_difference(device):
    acts, dense = activations(device, 5, 19), random(device, 5, 7)
    weight = random(device, 19, 7)
    support, turned = by_row(acts), by_row(acts.t())
    calls = [
        (kernels.decode, (*support, weight)),
        (kernels.sampled_product, (*support[:2], dense, weight)),
        (kernels.transposed_product, (*turned, dense)),
    ]
    for launcher, arguments in calls:
        odd = [strided(a) if torch.is_tensor(a) else a for a in arguments]
        assert not any(a.is_contiguous() for a in odd if torch.is_tensor(a))
        assert_close(launcher(*odd), launcher(*arguments), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_short_floats_are_summed_in_float32(device, dtype, monkeypatch):
    monkeypatch.setattr(kernels, "ENTRIES", 2)
    monkeypatch.setattr(kernels, "WIDEST", 16)
    # A short float that has reached 64 does not notice 0.02.
    terms = torch.tensor([64.0, -64.0] * 8 + [0.02] * 48, device=device).to(dtype)
    ones = torch.ones(2, 64, device=device, dtype=dtype)
    expected, close = terms.double().sum(), {"rtol": 1e-2, "atol": 0}
    support, column = by_row(ones), terms[:, None].repeat(1, 7)
    found = kernels.decode(*support, column)
    assert found.dtype == dtype
    assert_close(found.double(), expected.expand(2, 7), **close)
    found = kernels.sampled_product(*support[:2], ones, terms.repeat(64, 1))
    assert found.dtype == dtype
    assert_close(found.double(), expected.expand(128), **close)
    found = kernels.transposed_product(*by_row(ones.float()), column)
    assert found.dtype == torch.float32
    assert_close(found.double(), expected.expand(2, 7), **close)


def adam_in_torch(weight, grads, **settings):
    """Projected gradients, torch.optim.Adam, renormalised rows."""
    weight = weight.clone().requires_grad_()
    optimizer = torch.optim.Adam([weight], **settings)
    for grad in grads:
        rows = weight.detach()
        weight.grad = grad - rows * (grad * rows).sum(1, keepdim=True)
        optimizer.step()
        with torch.no_grad():
            weight.copy_(normalize(weight, dim=1))
    state = optimizer.state[weight]
    return weight.detach(), state["exp_avg"], state["exp_avg_sq"]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("d_sae", "d"), [(7, 70), (6, 16), (0, 7)])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, EXACT), (torch.float32, NEAR)])
def test_the_update_is_adams_on_the_sphere(device, d_sae, d, dtype, close, turned):
    settings = {"lr": 0.03, "betas": (0.8, 0.97), "eps": 1e-6}
    weight = normalize(random(device, d_sae, d, dtype=dtype), dim=1)
    grads = [random(device, d_sae, d, seed=seed, dtype=dtype) for seed in (1, 2, 3)]
    for grad in grads:
        grad[:2] = 0  # Nothing moves.
    expected = adam_in_torch(weight, grads, **settings)
    found = [weight.clone(), torch.zeros_like(weight), torch.zeros_like(weight)]
    if turned:
        found, grads = [strided(tensor) for tensor in found], [strided(grad) for grad in grads]
    for step, grad in enumerate(grads, 1):
        before = grad.clone()
        kernels.adam_unit_rows_(found[0], grad, *found[1:], step=step, **settings)
        assert torch.equal(grad, before)
    assert_close(tuple(found), expected, **close)
    assert_close(found[0].norm(dim=1), torch.ones_like(found[0][:, 0]), **close)
    if d_sae > 2:
        assert_close(found[0][:2], weight[:2], **close)
        assert (found[0][2:] - weight[2:]).abs().min(0).values.max() > 1e-3


def test_autograd_notices_that_the_update_changed_a_weight(device):
    weight = normalize(random(device, 3, 7), dim=1).requires_grad_()
    loss = weight.square().sum()
    zeros = torch.zeros_like(weight).detach()
    settings = {"step": 1, "lr": 1.0, "betas": (0.9, 0.99), "eps": 1e-8}
    kernels.adam_unit_rows_(weight, zeros, zeros.clone(), zeros.clone(), **settings)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


if not INTERPRETED:

    @pytest.mark.slow
    def test_every_test_of_this_file_passes_under_the_interpreter():
        passes_interpreted(__file__)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("dtype", "d_sae", "d"),
        [
            (torch.float32, 64, 48),
            (torch.float32, 1, 1),
            (torch.float64, 64, 48),
            (torch.bfloat16, 64, 48),
        ],
    )
    def test_every_kernel_compiles_for_a_gpu(dtype, d_sae, d, monkeypatch, tmp_path):
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
        calls = {}

        def watched(kernel, grid, *args, **constants):
            calls.setdefault(kernel.__name__, []).append((kernel, args, constants))

        monkeypatch.setattr(kernels, "launch", watched)
        monkeypatch.setattr(kernels, "PIECE", 4)
        acts = random("cpu", 13, d_sae, dtype=dtype)
        dense, weight = random("cpu", 13, d, dtype=dtype), random("cpu", d_sae, d, dtype=dtype)
        support, turned = by_row(acts), by_row(acts.t())
        kernels.decode(*support, weight)
        kernels.transposed_product(*turned, dense.float())
        kernels.transposed_product(*turned[:2], turned[2].float(), dense)
        kernels.sampled_product(*support[:2], dense, weight)
        settings = {"step": 1, "lr": 1e-3, "betas": (0.9, 0.99), "eps": 1e-8}
        kernels.adam_unit_rows_(weight, weight, weight, weight, **settings)
        assert len(calls) == 4
        for launches in calls.values():
            for kernel, args, constants in launches:
                assert compiled(kernel, args, constants).asm["cubin"]
