"""All that was measured of one dictionary beside its controls, and what that comes to.

`evidence/ID.json` holds the findings of one dictionary. A verdict sets one of them beside its
floor and beside the same finding of each control, and says in a word and a sentence what may be
concluded. It never says more than the intervals do: two figures whose intervals overlap are not
told apart, and what is not past its floor is no success.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from sae.base import JsonObject, UserError, check_whole, plain, read_object
from sae.controls import CONTROLS
from sae.figures import Figures
from sae.findings import Finding, shown

_FLOORS = {
    "explained_variance": "the mean row in place of each",
    "ce_loss_score": "zeros in the activations' place",
    "ce_loss_score_mean_ablation": "the mean activation in its place",
    "kl_div_score": "zeros in the activations' place",
}
"""Held-out figures that are 0 for what keeps nothing, and what that is."""
_HELD_OUT = ("l0", *_FLOORS, "dead_fraction")
_AT_EQUAL_L0 = {*_FLOORS, "mse"}
"""Figures that rise with L0, so that a control with a lower one proves nothing."""
_AT_EQUAL_FIDELITY = {"description_length", "description_length_index"}
"""Figures that fall with what is kept: their floor is as faithful as they are, controls are
not."""
_CONTEXT = {"l0", "description_length_kept", "absorption_probe_f1", "sparse_probing_raw"}
"""What says how the others are to be read."""
_SPARSER = 0.9
"""A control whose L0 is below this share of a dictionary's has a handicap."""

