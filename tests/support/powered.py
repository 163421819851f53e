"""A fifth activation, written as `sae/dictionary/activations.py` would have it."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from sae.core import select
from sae.core.select import Above, Active
from sae.core.sparse import support_of
from sae.dictionary import Activation


@dataclass(frozen=True, slots=True)
class Powered(Activation):
    """`size * relu(pre - offset) ** power`: two tensors and a number of its own."""

    name: ClassVar[str] = "powered"
    formula: ClassVar[str] = "size * relu(pre - offset) ** power"
    code: ClassVar[str] = 'acts = w["size"] * torch.relu(pre - w["offset"]) ** {power}'
    in_saelens: ClassVar[bool] = False

    offset: torch.Tensor
    size: torch.Tensor
    power: int

    def encode(self, products, b_enc):
        return self.size * torch.relu(products + b_enc - self.offset) ** self.power

    def select(self, x, weight, b_enc):
        support, pre = select.select(x, weight, b_enc, Above(self.offset))
        columns = support.columns
        values = self.size[columns] * (pre - self.offset[columns]) ** self.power
        fires = values > 0
        before = torch.cat([fires.new_zeros(1, dtype=torch.int64), fires.cumsum(0)])
        counts = before[support.row_ends.long()].diff()
        return Active(support_of(counts, columns[fires], len(b_enc)), values[fires])

    def scaled(self, gains):
        # Products and offset grow by the gain, the power by more than that.
        size = self.size * torch.as_tensor(gains) ** (1 - self.power)
        return replace(self, offset=self.offset * gains, size=size)
