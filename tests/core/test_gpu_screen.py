"""Choosing entries as a GPU does it: on one, or elsewhere under Triton's interpreter.

What is chosen is compared with all values, as the GPU computes them, chosen from one by one.
"""

from functools import cache

import pytest
import torch
from support.interpreted import DEVICES, INTERPRETED, compiled, passes_interpreted

from sae.core import screen

pytest.importorskip("triton")

from sae.core import gpu_screen, triton_kernels, triton_screen
from sae.core.gpu_screen import screened

# The interpreter computes with numpy, which warns of what is not a number.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

# Two blocks of rows, as small as they can be.
ROWS, BATCH = (8, 14) if INTERPRETED else (32, 40)
D_IN, D_SAE = 70, 90
MATMULS = ("float32", "bfloat16", "int8")


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch):
    """The interpreter takes as long for a small tile as for a large one."""
    if INTERPRETED:
        monkeypatch.setattr(triton_kernels, "PROGRAMS", 1)
        monkeypatch.setattr(triton_kernels, "ENTRIES", 32)
        monkeypatch.setattr(triton_screen, "SIDE", 16)
        monkeypatch.setattr(gpu_screen, "ROWS", ROWS)


@pytest.fixture
def settings():
    """Torch's settings for products on a GPU; what a test changes is put back."""
    names = ("allow_tf32", "allow_bf16_reduced_precision_reduction")
    matmul = torch.backends.cuda.matmul
    before = {name: getattr(matmul, name) for name in names}
    yield matmul
    for name, value in before.items():
        setattr(matmul, name, value)


@pytest.fixture
def narrow(monkeypatch):
    """With narrow blocks small matrices take every loop several times."""
    for name, size in (("STRETCH", 32), ("SIDE", 8), ("GROUPS", 1)):
        monkeypatch.setattr(triton_screen, name, size)
    monkeypatch.setattr(gpu_screen, "CHUNK", 1024)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def usual(device):
    """Rows around something that is not zero, with a coordinate that is large in all."""
    x, weight = random(BATCH, D_IN) + 0.5, random(D_SAE, D_IN, seed=1)
    x[:, 7] += 30
    bias = random(D_SAE, seed=2) - 5 - 30 * weight[:, 7]
    return [t.to(device) for t in (x, weight, bias, torch.zeros(D_SAE))]


def odd(device):
    """Everything that may be strange about a row or a latent."""
    x, weight, bias, bound = usual(device)
    x[0, 3] = 1e4
    x[1] = 0
    x[2] *= 1e-30
    x[3, 5] = torch.nan
    x[4, 5] = torch.inf
    x[5] = 1e25
    x[6] = x[7]
    x[8] *= 1e15
    weight[10:40], bias[10:40] = weight[10], bias[10]
    weight[41, 3] = 1e6
    weight[42] = 0
    weight[43] *= 1e-30
    weight[44] *= 1e25
    weight[45, 0] = torch.nan
    bias[46:49] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    bound[50:53] = torch.tensor([torch.inf, -torch.inf, 1e30])
    bias[53] = bound[53] = 2e5
    return x, weight, bias, bound


def near(device):
    """Bounds that an entry each reaches, or exceeds by its last bit, and latents like twins."""
    x, weight, bias, _ = usual(device)
    bias += 5
    weight[60:] = weight[:30] * (1 + 2.0**-20 * random(30, 1, seed=3).to(device))
    bias[60:] = bias[:30]
    at = torch.arange(D_SAE, device=device)
    bound = all_values(x, weight, bias)[at % BATCH, at]
    bound[::2] = torch.nextafter(bound[::2], bound[::2] - 1)
    return x, weight, bias, bound


def whole(device):
    """Small whole numbers, so that bfloat16 rounds the products only, and many are equal."""
    numbers = random(BATCH + D_SAE, D_IN, seed=4).mul(2).round().to(device)
    x, weight = numbers[:BATCH], numbers[BATCH:]
    weight[:45], weight[45] = weight[45:] * 8 + weight[:45], 0
    values = x @ weight.t()
    bias = torch.zeros(D_SAE, device=device)
    at = torch.arange(D_SAE, device=device)
    return x, weight, bias, values[at % BATCH, at] - 0.25


def cancelling(device):
    """Each latent is orthogonal to a row up to rounding, so that this decides on signs."""
    x, weight, bias, bound = usual(device)
    rows = x[torch.arange(D_SAE, device=device) % BATCH].double()
    share = (rows * weight).sum(1) / rows.square().sum(1)
    return x, (weight - share[:, None] * rows).float(), 0 * bias, bound


CASES = {
    "usual": usual, "odd": odd, "near": near, "whole": whole, "cancelling": cancelling
}  # fmt: skip


