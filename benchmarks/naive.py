"""TopK on the factbook at three lengths of run, against what a naive loop reached.

The naive figures were measured before this project began: TopK with k 32 and d_sae 4,608 on the
same model, layer and text. Rows are repeated here beyond one pass of the cache.
"""

from pathlib import Path

import sae
from benchmarks.common import HOOK, write_results

NAIVE = {200_000: 0.760, 400_000: 0.832, 1_200_000: 0.890}
RUN = Path("runs/factbook")


def main() -> None:
    """Train three dictionaries and evaluate them on held-out text."""
    sae.harvest(
        run=str(RUN), data=sae.DataConfig(name="factbook"), hook_names=[HOOK], n_tokens=225_280
    )
    for n_rows in NAIVE:
        sae.train(
            run=str(RUN),
            name=f"topk-{n_rows}",
            sae=sae.TopKConfig(d_sae=4_608, k=32),
            training_tokens=n_rows,
        )
    figures = sae.eval(run=str(RUN), n_behaviour_tokens=2_048, density_rows=1)
    found = {one.id: one.values["explained_variance"] for one in figures}
    rows = [
        {
            "rows": f"{n_rows:,}",
            "ours": round(found[f"topk-{n_rows}"], 3),
            "naive": naive,
        }
        for n_rows, naive in NAIVE.items()
    ]
    write_results("naive", "Held-out explained variance, TopK k 32, d_sae 4,608", rows)


if __name__ == "__main__":
    main()
