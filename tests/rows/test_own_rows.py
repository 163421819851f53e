"""A user's own tensors as training rows: in their order, in batches, and what is refused."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from sae.base.errors import UserError
from sae.dictionary import Record
from sae.rows.own import OwnRows
from sae.rows.shuffle import Rows
from sae.rows.source import SAMPLE_ROWS, Asked

BATCH = 16


def numbered(n: int, width: int = 3) -> Tensor:
    """Rows that hold their number."""
    return torch.arange(n).float()[:, None].expand(n, width)


def blocks(n: int = 1000, size: int = 7) -> list[Tensor]:
    return list(numbered(n).split(size))


def own(rows: Iterable[Any], **others: Any) -> OwnRows:
    return OwnRows(rows, Asked(**{"batch_size": BATCH, **others}))


def taken(rows: OwnRows, n: int, first: int = 0) -> list[Rows]:
    return list(islice(rows.batches(first), n))


def numbers(batches: list[Rows]) -> list[int]:
    assert all(len(x) == BATCH for (x,) in batches)
    return torch.cat([x[:, 0] for (x,) in batches]).long().tolist()


@pytest.mark.parametrize("size", [1, 7, 16, 300, 1000])
def test_rows_come_in_their_order_whatever_their_blocks(size):
    rows = own(blocks(1000, size))
    assert numbers(taken(rows, 62)) == list(range(992))
    assert numbers(taken(own(iter(blocks(1000, size))), 62)) == list(range(992))


def test_the_sample_is_of_the_first_rows_and_they_are_trained_on(capsys):
    n = SAMPLE_ROWS + 500
    for given in (blocks(n, 999), iter(blocks(n, 999))):
        rows = own(given)
        for _ in range(2):
            (sample,) = rows.sample()
            assert torch.equal(sample, numbered(SAMPLE_ROWS))
        n_batches = n // BATCH
        assert numbers(taken(rows, n_batches)) == list(range(n_batches * BATCH))
        assert torch.equal(rows.sample()[0], sample)
    assert rows.held_out(100) is None


def test_an_iterator_is_not_read_ahead_of_the_sample():
    read = []

    def noted() -> Iterator[Tensor]:
        for part in blocks(40_000, 1000):
            read.append(len(part))
            yield part

    rows = own(noted())
    assert sum(read) == 17_000
    next(rows.batches(0))
    assert sum(read) == 17_000
    own(iter(blocks(40_000, 1000)), batch_size=20_000)


def test_what_can_be_gone_through_again_begins_again(capsys):
    rows = own(blocks(100))
    expected = [i % 100 for i in range(50 * BATCH)]
    assert numbers(taken(rows, 50)) == expected
    assert numbers(taken(rows, 50)) == expected
    said = capsys.readouterr().err
    assert said.count("train: the 100 rows have all been used, and are read again") == 2
    loader = DataLoader(TensorDataset(numbered(100)), batch_size=9)
    assert numbers(taken(own(loader), 50)) == expected


@pytest.mark.parametrize("first", [1, 3, 11])
def test_a_later_training_skips_what_was_seen(first):
    expected = numbers(taken(own(blocks(100)), 50))
    rows = own(blocks(100))
    rows.save(first)
    rows.forget()
    assert numbers(taken(rows, 50 - first, first)) == expected[first * BATCH :]
    expected = numbers(taken(own(iter(blocks(1000))), 50))
    found = taken(own(iter(blocks(1000))), 50 - first, first)
    assert numbers(found) == expected[first * BATCH :]


def test_an_iterator_that_ends_says_after_how_many_rows():
    rows = own(iter(blocks(100)))
    batches = rows.batches(2)
    assert numbers(list(islice(batches, 4))) == list(range(32, 96))
    with pytest.raises(UserError, match="the rows ended after 100, and training needs 112 and"):
        next(batches)
    with pytest.raises(UserError, match="these rows can be read only once"):
        rows.batches(0)
    with pytest.raises(UserError, match="the rows ended after 100, and training needs 1,616"):
        next(own(iter(blocks(100))).batches(100))


def test_what_is_empty_when_it_is_gone_through_again_ends_as_an_iterator_does():
    class Once:
        def __init__(self) -> None:
            self.given = blocks(100)

        def __iter__(self) -> Iterator[Tensor]:
            while self.given:
                yield self.given.pop(0)

    with pytest.raises(UserError, match="the rows ended after 0, and training needs 16"):
        next(own(Once()).batches(0))


def test_pairs_are_rows_of_a_transcoder():
    given = [(x, torch.cat([x, 2 * x], 1).double()) for x in blocks(100)]
    rows = own(given, hook_name="a", hook_name_out="b")
    assert [x.shape for x in rows.sample()] == [(100, 3), (100, 6)]
    for x, y in taken(rows, 20):
        assert torch.equal(torch.cat([x, 2 * x], 1).double(), y)
    assert rows.places == ("a", "b")
    assert rows.record == Record(transcoder=True, max_norm_multiple=None)
    assert rows.identity["widths"] == [3, 6]


def test_what_is_known_of_own_rows_is_said_and_no_more():
    rows = own([x.half().requires_grad_() for x in blocks(100)])
    assert rows.places == ("unknown",)
    assert rows.record == Record(max_norm_multiple=None)
    (x,) = next(rows.batches(0))
    assert x.dtype == torch.float16
    assert not x.requires_grad
    same = rows.identity
    assert own([x.half() for x in blocks(100)]).identity == same
    assert own([-x.half() for x in blocks(100)]).identity != same
    assert own(blocks(100), hook_name="a").identity != same
    assert own(blocks(100), batch_size=8).identity != same
    assert own([numbered(100, 4)]).identity != same


X = numbered(20)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([X[0]], r"rows hold \(3,\) torch.float32; give tensors \(n, d_in\)"),
        (X, r"rows hold \(3,\) torch.float32; give tensors \(n, d_in\)"),
        ([X.long()], r"rows hold \(20, 3\) torch.int64; give"),
        ([X.numpy()], "rows hold ndarray; give"),
        ([X.to_sparse()], r"rows hold sparse tensors; give .*, made dense with to_dense\(\)"),
        ([{"x": X}], "rows hold dict; give"),
        ([()], "rows hold nothing; give"),
        ([(X, X, X)], "rows hold .*; give"),
        ([(X, X[:5])], r"rows hold \(20, 3\) torch.float32, \(5, 3\) torch.float32; give"),
        ([X, numbered(20, 4)], r"rows hold \(20, 4\) .* after others of width \(3,\)"),
        ([X, (X, X)], r"rows hold .* after others of width \(3,\); give all of one width"),
        ([X[:15]], "there are 15 rows, less than one batch of train_batch_size_tokens=16"),
        ([], "there are 0 rows, less than one batch"),
    ],
)
def test_rows_of_a_wrong_kind_are_refused(given, sentence):
    with pytest.raises(UserError, match=sentence):
        own(given)


def test_rows_of_a_wrong_kind_behind_the_sample_are_refused_too():
    given = [*blocks(SAMPLE_ROWS, 128), numbered(20, 4)]
    for rows in (own(given), own(iter(given))):
        batches = rows.batches(SAMPLE_ROWS // BATCH)
        with pytest.raises(UserError, match="after others of width"):
            next(batches)


def test_a_transcoder_needs_pairs():
    with pytest.raises(UserError, match="hook_name_out=b asks for a transcoder; give"):
        own(blocks(100), hook_name="a", hook_name_out="b")