Word = Literal["better", "worse", "not told apart", "at its floor", "not measurable", "context"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """The findings of one dictionary."""

    id: str
    """Name of the dictionary in its run."""
    recipe: str
    """What it was trained by, or what it is saved as where that is not known."""
    control: str | None = None
    """Which control it is of another dictionary, a kind of `CONTROLS`."""
    digest: str
    """Identifies the dictionary and all that its findings depend on."""
    dictionary_digest: str
    training_digest: str | None = None
    hook_name: str
    data: str | None = None
    """Name of the text."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """What each measurement took."""
    findings: tuple[Finding, ...] = ()

    def find(self, key: str, of: str = "") -> Finding | None:
        """Return the finding of a metric, if there is one."""
        return shown(self.findings, key, of)

    def to_json(self) -> dict[str, object]:
        """Return what `read` reads."""
        own = plain(replace(self, findings=()))
        return {**own, "findings": [one.to_json() for one in self.findings]}

    @classmethod
    def read(cls, path: Path) -> "Evidence":
        """Read the findings in the file `path`.

        Raises:
            UserError: if it is not what `sae eval suite=standard` writes.
        """
        cure = "delete it and run sae eval suite=standard again"
        check_whole(path, cure)
        found = read_object(path, cure)
        given = found.get("findings", list)
        if not all(isinstance(one, dict) for one in given):
            raise UserError(f"{path} contains findings that are not objects; {cure}")
        findings = tuple(
            Finding.from_json(JsonObject(str(path), f"findings[{i}]", one, cure))
            for i, one in enumerate(given)
        )
        values = {**found.values, "findings": []}
        own = JsonObject(found.where, "", values, cure).read(cls)
        return replace(own, findings=findings)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One finding beside its controls."""

    finding: Finding
    controls: Mapping[str, Finding]
    """The same finding for each control, by the kind of control."""
    word: Word
    sentence: str
    """What may be concluded, in plain words."""


def held_out_findings(figures: Figures) -> list[Finding]:
    """Return what every evaluation measures, each with its interval and what keeps nothing."""
    return [_held_out(figures, key) for key in _HELD_OUT if _is_there(figures, key)]


def _is_there(figures: Figures, key: str) -> bool:
    return key in figures.values or key in figures.not_measurable


def _held_out(figures: Figures, key: str) -> Finding:
    if key not in figures.values:
        return Finding(key=key, why_not=figures.not_measurable[key])
    low, high = figures.intervals.get(key, (None, None))
    of_tokens = key.startswith(("ce_", "kl_"))
    counted = figures.n_behaviour_tokens if of_tokens else figures.n_rows
    n = figures.n_density_rows if key == "dead_fraction" else counted
    return Finding(
        key=key,
        value=figures.values[key],
        low=low,
        high=high,
        n=n,
        unit="tokens" if of_tokens else "rows",
        floor=0.0 if key in _FLOORS else None,
        floor_of=_FLOORS.get(key, ""),
    )


def judged(own: Evidence, controls: Mapping[str, Evidence]) -> list[Verdict]:
    """Return a verdict on every finding of a dictionary, beside controls by their kind."""
    return [_verdict(own, controls, one) for one in own.findings]


def _verdict(own: Evidence, controls: Mapping[str, Evidence], finding: Finding) -> Verdict:
    found = {kind: one.find(finding.key, finding.of) for kind, one in controls.items()}
    beside = {kind: one for kind, one in found.items() if one is not None}
    if finding.value is None:
        return Verdict(finding, beside, "not measurable", f"{finding.why_not}.")
    if finding.metric.higher_is_better is None or finding.key in _CONTEXT:
        return Verdict(finding, beside, "context", "Says how to read the others.")
    if finding.beats_floor is False:
        said = f"No better than {finding.floor_of or 'its floor'}, so it says nothing good."
        return Verdict(finding, beside, "at its floor", said)
    if finding.key in _AT_EQUAL_FIDELITY:
        said = f"Better than {finding.floor_of or 'its floor'}; controls keep another share."
        return Verdict(finding, beside, "better", said)
    words = {
        kind: _beside(own, controls[kind], finding, one)
        for kind, one in beside.items()
        if one.value is not None
    }
    return Verdict(finding, beside, *_summed_up(finding, words, beside))


def _beside(own: Evidence, control: Evidence, finding: Finding, other: Finding) -> str:
    """Return how a figure compares with that of a control: better, worse, or why neither."""
    ours, theirs = _ends(finding), _ends(other)
    if not finding.metric.higher_is_better:
        # Turned round, so that more is better.
        ours, theirs = (-ours[1], -ours[0]), (-theirs[1], -theirs[0])
    if theirs[0] > ours[1]:
        return "worse"
    if ours[0] <= theirs[1]:
        return "not told apart"
    is_sparser = _l0(control) < _SPARSER * _l0(own)
    return "sparser" if finding.key in _AT_EQUAL_L0 and is_sparser else "better"


def _l0(evidence: Evidence) -> float:
    found = evidence.find("l0")
    return 0.0 if found is None or found.value is None else found.value


def _ends(finding: Finding) -> tuple[float, float]:
    value = finding.value
    assert value is not None
    return (
        value if finding.low is None else finding.low,
        value if finding.high is None else finding.high,
    )


def _summed_up(
    finding: Finding, words: Mapping[str, str], beside: Mapping[str, Finding]
) -> tuple[Word, str]:
    """Return the verdict that the weakest comparison allows, with its sentence."""

    def named(word: str) -> str:
        return " and ".join(f"the {CONTROLS[k].title}" for k, w in words.items() if w == word)

    if "worse" in words.values():
        return "worse", f"Worse than {named('worse')}."
    if "not told apart" in words.values():
        return "not told apart", f"Not told apart from {named('not told apart')}."
    if "better" in words.values():
        gaps = [
            abs(float(finding.value or 0) - float(beside[kind].value or 0))
            for kind, word in words.items()
            if word == "better"
        ]
        by = format(min(gaps), finding.metric.form)
        but = f" {_SPARSELY}" if "sparser" in words.values() else ""
        return "better", f"Better than {named('better')}, by {by} or more.{but}"
    if "sparser" in words.values():
        return "not told apart", f"Not compared with {named('sparser')}: {_SPARSELY}"
    if finding.beats_floor:
        return (
            "better",
            f"Better than {finding.floor_of or 'its floor'}; no control was measured.",
        )
    return "context", "There is nothing to set it beside: no control was measured."


_SPARSELY = "A control with a lower L0 has a handicap, so that comparison proves nothing."
