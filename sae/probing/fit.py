"""One probe with all that it is read against: scores, controls and code length."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sae.classifiers import (
    LinearProbe,
    auc_of,
    difference_of_means,
    fit_logistic_path,
    fit_logistic_paths,
    fit_sparse,
    online_code_lengths,
    permuted_aucs,
    permuted_aucs_of_each,
    score,
    selectivity,
)
from sae.probing.readings import RAW
from sae.probing.tasks import ControlTask, Task

CHANNELS, MEANS = "channels", "difference_of_means"
N_PERMUTED = 8
"""Shufflings of the labels."""

Rows = NDArray[np.float64]
Record = dict[str, object]


@dataclass(frozen=True, slots=True)
class Material:
    """Rows of one reading, hook and pool, with what they are to tell."""

    task: Task
    rows: Rows
    """Rows of all texts of the task, shape (text, width)."""
    seed: int
    control: ControlTask | None = None
    n_train: int | None = None
    """Number of training texts to use, if fewer than all are to be tried."""
    per_column: bool = True
    """Whether each column is scaled by itself; features share one scale."""

    @property
    def train(self) -> tuple[Rows, NDArray[np.bool_]]:
        """Training rows and their labels."""
        part = slice(0, self.n_train or self.task.n_train)
        return self.rows[part], self.task.texts.labels[part]

    @property
    def test(self) -> tuple[Rows, NDArray[np.bool_]]:
        """Test rows and their labels."""
        return self.rows[self.task.test], self.task.texts.labels[self.task.test]

    def scored(self, logits: Rows) -> Record:
        """Return the scores of logits of all texts of the task, (text,)."""
        task, labels = self.task, self.task.texts.labels
        found = score(logits[task.test], labels[task.test])
        record: Record = {"n_train": len(self.train[1]), "n_test": found.n}
        for name, interval in (("accuracy", found.accuracy), ("auc", found.auc)):
            ends = {f"{name}_low": interval.low, f"{name}_high": interval.high}
            record |= {name: interval.mean, **ends}
        if task.has_elsewhere:
            there = score(logits[task.elsewhere], labels[task.elsewhere])
            auc = there.auc
            record |= {"ood_auc": auc.mean, "ood_low": auc.low, "ood_high": auc.high}
            record["ood_n"] = there.n
        return record


def raw_probes(materials: Sequence[Material]) -> Iterator[tuple[list[Record], LinearProbe]]:
    """Yield records of all of the activations, and the logistic probe of them, of each.

    The materials are of one task at several places; fits of all of them go on at once.
    """
    first, rows = materials[0], [one.train[0] for one in materials]
    probes = fit_logistic_paths(rows, first.train[1], first.seed, per_column=first.per_column)
    controls, control = _all(materials, probes), first.control
    drawn: Sequence[LinearProbe | None] = [None] * len(materials)
    if control is not None:
        drawn = fit_logistic_paths(rows, control.train, first.seed, per_column=first.per_column)
    for one, probe, beside, other in zip(materials, probes, controls, drawn, strict=True):
        found = {"inputs": RAW, "k": None, **_fitted(one, probe), **beside}
        if control is not None and other is not None:
            found |= _selectivity(one, control, probe, other)
        yield [found, _means(one)], probe


def _means(material: Material) -> Record:
    """Return the record of the difference of means, and of shuffled labels'."""
    means, (rows, labels) = difference_of_means(*material.train), material.train
    generator = np.random.default_rng(material.seed)
    drawn = [generator.permutation(labels) for _ in range(N_PERMUTED)]
    new, truth = material.test
    shuffled = [auc_of(difference_of_means(rows, own).logits(new), truth) for own in drawn]
    scores = material.scored(means.logits(material.rows))
    return {"inputs": MEANS, "k": None, **scores, **_control(shuffled)}


def sparse_probes(
    material: Material, inputs: str, ks: Sequence[int | None]
) -> Iterator[Record]:
    """Yield the record of a probe for each number of inputs that it may read."""
    for k in ks:
        if k is None or k >= material.rows.shape[1]:
            probe = _path(material)
            yield {
                "inputs": inputs,
                "k": None,
                **_fitted(material, probe),
                **_all([material], [probe])[0],
            }
            continue
        sparse = fit_sparse(*material.train, k, material.seed, per_column=material.per_column)
        scores = material.scored(sparse.logits(material.rows))
        floor = _permuted(material, sparse.probe, k)
        yield {"inputs": inputs, "k": k, **scores, **_chosen(sparse.probe), **floor}


def learning_curve(material: Material, inputs: str, sizes: Sequence[int]) -> Iterator[Record]:
    """Yield AUC, its interval and its control for growing numbers of training texts."""
    for n in sorted(sizes):
        labels = material.task.texts.labels[:n]
        if n >= material.task.n_train or labels.all() or not labels.any():
            continue
        part = replace(material, control=None, n_train=n)
        probe = _path(part)
        record = _fitted(part, probe) | _permuted(part, probe)
        wanted = ("n_train", "n_test", "auc", "auc_low", "auc_high", "permuted_auc")
        yield {"inputs": inputs, **{name: record[name] for name in wanted}}


def _path(material: Material) -> LinearProbe:
    return fit_logistic_path(*material.train, material.seed, per_column=material.per_column)


def _fitted(material: Material, probe: LinearProbe) -> Record:
    return material.scored(probe.logits(material.rows)) | _chosen(probe)


def _chosen(probe: LinearProbe) -> Record:
    return {"penalty": probe.penalty or 1.0, "validation_auc": probe.validation_auc}


def _all(materials: Sequence[Material], probes: Sequence[LinearProbe]) -> list[Record]:
    """Return the controls that probes of all inputs have, for materials of one task."""
    first = materials[0]
    labels, scaled = (first.train[1], first.test[1]), first.per_column
    floors = permuted_aucs_of_each(
        [(one.train[0], one.test[0]) for one in materials],
        labels,
        [probe.penalty or 1.0 for probe in probes],
        N_PERMUTED,
        first.seed,
        per_column=scaled,
    )
    rows = [one.train[0] for one in materials]
    codes = online_code_lengths(rows, labels[0], per_column=scaled)
    return [
        _control(floor.tolist()) | {"bits": code.bits, "compression": code.compression}
        for floor, code in zip(floors, codes, strict=True)
    ]


def _permuted(material: Material, probe: LinearProbe, k: int | None = None) -> Record:
    found = permuted_aucs(
        material.train,
        material.test,
        probe.penalty or 1.0,
        N_PERMUTED,
        material.seed,
        k=k,
        per_column=material.per_column,
    )
    return _control(found.tolist())


def _control(aucs: Sequence[float]) -> Record:
    return {"permuted_auc": float(np.mean(aucs)), "permuted_high": max(aucs)}


def _selectivity(
    material: Material, control: ControlTask, probe: LinearProbe, drawn: LinearProbe
) -> Record:
    """Return how a probe does beside the control task, on test texts of words trained on."""
    known, (rows, labels) = control.known, material.test
    accuracy = float(((probe.logits(rows) > 0) == labels)[known].mean())
    at_control = float(((drawn.logits(rows) > 0) == control.test)[known].mean())
    return {
        "control_accuracy": at_control,
        "selectivity": selectivity(accuracy, at_control),
        "selectivity_n": int(known.sum()),
    }
