"""Pure tensor functions: no parameters, files, logging or configuration.

Letters in shapes, here and in every module above: `batch` activation vectors (rows), `d_in` the
width of the language model's stream, `d` that of any, `d_sae` latents, `nnz` active entries.
"""

from jaxtyping import Float, Int
from torch import Tensor

Vectors = Float[Tensor, "batch d"]
Weight = Float[Tensor, "d_sae d"]
Latents = Float[Tensor, "batch d_sae"]
PerLatent = Float[Tensor, " d_sae"]
PerRow = Int[Tensor, " batch"]
Values = Float[Tensor, " nnz"]
Indices = Int[Tensor, " nnz"]
