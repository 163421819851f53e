"""What it takes to measure a dictionary's reconstruction, by how many latents are active.

On active latents alone, as `sae eval` does where they are few, and by dense products, as it
does elsewhere; both beside the encoder's float32 product alone. All in one round.
"""

from collections.abc import Callable
from unittest.mock import patch

import torch

from benchmarks.common import real_rows, side_by_side, write_results
from sae.core.fidelity import ReconstructionStatistics
from sae.core.scaling import InputScaling
from sae.dictionary import Dictionary, TopK, add_reconstruction, reconstruction

D_SAE, BATCH = 9_216, 4_096
ACTIVE = (32, 128, 256, 512, 1_024, 2_048)


def main() -> None:
    """Write `results/encoding.md`."""
    rows = real_rows(40_960)
    x = InputScaling.of(rows)(rows)[:BATCH]
    weight = torch.randn(D_SAE, x.shape[1], generator=torch.Generator().manual_seed(0))
    weight /= weight.norm(dim=1, keepdim=True)
    zeros = torch.zeros(x.shape[1])
    out = torch.empty(BATCH, D_SAE)
    contenders: dict[str, Callable[[], object]] = {
        "product": lambda: torch.mm(x, weight.t(), out=out)
    }
    for k in ACTIVE:
        # Of random directions half are positive: there are k active ones.
        one = Dictionary.from_weights(
            weight.t(), torch.zeros(D_SAE), weight, zeros, TopK(k)
        ).to("cpu")
        for way, limit in (("sparse", 2.0), ("dense", 0.0)):
            contenders[f"{way} {k}"] = _measuring(one, x, limit)
    medians = side_by_side(contenders, rounds=5)
    table = []
    for k in ACTIVE:
        seconds = {way: medians[f"{way} {k}"] for way in ("sparse", "dense")}
        table.append(
            {
                "active of a row": k,
                "share": round(k / D_SAE, 4),
                "on active latents (s)": round(seconds["sparse"], 3),
                "by dense products (s)": round(seconds["dense"], 3),
                "product alone (s)": round(medians["product"], 3),
                "taken": "sparse" if k / D_SAE < reconstruction._SPARSE_BELOW else "dense",
            }
        )
    title = f"Measuring reconstructions of {BATCH:,} rows, d_in 576, d_sae {D_SAE:,}"
    write_results("encoding", title, table)


def _measuring(one: Dictionary, x: torch.Tensor, limit: float) -> Callable[[], None]:
    def measure() -> None:
        statistics = ReconstructionStatistics(one.d_out, one.d_sae)
        with patch.object(reconstruction, "_SPARSE_BELOW", limit), torch.inference_mode():
            add_reconstruction(statistics, one, x, x)

    return measure


if __name__ == "__main__":
    main()
