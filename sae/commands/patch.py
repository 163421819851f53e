"""`sae patch`: which places of a model carry an answer, and `sae patch edit`, to turn one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae.base import damaged, digest, plain, read_object, require, say, seal, write_json
from sae.exchange.dictionaries import load_named
from sae.models import load_model
from sae.pages.patching import with_labels, write_patching_page
from sae.pages.patching_picture import draw_patching
from sae.patching.config import PatchConfig
from sae.patching.pairs import pair_texts
from sae.patching.patch import Plan, patch, planned
from sae.patching.results import DIRECTIONS, PICTURE, SUMMARY, TABLE, PatchResults
from sae.run import Run, keep_settings, make

__all__ = ["PatchConfig", "PatchEditConfig", "PatchResults", "edit", "run"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchEditConfig:
    """Save a place that patching has found as an edit file.

    For a position of the residual stream, attention or the MLP, the edit adds the mean
    difference between clean and corrupt activations. For a head, it ablates the head. For a
    feature, it adds the feature's mean change.
    """

    results: str
    """Folder of the results, `RUN/patching/NAME`."""
    out: str
    """The edit file to write, YAML or JSON. A direction is written to a file beside it."""
    site: str
    """Kind of the place: `residual`, `attention`, `mlp`, `head`, `feature`, or for a dictionary
    `features`, `error` or `features+error`."""
    layer: int | None = None
    """Block of the place. It is not needed for places of a dictionary."""
    position: int | None = None
    """Position of the token in the prompt, from 0. The last position stands for the last token
    of any prompt."""
    head: int | None = None
    """Number of a head."""
    feature: int | None = None
    """Number of a feature."""
    group: int = 0
    """Number of the group of pairs whose positions mean the same, as on the page."""


def run(config: PatchConfig) -> PatchResults:
    """Patch, or reuse results of the same pairs, model and settings."""
    require(
        config.model.is_causal(),
        f"model={config.model.name} is an encoder and predicts no next token, so it gives no "
        "answers to compare; give a causal model",
    )
    texts = pair_texts(config)
    run = Run.at(config.run)
    folder = run.patching(config.name)
    dictionary = None if config.dictionary is None else load_named(run, config.dictionary)
    settings = [v for k, v in plain(config).items() if k not in ("run", "model", "batch_size")]
    model = load_model(config.model)
    asked = plain(config.model) | {"device": None}
    weights = [model.record.weight_digest, None if dictionary is None else dictionary[1].digest]
    wanted = digest([settings, [plain(text) for text in texts], asked, weights])

    def is_current() -> bool:
        place = folder / SUMMARY
        if not place.is_file() or damaged(folder):
            return False
        again = "remove the folder and run sae patch again"
        return read_object(place, again).values.get("digest") == wanted

    def plan() -> Plan:
        return planned(config, texts, model, dictionary)

    def build(temporary: Path) -> None:
        from pyarrow.parquet import write_table
        from safetensors.torch import save_file

        found = patch(config, prepared[0] if prepared else plan())
        summary: dict[str, Any] = {"digest": wanted, "folder": str(folder), **found.summary}
        if summary["dictionary"] is not None:
            place = run.atlas(Path(summary["dictionary"]["name"]).name)
            summary["dictionary"] = with_labels(summary["dictionary"], place, folder)
        temporary.mkdir()
        write_table(found.table, temporary / TABLE)
        save_file(dict(found.directions), temporary / DIRECTIONS)
        write_patching_page(temporary, summary, found.table)
        draw_patching(summary, found.table, temporary / PICTURE)
        write_json(temporary / SUMMARY, summary)
        seal(temporary)

    # Before anything is written: what cannot be patched leaves nothing behind.
    prepared = [] if is_current() else [plan()]
    made = make(folder, is_current, build, command="patch")
    if made:
        keep_settings(config, "patch", folder)
    results = PatchResults(folder)
    if made:
        picture = f"{PICTURE}, " if (folder / PICTURE).exists() else ""
        say(f"patch: {folder} is written: index.html, {picture}{TABLE}")
    for line in _told(results):
        say(f"patch: {line}")
    return results


def edit(config: PatchEditConfig) -> Path:
    """Write the edit file; returns its place."""
    out = Path(config.out)
    where = {
        key: getattr(config, key) for key in ("layer", "position", "head", "feature", "group")
    }
    PatchResults(Path(config.results)).save(out, config.site, **where)
    say(f"patch edit: {out} is written; try it with: sae edit check {out}")
    return out


def _told(results: PatchResults) -> list[str]:
    """Return what the terminal says: the strongest place of each kind, and agreement."""
    lines, first = [], results.summary["groups"][0]
    patch = "denoising" if "denoising" in {*results.table["patch"].to_pylist()} else "noising"
    best: dict[str, dict[str, Any]] = {}
    for row in results.strongest(len(results.table), patch):
        if row["group"] == 0:
            best.setdefault(row["site"], row)
    for site, row in best.items():
        place = ", ".join(
            f"{key} {row[key]}"
            for key in ("layer", "head", "position", "feature")
            if row[key] is not None
        )
        token = "" if row["position"] is None else f" ({first['tokens'][row['position']]!r})"
        heard = "" if row["receiver"] is None else f" to {row['receiver']}"
        ends = "" if row["low"] is None else f" [{row['low']:.2f}, {row['high']:.2f}]"
        lines.append(f"strongest {site}: {place}{token}{heard}: {row['effect']:.2f}{ends}")
    agreement = [one for one in results.summary["agreement"] if one["patch"] == patch]
    for site in dict.fromkeys(one["site"] for one in agreement):
        said = ", ".join(
            f"{one['method']} {one['r']:.2f}" for one in agreement if one["site"] == site
        )
        lines.append(f"r with exact patching, {site}: {said} (norm alone is the floor)")
    return lines
