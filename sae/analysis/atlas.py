"""What analysis found, as tables that any tool reads: one folder, the atlas.

features.parquet   a row a feature: density, activations, logits, norms, neighbours
contexts.parquet   a row a context: feature, rank, place in the cache, text, activations
atlas.json         which dictionary, cache and settings
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.analysis.features import Context, FeatureStatistics
from sae.base.errors import UserError
from sae.base.files import atomic_path, read_json, write_json
from sae.dictionary import Dictionary

FEATURES_FILE = "features.parquet"
CONTEXTS_FILE = "contexts.parquet"
MANIFEST_FILE = "atlas.json"


@dataclass(frozen=True, slots=True)
class Atlas:
    """An atlas on disk."""

    folder: Path

    @property
    def manifest(self) -> dict[str, Any]:
        """Which dictionary, cache and settings it was made from."""
        found: dict[str, Any] = read_json(self.folder / MANIFEST_FILE)
        return found

    def features(self) -> list[dict[str, Any]]:
        """The rows of `features.parquet`."""
        return _rows(self.folder / FEATURES_FILE)

    def contexts(self) -> list[dict[str, Any]]:
        """The rows of `contexts.parquet`, by feature and rank."""
        return _rows(self.folder / CONTEXTS_FILE)


def _rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet

    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(
            f"{path} is missing or damaged ({error}); remove its folder and run sae analyze"
        ) from error
    return rows


@dataclass(frozen=True, slots=True)
class LogitEffects:
    """Tokens that each feature's decoder direction pushes up and down, (d_sae, k) each."""

    top_values: Tensor
    top_tokens: list[list[str]]
    top_ids: Tensor
    bottom_values: Tensor
    bottom_tokens: list[list[str]]
    bottom_ids: Tensor
    sharpness: Tensor
    """(d_sae,): standard deviations between the mean top logit and the mean logit."""


def nearest_features(w_dec: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Indices and cosines of the `k` nearest decoder directions of every feature."""
    unit = torch.nn.functional.normalize(w_dec, dim=1)
    k = min(k, len(unit) - 1)
    indices, cosines = [], []
    for start in range(0, len(unit), 1024):
        block = unit[start : start + 1024] @ unit.t()
        own = torch.arange(len(block))
        block[own, own + start] = -2.0
        best = block.topk(k, dim=1)
        indices.append(best.indices.cpu())
        cosines.append(best.values.cpu())
    return torch.cat(indices), torch.cat(cosines)


def logit_agreement(top_tokens: list[list[str]], contexts: list[dict[str, Any]]) -> list[float]:
    """For each feature, the share of its contexts that its promoted tokens speak of.

    A context counts when the token at its peak, or the one after, is among the tokens that the
    feature promotes (letter case and spaces aside). A feature without contexts has 0.
    """
    counted, agreeing = [0] * len(top_tokens), [0] * len(top_tokens)
    promoted = [{_plain(token) for token in tokens} for tokens in top_tokens]
    for row in contexts:
        peak = row["position"] - row["start"]
        near = {_plain(token) for token in row["tokens"][peak : peak + 2]}
        counted[row["feature"]] += 1
        agreeing[row["feature"]] += bool(near & promoted[row["feature"]])
    return [a / max(1, n) for a, n in zip(agreeing, counted, strict=True)]


def _plain(token: str) -> str:
    return token.strip().lower()


def write_atlas(
    folder: Path,
    dictionary: Dictionary,
    statistics: FeatureStatistics,
    logits: LogitEffects | None,
    contexts: list[dict[str, Any]],
    manifest: dict[str, Any],
) -> Atlas:
    """Write all tables; the folder appears when it is whole."""
    import pyarrow
    import pyarrow.parquet

    neighbours, cosines = nearest_features(dictionary.W_dec, 5)
    columns: dict[str, Any] = {
        "feature": list(range(dictionary.d_sae)),
        "density": statistics.density.tolist(),
        "n_active": statistics.fired.tolist(),
        "max_activation": statistics.top_values[:, 0].tolist(),
        "mean_activation": statistics.mean.tolist(),
        "decoder_norm": dictionary.W_dec.norm(dim=1).tolist(),
        "encoder_norm": dictionary.W_enc.norm(dim=0).tolist(),
        "neighbours": neighbours.tolist(),
        "neighbour_cosines": cosines.tolist(),
    }
    if logits is not None:
        columns |= {
            "top_logit_tokens": logits.top_tokens,
            "top_logit_ids": logits.top_ids.tolist(),
            "top_logits": logits.top_values.tolist(),
            "bottom_logit_tokens": logits.bottom_tokens,
            "bottom_logit_ids": logits.bottom_ids.tolist(),
            "bottom_logits": logits.bottom_values.tolist(),
            "logit_sharpness": logits.sharpness.tolist(),
            "logit_agreement": logit_agreement(logits.top_tokens, contexts),
        }
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        table = pyarrow.table(columns)
        pyarrow.parquet.write_table(table, temporary / FEATURES_FILE)
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist(contexts, schema=_context_schema()),
            temporary / CONTEXTS_FILE,
        )
        write_json(temporary / MANIFEST_FILE, manifest)
    return Atlas(folder)


def _context_schema() -> Any:
    import pyarrow

    return pyarrow.schema(
        {
            "feature": pyarrow.int32(),
            "rank": pyarrow.int32(),
            "sequence": pyarrow.int64(),
            "position": pyarrow.int32(),
            "start": pyarrow.int32(),
            "activation": pyarrow.float32(),
            "token_ids": pyarrow.list_(pyarrow.int32()),
            "tokens": pyarrow.list_(pyarrow.string()),
            "activations": pyarrow.list_(pyarrow.float32()),
        }
    )


def context_rows(
    contexts: list[Context], tokens: Tensor, strings: list[list[str]]
) -> list[dict[str, Any]]:
    """Contexts as rows of `contexts.parquet`.

    Args:
        tokens: ids of the whole cache, (sequence, position).
        strings: the text of each context's tokens.
    """
    return [
        {
            "feature": c.feature,
            "rank": c.rank,
            "sequence": c.sequence,
            "position": c.position,
            "start": c.start,
            "activation": c.activations[c.position - c.start],
            "token_ids": tokens[c.sequence, c.start : c.start + len(c.activations)].tolist(),
            "tokens": texts,
            "activations": c.activations,
        }
        for c, texts in zip(contexts, strings, strict=True)
    ]
