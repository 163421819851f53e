"""`sae probe`: what can be told from activations, and `sae probe edit`, to use it."""

from dataclasses import dataclass
from pathlib import Path

from sae.base import damaged, digest, plain, read_object, say, seal, write_json
from sae.exchange.dictionaries import load_named
from sae.models import load_model
from sae.pages.probing import write_probing_page
from sae.pages.probing_picture import draw_probing
from sae.probing.config import ProbeConfig
from sae.probing.probe import check_before_loading, probe, read_tasks
from sae.probing.results import PICTURE, SUMMARY, TABLE, ProbeResults, write_tables
from sae.run import Run, keep_settings, make
from sae.text.labelled import task_names

__all__ = ["ProbeConfig", "ProbeEditConfig", "ProbeResults", "edit", "run"]

_AGAIN = "remove the folder and run sae probe again"


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeEditConfig:
    """Save the direction of a probe as an edit file, to steer with it or to take it out."""

    results: str
    """Folder of the results, `RUN/probing/NAME`."""
    out: str
    """The edit file to write, YAML or JSON. The direction is written to a file beside it."""
    task: str | None = None
    """The task. You may leave it out if the results have only one."""
    hook_name: str | None = None
    """The hook. By default it is the one at which validation found the best probe of the
    task."""
    pool: str | None = None
    """The pool of the probe, such as `last` or `mean`. By default it is the one that validation
    chose."""
    do: str = "add"
    """What the edit does: `add` moves activations towards the second label, and `orthogonal`
    takes the direction out of them."""
    by: float | None = None
    """How far to move, in the model's own units. By default it is the distance between the
    means of both labels."""


def run(config: ProbeConfig) -> ProbeResults:
    """Probe, or reuse results of the same texts, model and settings."""
    names = task_names(config.tasks)
    run = Run.at(config.run)
    folder = run.probing(config.name)
    dictionary = None if config.dictionary is None else load_named(run, config.dictionary)
    check_before_loading(config, dictionary)
    tasks, left_out = read_tasks(config, names)
    model = load_model(config.model)
    settings = [v for k, v in plain(config).items() if k not in ("run", "model")]
    texts = [[one.name, one.texts.digest, *one.pools] for one in tasks]
    weights = [model.record.weight_digest, None if dictionary is None else dictionary[1].digest]
    asked = plain(config.model) | {"device": None}
    wanted = digest([settings, texts, asked, weights])

    def is_current() -> bool:
        place = folder / SUMMARY
        if not place.is_file() or damaged(folder):
            return False
        return read_object(place, _AGAIN).values.get("digest") == wanted

    def build(temporary: Path) -> None:
        summary = {"digest": wanted, **found.summary}
        temporary.mkdir()
        table = write_tables(temporary, found.records, found.directions)
        write_probing_page(temporary, summary, table)
        draw_probing(summary, table, temporary / PICTURE)
        write_json(temporary / SUMMARY, summary)
        seal(temporary)

    if not is_current():
        # Before the folder is begun, so that what cannot be probed leaves none behind.
        found = probe(config, tasks, model, dictionary, left_out)
    made = make(folder, is_current, build, command="probe")
    if made:
        keep_settings(config, "probe", folder)
    results = ProbeResults(folder)
    if made:
        say(f"probe: {folder} is written: index.html, {PICTURE}, {TABLE}")
    for line in results.lines():
        say(f"probe: {line}")
    say(f"probe: {results.summary['statement']}")
    return results


def edit(config: ProbeEditConfig) -> Path:
    """Write the edit file; returns its place."""
    out = Path(config.out)
    where = {key: getattr(config, key) for key in ("hook_name", "pool", "do", "by")}
    ProbeResults(Path(config.results)).save(out, config.task, **where)
    say(f"probe edit: {out} is written; try it with: sae edit check {out}")
    return out
