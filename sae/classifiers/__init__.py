"""Classifiers of rows and what they are read against: scores, controls, code lengths.

Rows are float64 arrays (row, d) and labels boolean arrays (row,), of two classes that both
occur. Nothing here knows where rows come from.
"""

from sae.classifiers.code_length import CodeLength, online_code_lengths
from sae.classifiers.controls import (
    permuted_aucs,
    permuted_aucs_of_each,
    selectivity,
    word_type_labels,
)
from sae.classifiers.logistic import (
    PENALTIES,
    LinearProbe,
    difference_of_means,
    fit_logistic_path,
    fit_logistic_paths,
    one_thread,
)
from sae.classifiers.scores import Scores, auc_of, score
from sae.classifiers.sparse import SparseProbe, fit_sparse, most_different

__all__ = [
    "PENALTIES",
    "CodeLength",
    "LinearProbe",
    "Scores",
    "SparseProbe",
    "auc_of",
    "difference_of_means",
    "fit_logistic_path",
    "fit_logistic_paths",
    "fit_sparse",
    "most_different",
    "one_thread",
    "online_code_lengths",
    "permuted_aucs",
    "permuted_aucs_of_each",
    "score",
    "selectivity",
    "word_type_labels",
]
