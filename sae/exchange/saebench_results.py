"""Figures of ours as SAEBench's result files, which its plots and Neuronpedia read.

The files are those of SAEBench 0.6, `evals/base_eval_output.py` and the `eval_output.py` of
each evaluation: `FOLDER/EVALUATION/NAME_custom_sae_eval_results.json`, with −1 for what is not
known. Two of its figures of the group `core` come from formulas that are wrong there; under
their names stand ours:

- `explained_variance`: SAEBench subtracts the squared mean of the *squares* of coordinates
  where it means the squared mean of the rows, so its figure is above 1 where rows are large.
- `mse`: SAEBench divides a row's squared error by the number of tokens of a batch, so it
  changes with the batch size. Here it is the mean over rows and coordinates.

`explained_variance_legacy`, a mean of ratios of each token's error, is not written. All figures
with their intervals and floors stand under `eval_result_unstructured`, which SAEBench leaves
as it is.
"""

import math
import statistics
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sae.base import JsonObject, code_version, digest, read_json, write_json
from sae.dictionary import Dictionary
from sae.exchange.saebench import as_custom_sae
from sae.figures import Figures
from sae.findings import Finding, shown

MISSING = -1
"""What stands for a figure that is not known, as SAEBench's readers have it."""
CORE, ABSORPTION = "core", "absorption"
PROBING, META = "sparse_probing_sae_probes", "meta_structure"
_TYPES = {ABSORPTION: "absorption_first_letter", META: "meta_structure_decoder_variance"}
"""Names of evaluations inside of the files, where they are not those of the folders."""
_ENDING = "_custom_sae_eval_results.json"
_PARTS = ("accuracy", "auc", "f1")
"""Figures of a probe."""
_NAMED_KS = (1, 2, 5, 10, 20, 50, 100)
"""Numbers of features that SAEBench has fields for; others stand in a table by k."""

Metrics = Mapping[str, float | None]
Json = dict[str, object]


class LetterResult(Protocol):
    """What became of one letter's words."""

    @property
    def letter(self) -> str: ...

    @property
    def features(self) -> Sequence[int]: ...

    @property
    def fraction(self) -> float: ...

    @property
    def full(self) -> float: ...

    @property
    def n_words(self) -> int: ...


