"""The buffer that mixes rows: each once, in an order that the seed and their order decide."""

from collections.abc import Iterator

import pytest
import torch

from sae.base.errors import UserError
from sae.rows.shuffle import MixingBuffer, Rows

DOCUMENT = 32


def numbered(*sizes: int, start: int = 0) -> Iterator[Rows]:
    """Endless blocks of rows that hold their number, of these sizes in turn."""
    while True:
        for size in sizes:
            yield (torch.arange(start, start + size).double()[:, None],)
            start += size


def drawn(buffer: MixingBuffer, blocks: Iterator[Rows], size: int, n: int) -> torch.Tensor:
    """The numbers of `n` batches, (batch, row)."""
    return torch.stack([buffer.batch(blocks, size)[0][:, 0] for _ in range(n)]).long()


@pytest.mark.parametrize(("capacity", "size"), [(1000, 64), (100, 60), (64, 64)])
def test_every_row_is_given_once_and_only_a_capacity_of_them_is_held(capacity, size):
    buffer, blocks, n = MixingBuffer(capacity, seed=3), numbered(77), 100
    found = drawn(buffer, blocks, size, n).flatten()
    assert len(found.unique()) == n * size
    # What it took and did not give is what it holds.
    taken = buffer.n_taken
    assert taken == capacity + (n - 1) * size
    assert int(found.max()) < taken
    state = buffer.state_dict()
    (held,) = state["held"]
    given = torch.zeros(capacity, dtype=torch.bool)
    given[state["free"]] = True
    left = held[~given, 0].long()
    assert torch.equal(torch.cat([found, left]).sort().values, torch.arange(taken))


def test_the_order_depends_on_the_seed_and_not_on_the_blocks():
    same = [
        drawn(MixingBuffer(500, seed=1), numbered(*sizes), 32, 40)
        for sizes in ((1,), (77, 500, 3), (10_000,), (64, 0, 64))
    ]
    assert all(torch.equal(found, same[0]) for found in same)
    other = drawn(MixingBuffer(500, seed=2), numbered(77), 32, 40)
    assert not torch.equal(other, same[0])


def test_a_batch_holds_as_many_documents_as_a_uniform_draw_of_the_rows_held():
    capacity, size, n = 4096, 64, 200
    found = drawn(MixingBuffer(capacity, seed=5), numbered(100), size, n)
    documents = torch.tensor([len(batch.unique()) for batch in found // DOCUMENT])
    # Rows that stay behind spread a batch over more documents than are held at once.
    uniform = torch.stack(
        [torch.randperm(capacity, generator=torch.Generator().manual_seed(i)) for i in range(n)]
    )[:, :size]
    expected = torch.tensor([len(batch.unique()) for batch in uniform // DOCUMENT])
    assert documents.double().mean() > 0.98 * expected.double().mean()
    # The first batches are drawn from the first rows, and every position comes alike.
    assert int(found[0].max()) > 0.9 * capacity
    positions = torch.bincount((found % DOCUMENT).flatten(), minlength=DOCUMENT)
    mean = size * n / DOCUMENT
    assert float((positions - mean).abs().max()) < 5 * mean**0.5


def test_a_draw_takes_each_row_held_with_the_same_probability():
    capacity, size, n = 40, 20, 4000
    counts = torch.zeros(capacity)
    for seed in range(n):
        counts[drawn(MixingBuffer(capacity, seed), numbered(capacity), size, 1)[0]] += 1
    spread = (n * 0.5 * 0.5) ** 0.5
    assert float((counts - n * size / capacity).abs().max()) < 5 * spread


@pytest.mark.parametrize("at", [1, 2, 17])
def test_a_buffer_goes_on_from_its_state_bit_for_bit(at, tmp_path):
    sizes, size = 77, 32
    blocks, buffer = numbered(sizes), MixingBuffer(500, seed=1)
    whole = drawn(MixingBuffer(500, seed=1), numbered(sizes), size, 40)
    before = drawn(buffer, blocks, size, at)
    assert torch.equal(before, whole[:at])
    torch.save(buffer.state_dict(), tmp_path / "state.pt")
    other = MixingBuffer(500, seed=9)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    n_blocks = -(-other.n_taken // sizes)
    after = drawn(other, numbered(sizes, start=n_blocks * sizes), size, 40 - at)
    assert torch.equal(after, whole[at:])


def test_rows_of_two_hooks_stay_together_and_keep_their_types():
    blocks = ((x.half(), (2 * x).bfloat16().repeat(1, 3)) for (x,) in numbered(50))
    buffer = MixingBuffer(100, seed=0)
    for _ in range(3):
        x, y = buffer.batch(blocks, 16)
        assert (x.dtype, y.dtype) == (torch.float16, torch.bfloat16)
        assert torch.equal((2 * x).bfloat16().repeat(1, 3), y)


def test_a_batch_larger_than_the_buffer_is_refused():
    with pytest.raises(UserError, match="a batch of 5 rows is more than the 4 rows held"):
        MixingBuffer(4, seed=0).batch(numbered(10), 5)
