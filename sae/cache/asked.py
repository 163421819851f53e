"""Which sequences of a cache are asked for, in Python's own way of saying it."""

from operator import index

from sae.base import require


def neighbours(sequences: int | slice, n: int, where: str) -> slice:
    """Return what is asked for as a slice from the first sequence to behind the last one.

    Args:
        sequences: the number of one or a slice, open at either end or counted from the last.
        n: sequences that there are.
        where: the cache, for messages.

    Raises:
        UserError: if there is no such sequence, or they are no neighbours.
    """
    if not isinstance(sequences, slice):
        # NumPy's integers too.
        one = index(sequences)
        require(
            -n <= one < n,
            f"{where} has no sequence {one}; give 0 to {n - 1}, or -1 for the last",
        )
        return slice(one % n, one % n + 1)
    start, stop, step = sequences.indices(n)
    told = f"{where}: {sequences}"
    require(step == 1, f"{told} has a step; give consecutive sequences, such as slice(0, 8)")
    require(
        start < stop,
        f"{told} selects none of its {n} sequences; give a slice such as slice(0, 8)",
    )
    return slice(start, stop)
