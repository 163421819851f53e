"""`sae compare`: which features two dictionaries share, and which only one of them has."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sae.atlas import labels_at
from sae.base import damaged, digest, read_object, require, say, seal, write_json
from sae.cache.layout import open_cache
from sae.dictionary import Dictionary
from sae.evaluation.compared import columns_of, compared_in
from sae.exchange.dictionaries import load
from sae.pages.comparison import MATCHES, SUMMARY, Comparison, figures_at
from sae.pages.matches import write_matches_page
from sae.rows.origin import check_same_origin
from sae.run import Run, cache_location, keep_settings, make

__all__ = ["CompareConfig", "Comparison", "run"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareConfig:
    """Compare two dictionaries of one hook: shared features, own features, and figures."""

    first: str
    """The first dictionary: its folder, its name in `run`, or the folder of a run, which stands
    for its recommended dictionary."""
    second: str
    """The second dictionary, given in the same way."""
    run: str | None = None
    """Folder of the run to which the comparison goes, and in which names are looked up. By
    default it is the run of the first dictionary."""
    cache: str = "{run}/cache.zarr"
    """Cache whose held-out rows say which features are alive."""
    seed: int = 0
    """Seed of the unrelated directions that chance is measured with."""


@dataclass(frozen=True)
class _Subject:
    name: str
    dictionary: Dictionary
    run: Run | None


def run(config: CompareConfig) -> Comparison:
    """Compare, or reuse a comparison of the same weights on the same rows."""
    first, second = _subject(config, config.first), _subject(config, config.second)
    _check_hooks(first, second)
    home = Run.at(config.run) if config.run else first.run
    require(
        home is not None,
        f"{config.first} is in no run; give run=FOLDER, where the comparison is to go",
    )
    assert home is not None
    cache = open_cache(cache_location(str(home.folder), config.cache))
    for one in (first, second):
        check_same_origin(one.name, one.dictionary, cache)
    names = _names(first, second)
    folder = home.comparison(f"{names[0]}--{names[1]}".replace("/", "-"))
    digests = [first.dictionary.digest, second.dictionary.digest]
    figures, labels = _figures(first, second), [_labels(first), _labels(second)]
    about = [cache.digest, config.seed, names, figures, labels]
    wanted = digest(["compare with numbers", *digests, *about])

    def is_current() -> bool:
        place = folder / SUMMARY
        if not place.is_file() or damaged(folder):
            return False
        again = "remove the folder and run sae compare again"
        return read_object(place, again).values.get("digest") == wanted

    def build(temporary: Path) -> None:
        found, n_rows = compared_in(first.dictionary, second.dictionary, cache, config.seed)
        temporary.mkdir()
        MATCHES.write(temporary, columns_of(found, *labels))
        about = {
            "digest": wanted,
            "names": names,
            "model_name": first.dictionary.model_name,
            "hook_name": first.dictionary.hook_name,
            "n_rows": n_rows,
            "notes": _notes(first.dictionary, second.dictionary),
            **figures,
        }
        write_json(temporary / SUMMARY, about | dict(found.to_json()))
        write_matches_page(temporary)
        seal(temporary)

    made = make(folder, is_current, build, command="compare")
    if made:
        keep_settings(config, "compare", folder)
    found = Comparison(folder)
    for line in found.lines():
        say(f"compare: {line}")
    say(f"compare: {folder}/index.html shows the features")
    return found


def _subject(config: CompareConfig, place: str) -> _Subject:
    """Find a dictionary by its folder, by its name in the run, or by its run."""
    if config.run is not None and place in Run.at(config.run).dictionary_names:
        home = Run.at(config.run)
        return _Subject(*home.load(place), home)
    if (Path(place) / "dictionaries").is_dir():
        home = Run.at(place)
        return _Subject(*home.load(None), home)
    found, folder = load(place), Path(place).resolve()
    inside = folder.parent.name == "dictionaries"
    return _Subject(folder.name, found, Run(Path(place).parent.parent) if inside else None)


def _check_hooks(first: _Subject, second: _Subject) -> None:
    """Refuse dictionaries of different places, whose directions have nothing in common."""
    places = [" to ".join(dict.fromkeys(one.dictionary.hook_names)) for one in (first, second)]
    require(
        places[0] == places[1],
        f"{first.name} is of {places[0]} and {second.name} of {places[1]}; give two "
        "dictionaries of the same hook, because features of different places cannot be matched",
    )


def _names(first: _Subject, second: _Subject) -> list[str]:
    """Return names that tell the two apart: their own, or those of their runs before them."""
    if first.name != second.name:
        return [first.name, second.name]
    runs = [one.run.folder.name if one.run else "other" for one in (first, second)]
    if runs[0] != runs[1]:
        return [f"{run}/{one.name}" for run, one in zip(runs, (first, second), strict=True)]
    return [first.name, f"{second.name} (second)"]


def _labels(one: _Subject) -> Mapping[int, str]:
    """Return the labels of the features of a dictionary that has an atlas."""
    return labels_at(one.run.atlas(one.name)) if one.run else {}


def _figures(first: _Subject, second: _Subject) -> dict[str, object]:
    """Return figures of both on the same held-out text, or why they are not side by side."""
    found = [
        figures_at(one.run.evaluation(one.name), one.dictionary.digest) if one.run else None
        for one in (first, second)
    ]
    there = [one for one in found if one is not None]
    measured = {(one.data, one.n_rows, one.n_behaviour_tokens) for one in there}
    # Two runs may have harvested different texts of one name.
    trained_on = {one.dictionary.record.cache_digest for one in (first, second)}
    homes = {one.run.folder.resolve() for one in (first, second) if one.run}
    why = ""
    if len(there) < 2:
        missing = ", ".join(
            one.name for one, own in zip((first, second), found, strict=True) if own is None
        )
        why = (
            f"There are no figures of {missing} on held-out text. Measure them with sae eval "
            "run=RUN dictionary=NAME, and compare again."
        )
    elif len(measured) > 1 or (len(homes) > 1 and len(trained_on) > 1):
        why = (
            "Their figures may be of different held-out text, so they are not side by side. "
            "Measure both on one cache with sae eval run=RUN cache=CACHE, and compare again."
        )
    return {
        "figures": [{} if why else dict(one.values) for one in there],
        "intervals": [{} if why else dict(one.intervals) for one in there],
        "without_figures": why,
    }


def _notes(first: Dictionary, second: Dictionary) -> list[str]:
    """Return what a reader has to know before believing a match."""
    found = []
    seeds = [
        one.record.training.seed if one.record.training else None for one in (first, second)
    ]
    if None not in seeds and seeds[0] == seeds[1] and first.digest != second.digest:
        found.append(
            f"Both were trained with seed {seeds[0]}, so they may have begun with the same "
            "directions in the same order. What is shared without pairs of equal numbers owes "
            "nothing to that, and a pair of equal numbers may: compare trainings with "
            "different seeds to tell."
        )
    if first.digest == second.digest:
        found.append("Both have the same weights.")
    return found
