"""Dead latents of a wide TopK dictionary with and without the auxiliary loss."""

import sae
from benchmarks.common import HOOK, write_results
from benchmarks.quality import RUN
from sae.base.files import read_json_lines

D_SAE, N_ROWS = 16_384, 256_000


def main() -> None:
    """Train twice and count latents that were silent in the last tenth of the run."""
    sae.harvest(run=str(RUN), hook_names=[HOOK], n_tokens=448_000)
    rows = []
    for coefficient in (1 / 32, 0.0):
        name = f"wide-aux-{coefficient:g}"
        sae.train(
            run=str(RUN / "wide"),
            cache=str(RUN / "cache.zarr"),
            name=name,
            sae=sae.TopKConfig(d_sae=D_SAE, k=32, aux_loss_coefficient=coefficient),
            training_tokens=N_ROWS,
            train_batch_size_tokens=1_024,
        )
        last = read_json_lines(RUN / "wide" / "training" / name / "metrics.jsonl")[-1]
        rows.append(
            {
                "auxiliary loss": f"{coefficient:g}",
                "dead": f"{last['sparsity/dead_features'] / D_SAE:.2%}",
                "explained variance (last batch)": round(last["metrics/explained_variance"], 4),
            }
        )
    write_results("dead", f"TopK, k 32, d_sae {D_SAE:,}, {N_ROWS:,} rows", rows)


if __name__ == "__main__":
    main()
