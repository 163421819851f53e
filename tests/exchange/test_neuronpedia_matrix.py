"""`docs/dashboards.md`, made by sending an atlas out and back."""

import shutil
from pathlib import Path

import pytest
from support.dashboards import PLACE, import_atlas, same, seen

from sae.atlas.atlas import Atlas
from sae.atlas.labels import read_labels
from sae.exchange.dashboards.exporting import export_atlas

PAGE = Path(__file__).parents[2] / "docs/dashboards.md"
FORMATS = ("neuronpedia", "saedashboard")
HEAD = """\
# Dashboards of other tools

`sae atlas export PATH OUT` writes an atlas, or the one of a run, in the form of another tool;
`sae atlas import SRC OUT` reads dashboards as an atlas, with its tables and pages.

| `format=` | what is written | read again |
|---|---|---|
| neuronpedia | the folder that Neuronpedia imports in bulk: `MODEL/LAYER-SET/` with \
`features/`, `activations/` and `explanations/` of `batch-N.jsonl.gz`; its own public exports \
have the same form | yes |
| upload | bodies of its call `POST /api/feature/upload-batch`, up to 128 features each; those \
that never fire are left out | no |
| saedashboard | SAEDashboard's `batch-N.json`, `run_settings.json` and \
`skipped_indexes.json` | yes |
| circuit_tracer | a JSON file a feature, as circuit-tracer's pages read them | no |

What those tools round is not rounded here, densities are counts over tokens and not read back
from titles, and correlated features are looked for among all features. The share of tokens in
the lowest interval has the silent ones in it, as theirs has. Histograms of logits and
correlated neurons are empty: an atlas has neither.

This page is written by `pytest --write-pages tests/exchange`, which sends an atlas out and
back; a test asserts that it is up to date.

## What comes back

These tools fold the norms of decoder directions into activations and logits, and so does an
export (`fold=true`); what is imported beside its dictionary is unfolded again, to the rounding
of float32. The table is of `fold=false`, or of directions of norm one, where nothing is folded.
"yes" is the same to the last bit, "directions" is the same if the dictionary lies in the run
that the atlas is imported into (`RUN/atlas/NAME` beside `RUN/dictionaries/NAME`), "labels" is
kept as `labels.csv`, "no" is empty or left out. SAEDashboard's JSON has no explanations: labels
are made anew from contexts, and those by hand are lost.
"""
READ = """
## What is read besides

| what | becomes |
|---|---|
| rows in any order, in several files, compressed or not | sorted by feature |
| features that no file has, or that `skipped_indexes.json` lists | features that never fire |
| densities with five digits | the count of the histogram over the tokens read, where these \
agree |
| histograms that begin at the lowest activation | bars from zero, each count where its middle \
is |
| contexts of intervals in which every activation is zero | contexts in which it is silent |
| whole prompts without their first token | contexts that begin at position 1 |
| logits and correlations that are null or NaN | left out, with what stands beside them |
| halves of characters in a text | marked as such |
| explanations | the first is the label, the others the explanation |
| `vector`, direct feature attribution, logit histograms, correlated neurons | left out |
"""


def comes_back(column: str, before, after, with_directions) -> str:
    """How much of a column is left."""
    if column in after.column_names and same(before[column], after[column]):
        return "yes"
    if with_directions is not None and same(before[column], with_directions[column]):
        return "directions"
    return "no"


def page(atlas: Atlas, folder: Path) -> str:
    """The page's text, from an atlas that has a dictionary beside it."""
    tables = {}
    for name in FORMATS:
        out = export_atlas(atlas.folder, folder / "out" / name, name, fold=False, **PLACE)
        alone = import_atlas(out, folder / name / "atlas" / "strong")
        run = folder / f"{name}-run"
        shutil.copytree(atlas.folder.parents[1] / "dictionaries", run / "dictionaries")
        beside = import_atlas(out, run / "atlas" / "strong")
        tables[name] = alone, beside
    lines = [HEAD]
    kinds = (
        ("features.parquet", lambda a: a.feature_table()),
        ("contexts.parquet, but for silent contexts", seen),
    )
    for title, table in kinds:
        before = table(atlas)
        lines += [f"| {title} | {' | '.join(FORMATS)} |", "|---|" + "---|" * len(FORMATS)]
        for column in before.column_names:
            cells = []
            for name in FORMATS:
                after, beside = (table(one) for one in tables[name])
                there = beside if column in beside.column_names else None
                cell = comes_back(column, before, after, there)
                labels = read_labels(atlas.folder).label
                if column == "label" and labels == read_labels(tables[name][0].folder).label:
                    cell = "labels"
                cells.append(cell)
            lines.append(f"| `{column}` | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join([*lines[:-1], READ])


@pytest.mark.slow
def test_the_page_of_dashboards_is_up_to_date(check_page, atlas, tmp_path):
    check_page(PAGE, page(atlas, tmp_path))
