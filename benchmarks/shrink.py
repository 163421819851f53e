"""What smaller types and leaving out dead features cost, and what they save."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import sae
from benchmarks.atlas import RUN, TRAINED
from benchmarks.common import HOOK, write_results
from sae.atlas import Atlas
from sae.dictionary import Dictionary, save_dictionary
from sae.dictionary.files import WEIGHTS_FILE
from sae.dictionary.storage import DTYPES, as_loaded
from sae.evaluation.held_out import behaviour_scores, reconstruction
from sae.models import recorded_model
from sae.rows.shuffle import rows_in_order, select_rows

N_ROWS, N_TOKENS, SEQUENCES = 8_192, 2_048, 8


@dataclass(frozen=True)
class _Variant:
    """A dictionary as it would be exported, with the numbers that its latents had before."""

    dtype: str
    drop_dead: bool
    kept: Tensor
    dictionary: Dictionary


def main() -> None:
    """Each type with and without dead features, of the dictionaries of `benchmarks.atlas`."""
    rows = [row for name in TRAINED for row in _rows(name)]
    write_results(
        "shrink",
        f"Smaller exports: held-out text, {N_ROWS:,} rows, CE and KL on {N_TOKENS:,} tokens",
        rows,
    )


def _rows(name: str) -> list[dict[str, object]]:
    cache = sae.open_cache(RUN / "cache.zarr")
    whole = sae.load(str(RUN / "dictionaries" / name))
    variants = _variants(name, whole)
    model = recorded_model(cache.model, "cpu")
    numbered = {str(i): variant.dictionary for i, variant in enumerate(variants)}
    _, scores = behaviour_scores(model, cache, numbered, N_TOKENS, SEQUENCES)
    limit = whole.record.max_norm_multiple
    held_out = select_rows(cache, HOOK, held_out=True, max_norm_multiple=limit)
    x = torch.cat([piece.float() for (piece,) in rows_in_order(held_out, N_ROWS)])
    active = _active(whole, x)
    rows: list[dict[str, object]] = []
    for variant, scored in zip(variants, (s.values for s in scores.values()), strict=True):
        found = reconstruction(variant.dictionary, held_out, N_ROWS).metrics()
        still = torch.zeros_like(active)
        still[:, variant.kept] = _active(variant.dictionary, x)
        same = (active & still).sum() / (active | still).sum()
        added = scored["ce_loss_with_sae"] - scored["ce_loss_without_sae"]
        rows.append(
            {
                "dictionary": name,
                "type": variant.dtype,
                "drop_dead": str(variant.drop_dead).lower(),
                "latents": f"{variant.dictionary.d_sae:,}",
                "weights (MB)": round(_size(variant) / 1e6, 1),
                "explained variance": f"{found['explained_variance']:.5f}",
                "L0": f"{found['l0']:.3f}",
                "CE added (nats a token)": f"{added:.4f}",
                "CE score": f"{scored['ce_loss_score']:.5f}",
                "KL score": f"{scored['kl_div_score']:.5f}",
                "same active latents": f"{float(same):.2%}",
            }
        )
        print(rows[-1], flush=True)
    return rows


def _variants(name: str, whole: Dictionary) -> list[_Variant]:
    n_active = Atlas(RUN / "atlas" / name).feature_table(["n_active"])["n_active"].to_numpy()
    alive = torch.from_numpy(n_active.nonzero()[0])
    found = []
    for drop_dead, kept in ((False, torch.arange(whole.d_sae)), (True, alive)):
        small = whole.of_latents(kept)
        found += [_Variant(dtype, drop_dead, kept, as_loaded(small, dtype)) for dtype in DTYPES]
    return found


def _size(variant: _Variant) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        save_dictionary(variant.dictionary, Path(scratch) / "small", variant.dtype)
        return (Path(scratch) / "small" / WEIGHTS_FILE).stat().st_size


def _active(dictionary: Dictionary, x: Tensor) -> Tensor:
    """Which latents each row has, (row, d_sae)."""
    return torch.cat([dictionary.encode(rows) > 0 for rows in torch.split(x, 1_024)])


if __name__ == "__main__":
    main()
