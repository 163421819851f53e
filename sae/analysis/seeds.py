"""What dictionaries of the same training with other seeds say of each feature."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from sae.base import say
from sae.findings import Finding


@dataclass(frozen=True, slots=True)
class OtherSeeds:
    """Dictionaries that differ in their seeds alone, and how to compare with them."""

    names: tuple[str, ...]
    digests: tuple[str, ...]
    """Of their weights."""
    measure: Callable[[], tuple[Float[Tensor, " d_sae"], Finding]]
    """Gives each feature's stability, not a number for dead ones, and their mean."""

    def compare(self) -> tuple[dict[str, object], dict[str, Any]]:
        """Return the column of the atlas, and what its record says of it."""
        import pyarrow

        values, mean = self.measure()
        if mean.value is None:
            say(f"analyze: the stability of features is not known: {mean.why_not}")
        found = values.float().numpy()
        column = pyarrow.array(found, pyarrow.float32(), mask=np.isnan(found))
        about = {
            "stability_of": ", ".join(self.names) or None,
            "stability_mean": mean.value,
            "stability_floor": mean.floor,
            "without_stability": mean.why_not or None,
        }
        return {"stability": column}, about