class ProbeResult(Protocol):
    """How a probe did on one data set."""

    @property
    def task(self) -> str: ...

    @property
    def accuracy(self) -> float: ...

    @property
    def auc(self) -> float: ...

    @property
    def f1(self) -> float: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What was measured of one dictionary; an evaluation without figures gets no file."""

    figures: Figures | None = None
    letters: Sequence[LetterResult] = ()
    """Empty where absorption was not measurable."""
    raw: Sequence[ProbeResult] = ()
    """Results of probes on activations, one for each data set."""
    features: Mapping[int, Sequence[ProbeResult]] = field(default_factory=dict)
    """Results of probes on k features for the same data sets, by k."""
    findings: Sequence[Finding] = ()
    """All of them, with their intervals and floors."""
    seed: int = 0

    @property
    def meta(self) -> Finding | None:
        """How far decoder directions are made of common parts, if that was measured."""
        return shown(self.findings, "meta_explained_variance")


def write_saebench(
    folder: Path, name: str, dictionary: Dictionary, measured: Measured
) -> list[Path]:
    """Write the result files of one dictionary, whole or not at all, and return where they are.

    Raises:
        UserError: if SAEBench could not take the dictionary: a transcoder, say.
    """
    config = as_custom_sae(dictionary).cfg.to_dict()
    parts: dict[str, tuple[Json, Mapping[str, Metrics], list[Json]]] = {}
    if measured.figures is not None:
        parts[CORE] = _core(dictionary, measured.figures)
    if measured.letters:
        parts[ABSORPTION] = _absorption(measured.letters, measured.seed)
    if measured.features:
        parts[PROBING] = _probing(measured.raw, measured.features, measured.seed)
    if measured.meta is not None and measured.meta.value is not None:
        parts[META] = _meta(measured.meta.value, measured.seed)
    written = []
    for evaluation, (settings, metrics, details) in parts.items():
        content: Json = {
            "eval_type_id": _TYPES.get(evaluation, evaluation),
            "eval_config": {"model_name": dictionary.model_name, **settings},
            "eval_result_metrics": {key: _numbers(own) for key, own in metrics.items()},
            "eval_result_details": details,
            "sae_bench_commit_hash": f"none: measured by sae-atlas {code_version()}",
            "sae_lens_id": "custom_sae",
            "sae_lens_release_id": name,
            "sae_lens_version": None,
            "sae_cfg_dict": config,
            "eval_result_unstructured": {
                "sae_atlas": [finding.to_json() for finding in measured.findings]
            },
        }
        content["eval_id"] = str(uuid.uuid5(uuid.NAMESPACE_OID, digest(content)))
        content["datetime_epoch_millis"] = int(time.time() * 1000)
        path = folder / evaluation / f"{name}{_ENDING}"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)
        written.append(path)
    return written


def read_saebench(path: Path) -> dict[str, dict[str, float | None]]:
    """Return the figures of a result file by their groups; None where one is missing.

    Raises:
        UserError: if the file is none of SAEBench's.
    """
    cure = "give a result file of SAEBench"
    found = JsonObject(str(path), "", read_json(path), cure).part("eval_result_metrics")
    return {
        group: {key: _known(value) for key, value in found.get(group, dict).items()}
        for group in found.values
    }


def _known(value: object) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or value == MISSING or not math.isfinite(float(str(value))):
        return None
    return float(str(value))


def _numbers(metrics: Metrics) -> dict[str, float]:
    return {
        key: MISSING if value is None or not math.isfinite(value) else value
        for key, value in metrics.items()
    }


def _core(
    dictionary: Dictionary, figures: Figures
) -> tuple[Json, Mapping[str, Metrics], list[Json]]:
    values = figures.values

    def of(*keys: str) -> dict[str, float | None]:
        return {key: values.get(key) for key in keys}

    dead = values.get("dead_fraction")
    mse = values.get("mse")
    metrics: dict[str, Metrics] = {
        "model_behavior_preservation": of(
            "kl_div_score", "kl_div_with_ablation", "kl_div_with_sae"
        ),
        "model_performance_preservation": of(
            "ce_loss_score", "ce_loss_with_ablation", "ce_loss_with_sae", "ce_loss_without_sae"
        ),
        "reconstruction_quality": {
            **of("explained_variance", "cossim"),
            "explained_variance_legacy": None,
            "mse": None if mse is None else mse / dictionary.d_out,
        },
        "shrinkage": {
            **of("l2_ratio", "relative_reconstruction_bias"),
            "l2_norm_in": None,
            "l2_norm_out": None,
        },
        "sparsity": of("l0", "l1"),
        "token_stats": {
            "total_tokens_eval_reconstruction": figures.n_behaviour_tokens,
            "total_tokens_eval_sparsity_variance": figures.n_rows,
        },
        "misc_metrics": {
            "freq_over_1_percent": _denser_than(figures, -2, dictionary.d_sae),
            "freq_over_10_percent": _denser_than(figures, -1, dictionary.d_sae),
            "normalized_freq_over_1_percent": None,
            "normalized_freq_over_10_percent": None,
            "average_max_encoder_cosine_sim": None,
            "average_max_decoder_cosine_sim": None,
            "frac_alive": None if dead is None else 1 - dead,
        },
    }
    settings: Json = {
        "dataset": figures.data or "unknown",
        "context_size": dictionary.record.context_size or MISSING,
        "exclude_special_tokens_from_reconstruction": True,
    }
    return settings, metrics, []


def _denser_than(figures: Figures, log10: float, d_sae: int) -> float | None:
    """Return the share of features that fire on more than 10^log10 of the rows."""
    found = figures.density_histogram
    if found is None:
        return None
    pairs = zip(found["log10_edges"], found["counts"], strict=False)
    return sum(count for edge, count in pairs if edge >= log10) / d_sae


def _absorption(
    letters: Sequence[LetterResult], seed: int
) -> tuple[Json, Mapping[str, Metrics], list[Json]]:
    columns = {
        "absorption_fraction_score": [one.fraction for one in letters],
        "full_absorption_score": [one.full for one in letters],
        "num_split_features": [float(len(one.features)) for one in letters],
    }
    mean: dict[str, float | None] = {}
    for key, values in columns.items():
        mean[f"mean_{key}"] = statistics.mean(values)
        mean[f"std_dev_{key}"] = statistics.stdev(values) if len(values) > 1 else None
    details: list[Json] = [
        {
            "first_letter": one.letter,
            "mean_absorption_fraction": one.fraction,
            "full_absorption_rate": one.full,
            "num_full_absorption": round(one.full * one.n_words),
            "num_probe_true_positives": one.n_words,
            "num_split_features": len(one.features),
        }
        for one in letters
    ]
    return {"random_seed": seed}, {"mean": mean}, details


def _probing(
    raw: Sequence[ProbeResult], features: Mapping[int, Sequence[ProbeResult]], seed: int
) -> tuple[Json, Mapping[str, Metrics], list[Json]]:
    named = {f"sae_top_{k}_test": features[k] for k in features if k in _NAMED_KS}
    groups = {"llm": {"llm_test": raw}, "sae": named}
    metrics: dict[str, Metrics] = {
        group: {
            f"{key}_{part}": statistics.mean(getattr(one, part) for one in own)
            for key, own in probes.items()
            for part in _PARTS
        }
        for group, probes in groups.items()
    }
    details: list[Json] = [
        {
            "dataset_name": first.task,
            **{
                f"{key}_{part}": getattr(own[place], part)
                for probes in groups.values()
                for key, own in probes.items()
                for part in _PARTS
            },
            "sae_metrics_by_k": {
                k: {f"test_{part}": getattr(own[place], part) for part in _PARTS}
                for k, own in features.items()
            },
        }
        for place, first in enumerate(raw)
    ]
    settings: Json = {
        "random_seed": seed,
        "dataset_names": [one.task for one in raw],
        "ks": [*features],
        "reg_type": "l2",
    }
    return settings, metrics, details


def _meta(value: float, seed: int) -> tuple[Json, Mapping[str, Metrics], list[Json]]:
    metrics = {
        "decoder_fraction_variance_explained": value,
        "train_time_seconds": None,
        "final_reconstruction_mse": None,
    }
    return {"random_seed": seed}, {"meta_structure": metrics}, []