def all_values(x, weight, bias):
    """Every pre-activation as the GPU computes it."""
    n, m = len(x), len(weight)
    ends = torch.arange(n + 1, dtype=torch.int32, device=x.device) * m
    columns = torch.arange(m, dtype=torch.int32, device=x.device).repeat(n)
    return triton_kernels.sampled_product(ends, columns, x, weight).view(n, m) + bias


@cache
def problem(case, device, dtype=torch.float32):
    """Return the tensors of a case, and all values."""
    tensors = [t.to(dtype) for t in CASES[case](device)]
    return tensors, all_values(*tensors[:3])


def expected(values, bound, k):
    """Return whether each entry is to be chosen: of equal ones the first are."""
    if not k:
        return values > bound
    values = values.where(~values.isnan(), -torch.inf)
    order = values.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return torch.zeros_like(values, dtype=torch.bool).scatter(1, order, True) & (values > 0)


def joined(parts):
    """Return counts, columns and values of all blocks, and how many entries were left open."""
    lists = [torch.cat(one) for one in list(zip(*parts, strict=True))[:3]]
    return *lists, sum(part.candidates for part in parts)


def check(found, values, chosen):
    """What was found is what is to be chosen, to the bit."""
    counts, columns, found_values, candidates = found
    assert torch.equal(counts, chosen.sum(1))
    assert columns.dtype == torch.int32
    assert torch.equal(columns.long(), torch.where(chosen)[1])
    assert torch.equal(found_values, values[chosen])
    assert candidates >= len(columns)


@pytest.mark.parametrize("matmul", MATMULS)
@pytest.mark.parametrize("k", [0, 5])
@pytest.mark.parametrize("case", CASES)
def test_every_product_leads_to_the_entries_that_exact_values_choose(case, k, matmul, device):
    (x, weight, bias, bound), values = problem(case, device)
    bound = torch.zeros_like(bound) if k else bound
    found = joined(screened(x, weight, bias, bound, k, matmul, 99))
    check(found, values, expected(values, bound, k))


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("matmul", MATMULS)
@pytest.mark.parametrize(("case", "k"), [("odd", 0), ("odd", 5), ("whole", D_SAE)])
def test_blocks_make_no_difference(case, k, matmul, device):
    (x, weight, bias, bound), values = problem(case, device)
    bound = torch.zeros_like(bound) if k else bound
    found = joined(screened(x, weight, bias, bound, k, matmul, ROWS))
    check(found, values, expected(values, bound, k))


def test_exact_values_are_those_of_float64_up_to_rounding(device):
    (x, weight, bias, _), values = problem("usual", device)
    x, weight, bias = x.double(), weight.double(), bias.double()
    off = (values - (x @ weight.t() + bias)).abs()
    assert (off <= D_IN * 2.0**-24 * (x.abs() @ weight.abs().t() + bias.abs())).all()


@pytest.mark.parametrize("k", [0, 5])
def test_a_product_leaves_few_entries_open_that_are_not_chosen(k, device):
    (x, weight, bias, bound), _ = problem("usual", device)
    found = {m: joined(screened(x, weight, bias, bound, k, m, 99)) for m in MATMULS}
    chosen = len(found["float32"][1])
    assert 0 < chosen < 0.4 * BATCH * D_SAE
    assert found["float32"][3] == chosen
    assert all(chosen < found[m][3] < 2 * chosen for m in MATMULS[1:])


@pytest.mark.parametrize("matmul", MATMULS)
def test_what_cannot_be_active_is_never_left_open(matmul, device):
    (x, weight, bias, bound), _ = problem("usual", device)
    never = torch.full_like(bound, torch.inf)
    for inputs in ((x, weight, bias, never), (0 * x, weight, bound - 1, bound)):
        assert joined(screened(*inputs, 0, matmul, 99))[3] == 0


@pytest.mark.parametrize("matmul", MATMULS)
@pytest.mark.parametrize("k", [0, 5])
def test_inputs_may_be_cut_to_ten_bits(k, matmul, device, settings, monkeypatch):
    multiply = torch.mm

    def cut(a, b, **out):
        # As TF32 does, in the worst case.
        narrow = [(t.view(torch.int32) & -(1 << 13)).view(torch.float32) for t in (a, b.t())]
        return multiply(narrow[0], narrow[1].t(), **out)

    if matmul != "bfloat16":
        monkeypatch.setattr(torch, "mm", cut)
    (x, weight, bias, bound), values = problem("near", device)
    bound = torch.zeros_like(bound) if k else bound
    open_entries = []
    for allowed in (False, True):
        settings.allow_tf32 = allowed
        found = joined(screened(x, weight, bias, bound, k, matmul, 99))
        open_entries.append(found[3])
    check(found, values, expected(values, bound, k))
    assert (open_entries[0] < open_entries[1]) is (matmul != "bfloat16")


