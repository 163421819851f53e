"""What the standard suite is made of."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from sae.base import require
from sae.evaluation.absorption import KEYS, absorption, absorption_findings
from sae.evaluation.description_length import description_length
from sae.evaluation.held_out import measured_rows
from sae.evaluation.letters import LetterRows, letter_rows
from sae.evaluation.meta_dictionary import meta_dictionary
from sae.evaluation.stability import reseeded, stability
from sae.evaluation.suite import Measurement, Subject
from sae.findings import Finding
from sae.rows.shuffle import rows_in_order

_ROWS = 16_384
"""Held-out rows that lengths and stability are measured on at most, evenly spread."""


def standard_suite() -> list[Measurement]:
    """Return the measurements of `suite=standard`; what they share is made once."""
    return [
        Measurement(
            "description length",
            ("description_length", "description_length_index", "description_length_kept"),
            _description_length,
        ),
        Measurement(
            "stability",
            ("stability", "stability_shared", "stability_agreement"),
            _stability,
        ),
        Measurement("meta-dictionary", ("meta_explained_variance",), _meta_dictionary),
        Measurement("absorption", ("absorption_probe_f1", *KEYS), _absorption(), True),
    ]


def _rows(subject: Subject) -> tuple[Float[Tensor, "row width"], ...]:
    """Return held-out rows of each hook of the dictionary, in the order of their text."""
    selection = measured_rows(subject.dictionary, subject.cache, held_out=True)
    parts = list(rows_in_order(selection, _ROWS))
    return tuple(torch.cat(side).float() for side in zip(*parts, strict=True))


def _description_length(subject: Subject) -> list[Finding]:
    return description_length(subject.dictionary, *_rows(subject))


def _stability(subject: Subject) -> list[Finding]:
    found, _ = stability(
        subject.dictionary, reseeded(subject.run, subject.name), _rows(subject)[0]
    )
    return found


def _meta_dictionary(subject: Subject) -> list[Finding]:
    return meta_dictionary(subject.dictionary)


def _absorption() -> Callable[[Subject], list[Finding]]:
    read: dict[tuple[str, str], LetterRows] = {}

    def measure(subject: Subject) -> list[Finding]:
        dictionary = subject.dictionary
        require(
            not dictionary.is_transcoder,
            "absorption asks which features stand for what is read, and a transcoder's "
            "directions are written elsewhere",
        )
        key = subject.cache.model.weight_digest, dictionary.hook_name
        if key not in read:
            read[key] = letter_rows(subject.model(), subject.cache.site(dictionary.hook_name))
        return absorption_findings(absorption(dictionary, read[key]))

    return measure
