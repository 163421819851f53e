"""`sae steer`: some features of a dictionary turned down and up while the model writes."""

from pathlib import Path
from typing import Any

from sae.atlas import Atlas
from sae.base import digest, is_whole, plain, read_object, require, say, write_json
from sae.pages.results import Steering
from sae.pages.steering_picture import draw_steering
from sae.run import Run, keep_settings, make
from sae.steering.choose import check_causal
from sae.steering.config import SteerConfig
from sae.steering.kept import Kept
from sae.steering.steer import steer
from sae.steering.words import read_words

__all__ = ["SteerConfig", "run"]

_ANEW = "remove it and run sae steer again"


def run(config: SteerConfig) -> Steering:
    """Steer, or reuse results of the same atlas and settings.

    Returns:
        The `summary` over features and the `features`, each with its baselines.
    """
    run = Run.at(config.run)
    name, dictionary = run.load(config.dictionary)
    path = run.steering(name)
    if not path.exists():
        check_causal(name, dictionary)
    atlas = Atlas(run.atlas(name))
    again = f"sae analyze run={config.run} dictionary={name}"
    require(
        atlas.folder.exists(),
        f"{atlas.folder} is missing, but strengths are multiples of activations that it "
        f"measured; run first: {again}",
    )
    run.check_measured(name, dictionary, atlas.record, "analyze")
    require(
        not atlas.record.imported,
        f"{atlas.folder} was imported, and dashboards of other tools do not have the ids of "
        f"promoted tokens; move it away and run: {again}",
    )
    settings = [v for k, v in plain(config).items() if k not in ("run", "device", "dictionary")]
    words = None if config.vocabulary is None else sorted(read_words(config.vocabulary))
    wanted = digest([atlas.record.digest, settings, words, "halves"])
    work = path.parent / f".{name}.work"

    def is_current() -> bool:
        if not path.exists() or not is_whole(path):
            return False
        return read_object(path, _ANEW).values.get("digest") == wanted

    def build(temporary: Path) -> None:
        found = {"digest": wanted, "sampling": plain(config.sampling)}
        write_json(temporary, found | steer(config, dictionary, atlas, Kept(work, wanted)))

    made = make(path, is_current, build, command="steer", work=work)
    if made:
        keep_settings(config, "steer", path)
    found = read_object(path, _ANEW)
    summary: dict[str, Any] = found.get("summary", dict)
    results = Steering(
        summary=summary,
        features=found.get("features", list),
        vocabulary=found.maybe("vocabulary", dict),
    )
    picture = run.steering_picture(name)
    if results["features"] and not (
        picture.exists() and picture.stat().st_mtime >= path.stat().st_mtime
    ):
        draw_steering(summary, picture)
    if made:
        say(f"steer: {path} is written{', a picture beside it' if results['features'] else ''}")
    say(f"steer: {summary['headline']}")
    if results["features"]:
        say(f"steer: {summary['read_back']}")
    return results