@pytest.mark.parametrize("matmul", MATMULS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_types_are_computed_in_float32_at_least(dtype, matmul, device):
    (x, weight, bias, bound), _ = problem("usual", device, dtype)
    wide = torch.promote_types(dtype, torch.float32)
    values = all_values(x.to(wide), weight.to(wide), bias.to(wide))
    found = joined(screened(x, weight, bias, bound, 5, matmul, 99))
    assert found[2].dtype == dtype
    check(found, values.to(dtype), expected(values, bound, 5))


@pytest.mark.parametrize("matmul", MATMULS)
@pytest.mark.parametrize(
    ("batch", "d_in", "d_sae"), [(0, 5, 9), (3, 5, 0), (1, 1, 1), (17, 64, 8)]
)
def test_few_rows_or_latents_are_enough(batch, d_in, d_sae, matmul, device):
    x, weight = random(batch, d_in).to(device), random(d_sae, d_in, seed=1).to(device)
    bias = torch.zeros(d_sae, device=device)
    values = all_values(x, weight, bias)
    k = min(3, d_sae)
    found = joined(screened(x, weight, bias, bias, k, matmul, 99))
    check(found, values, expected(values, bias, k))


@pytest.mark.parametrize("matmul", MATMULS)
def test_strides_make_no_difference(matmul, device):
    tensors, values = problem("usual", device)
    x, weight, bias, bound = [t.repeat_interleave(2, -1)[..., ::2] for t in tensors]
    assert not x.is_contiguous()
    found = joined(screened(x, weight, bias, bound, 5, matmul, 99))
    check(found, values, expected(values, bound, 5))


def test_settings_of_torch_stay_what_they_were(device, settings):
    (x, weight, bias, bound), _ = problem("usual", device)
    for allowed in (True, False):
        settings.allow_bf16_reduced_precision_reduction = allowed
        screened(x, weight, bias, bound, 0, "bfloat16", 99)
        assert settings.allow_bf16_reduced_precision_reduction is allowed


@pytest.mark.parametrize("k", [1, 4, 30])
@pytest.mark.parametrize("groups", [8, 1])
def test_what_is_certainly_reached_is_reached_by_as_many(groups, k, device, monkeypatch):
    monkeypatch.setattr(triton_screen, "STRETCH", 32)
    monkeypatch.setattr(triton_screen, "GROUPS", groups)
    (x, weight, bias, bound), _ = problem("usual", device)
    ((_, shown),) = gpu_screen.Product.of(x, weight, bias, bound, "int8").blocks(99)
    far, size, unit = shown.per_row.t()[..., None]
    shift, slack, norm, rough, latent_unit = shown.per_latent
    stands = shown.products[:, :D_SAE] * unit * latent_unit
    lower = stands + shift - slack - far * norm - size * rough
    kth = lower.topk(k).values[:, -1].clamp_min(0)
    reached = triton_screen.certainly_reached(shown, k)
    assert (reached <= kth + 1e-4).all()
    assert (reached > 0).all() or k == 30
    if groups * k >= D_SAE:
        # There is a group for each latent.
        assert (reached >= kth - 1e-4).all()


if not INTERPRETED:

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
    def test_a_gpu_chooses_the_same_with_every_product_that_it_has():
        device = torch.device("cuda", torch.cuda.current_device())
        names = screen.matmuls_here(device, torch.float32)
        assert {"float32", "bfloat16"} <= set(names)
        for case in CASES:
            (x, weight, bias, bound), values = problem(case, device)
            for matmul in (*names, "auto"):
                for k in (0, 5):
                    least = torch.zeros_like(bound) if k else bound
                    found = screen.chosen(x, weight, bias, least, k, matmul)
                    check(found, values, expected(values, least, k))
        assert screen.fastest(256, 8192, 4096, torch.float32, device) in names

    @pytest.mark.slow
    def test_every_test_of_this_file_passes_under_the_interpreter():
        passes_interpreted(__file__)

    @pytest.mark.slow
    @pytest.mark.parametrize("matmul", MATMULS)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_every_kernel_compiles_for_a_gpu(dtype, matmul, monkeypatch, tmp_path):
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
        calls = []
        monkeypatch.setattr(
            triton_kernels, "launch", lambda *args, **constants: calls.append((args, constants))
        )
        x, weight, bias, bound = [t.to(dtype) for t in usual("cpu")]
        product = gpu_screen.Product.of(x, weight, bias, bound, matmul)
        for _, shown in product.blocks(99):
            least = triton_screen.certainly_reached(shown, 5)
            counts = triton_screen.count_open(shown, least)
            triton_screen.fill_open(shown, least, counts, 5)
        assert len(calls) == 3
        for (kernel, _, *args), constants in calls:
            assert compiled(kernel, args, constants).asm["cubin"]
