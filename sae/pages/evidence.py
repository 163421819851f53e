"""The page of evidence: what each dictionary is better than, by how much, and on what."""

import html
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from sae.base import require, versions, write_text
from sae.controls import CONTROLS
from sae.dictionary.files import read_record
from sae.evidence import Evidence, Verdict, judged
from sae.findings import Finding
from sae.pages.page import embedded, filled, plain
from sae.run import Run

Shown = dict[str, object]


def write_evidence(run: Run) -> Path:
    """Write `evidence.html` over all dictionaries of a run that the suite has measured.

    Findings of weights that have changed since are left out.

    Raises:
        UserError: if there are none.
    """
    known = [_read(run, name) for name in run.dictionary_names]
    there = {one.id: one for one in known if one is not None}
    require(
        bool(there),
        f"{run.folder} holds no evidence; run: sae eval run={run.folder} suite=standard",
    )
    own = [one for one in there.values() if one.control is None] or list(there.values())
    report = {
        "run": shlex.quote(str(run.folder)),
        "model": _model_of(run, own[0].id),
        "dictionaries": [_shown(one, _controls(run, one, there)) for one in own],
        "controls": {kind: asdict(control) for kind, control in CONTROLS.items()},
        "versions": versions(),
    }
    page = filled(
        "evidence.html",
        title=html.escape(f"{report['model']}: what its dictionaries are worth"),
        report=embedded(plain(report)),
    )
    write_text(run.evidence_page, page)
    return run.evidence_page


def _read(run: Run, name: str) -> Evidence | None:
    path = run.evidence(name)
    if not path.exists():
        return None
    found = Evidence.read(path)
    # By the weights themselves: an imported dictionary has no training to tell it by.
    return found if found.dictionary_digest == run.load(name)[1].digest else None


def _model_of(run: Run, name: str) -> str:
    return read_record(run.dictionary(name)).model_name or "a model"


def _controls(run: Run, own: Evidence, there: Mapping[str, Evidence]) -> dict[str, Evidence]:
    found = {kind: there.get(name) for kind, name in run.controls(own.id).items()}
    return {kind: one for kind, one in found.items() if one is not None}


def _shown(own: Evidence, controls: Mapping[str, Evidence]) -> Shown:
    verdicts = judged(own, controls)
    words = Counter(verdict.word for verdict in verdicts)
    return {
        "id": own.id,
        "recipe": own.recipe,
        "hook_name": own.hook_name,
        "data": own.data,
        "seconds": own.seconds,
        "summary": summary(verdicts, list(controls)),
        "counts": words,
        "controls": {kind: one.id for kind, one in controls.items()},
        "missing": [kind for kind in CONTROLS if kind not in controls],
        "figures": [_figure(verdict) for verdict in verdicts],
    }


def summary(verdicts: Sequence[Verdict], controls: Sequence[str]) -> str:
    """Return in one sentence what the verdicts come to."""
    words = Counter(verdict.word for verdict in verdicts)
    measured = sum(n for word, n in words.items() if word not in ("context", "not measurable"))
    titles = [CONTROLS[kind].title for kind in controls]
    beside = " and ".join(filter(None, [", ".join(titles[:-1]), *titles[-1:]]))
    what = f"its floors and the {beside}" if beside else "its floors; no control was trained"
    if not measured:
        return "No figure of it can be set beside anything yet."
    said = [f"Of {measured} figures {words['better']} are better than {what}"]
    said += [f"{n} no better than a floor" for n in [words["at its floor"]] if n]
    said += [f"{n} not told apart from a control" for n in [words["not told apart"]] if n]
    said += [f"{n} worse than a control" for n in [words["worse"]] if n]
    said += [f"{n} more cannot be measured here" for n in [words["not measurable"]] if n]
    return ", ".join(said) + "."


def _figure(verdict: Verdict) -> Shown:
    metric = verdict.finding.metric
    return {
        **_numbers(verdict.finding),
        "title": metric.title,
        "meaning": metric.meaning,
        "formula": metric.formula,
        "scale": metric.scale,
        "form": metric.form,
        "higher_is_better": metric.higher_is_better,
        "word": verdict.word,
        "sentence": verdict.sentence,
        "beside": {kind: _numbers(one) for kind, one in verdict.controls.items()},
    }


def _numbers(finding: Finding) -> Shown:
    return asdict(finding)
