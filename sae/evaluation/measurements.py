"""What the standard suite is made of, and SAEBench's files of what it found."""

from collections import defaultdict

from sae.evaluation.absorption import KEYS, LetterAbsorption, absorption, absorption_findings
from sae.evaluation.description_length import description_length
from sae.evaluation.letters import LetterRows, letter_rows
from sae.evaluation.meta_dictionary import meta_dictionary
from sae.evaluation.sample import sample_rows
from sae.evaluation.sparse_probing import (
    SparseProbing,
    TaskRows,
    sparse_probing,
    sparse_probing_findings,
    task_rows,
)
from sae.evaluation.stability import reseeded, stability
from sae.evaluation.suite import Measurement, Subject
from sae.exchange.saebench_results import Measured
from sae.findings import Finding

_ABSORPTION = ("absorption_probe_f1", *KEYS)
_WRITTEN_ELSEWHERE = (
    "absorption asks which features stand for what is read, and the directions of a transcoder "
    "are written elsewhere"
)
_Place = tuple[str, str]
"""A model by its weights, and a hook of it."""


class StandardSuite:
    """The measurements of `suite=standard`; words and texts are read once for each place.

    It keeps what SAEBench's files say in more detail than findings do.
    """

    def __init__(self) -> None:
        self._words: dict[_Place, LetterRows] = {}
        self._tasks: dict[_Place, tuple[TaskRows, ...]] = {}
        self._letters: dict[str, tuple[LetterAbsorption, ...]] = defaultdict(tuple)
        self._probing: dict[str, SparseProbing] = {}

    def measurements(self) -> list[Measurement]:
        """Return what is measured, in the order in which it is shown."""
        return [
            Measurement(
                "description length",
                ("description_length", "description_length_index", "description_length_kept"),
                self._description_length,
            ),
            Measurement(
                "stability",
                ("stability", "stability_shared", "stability_agreement"),
                self._stability,
            ),
            Measurement(
                "sparse probing",
                ("sparse_probing_raw", "sparse_probing"),
                self._sparse_probing,
                reads_model=True,
            ),
            Measurement(
                "absorption",
                _ABSORPTION,
                self._absorption,
                reads_model=True,
            ),
            Measurement("meta-dictionary", ("meta_explained_variance",), self._meta),
        ]

    def details(self, subject: Subject) -> Measured:
        """Return what was found of a dictionary, in more detail than findings have."""
        probing = self._probing.get(subject.name)
        return Measured(
            letters=self._letters[subject.name],
            raw=() if probing is None else probing.raw,
            features={} if probing is None else probing.features,
        )

    def _description_length(self, subject: Subject) -> list[Finding]:
        return description_length(
            subject.dictionary, *sample_rows(subject.dictionary, subject.cache)
        )

    def _stability(self, subject: Subject) -> list[Finding]:
        x, _ = sample_rows(subject.dictionary, subject.cache)
        others = reseeded(subject.run, subject.name, subject.dictionary)
        found, _ = stability(subject.dictionary, others, x)
        return found

    def _meta(self, subject: Subject) -> list[Finding]:
        return meta_dictionary(subject.dictionary)

    def _sparse_probing(self, subject: Subject) -> list[Finding]:
        place = _place(subject)
        if place not in self._tasks:
            site = subject.cache.site(subject.dictionary.hook_name)
            self._tasks[place] = task_rows(subject.model(), site)
        found = sparse_probing(subject.dictionary, self._tasks[place])
        self._probing[subject.name] = found
        return sparse_probing_findings(found)

    def _absorption(self, subject: Subject) -> list[Finding]:
        if subject.dictionary.is_transcoder:
            return [Finding(key=key, why_not=_WRITTEN_ELSEWHERE) for key in _ABSORPTION]
        place = _place(subject)
        if place not in self._words:
            site = subject.cache.site(subject.dictionary.hook_name)
            self._words[place] = letter_rows(subject.model(), site)
        found = absorption(subject.dictionary, self._words[place])
        self._letters[subject.name] = found.letters
        return absorption_findings(found)


def _place(subject: Subject) -> _Place:
    return subject.cache.model.weight_digest, subject.dictionary.hook_name
