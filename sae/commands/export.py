"""`sae export`: a dictionary, its features and its card in one folder, ready for the Hub."""

import tempfile
from pathlib import Path

from sae.base import check_writable, say
from sae.evaluation.shrink import held_out_rows, shrinking_cost
from sae.publishing.folder import show_files, smaller, summary, write_folder
from sae.publishing.plan import ExportConfig, Plan, is_there, plan
from sae.publishing.push import check_can_push, push
from sae.run import Run, held, keep_settings, make

__all__ = ["ExportConfig", "run"]


def run(config: ExportConfig) -> Path:
    """Write the folder; it replaces nothing but what an export of the same dictionary left."""
    if config.push is not None and not config.dry_run:
        check_can_push(config.push)
    planned = plan(config)
    target, place = planned.target, planned.place
    check_writable(place.parent)
    if config.dry_run:
        is_there(planned)
        with tempfile.TemporaryDirectory() as scratch:
            _write(planned, Path(scratch))
            show_files(planned, Path(scratch))
        return target

    def build(folder: Path) -> None:
        folder.mkdir()
        _write(planned, folder)
        # What somebody put there meanwhile stays.
        is_there(planned)

    made = make(place, lambda: is_there(planned), build, command="export", lock=planned.lock)
    # In the run, for the folder itself may be anywhere, and goes to others as it is.
    if made:
        keep_settings(config, "export", Run.at(config.run).export(planned.name))
    if made:
        say(f"export: {target}: {summary(place)}")
    if config.push is not None:
        with held(place, planned.lock):
            push(target, config.push, private=config.private)
        say(f"export: {target} is now on the Hub, as a model and as the data set {config.push}")
    return target


def _write(planned: Plan, folder: Path) -> None:
    """Put everything into `folder`, with what a smaller dictionary costs measured first."""
    config, dictionary = planned.config, planned.dictionary
    if not planned.changes_weights:
        write_folder(planned, smaller(dictionary, planned.dtype), None, folder)
        return
    rows = held_out_rows(planned.name, dictionary, config.cache_location)
    n_active = planned.atlas.feature_table(["n_active"])["n_active"].to_numpy()
    if config.drop_dead and n_active.all():
        say("export: drop_dead=true leaves nothing out, because every feature fired")
    small = smaller(dictionary, planned.dtype, n_active if config.drop_dead else None)
    cost = None
    if small.dictionary is not dictionary:
        cost = shrinking_cost(dictionary, small.dictionary, rows, causal=planned.has_ce)
    write_folder(planned, small, cost, folder)
