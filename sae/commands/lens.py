"""`sae lens`: what a model would predict next, from its stream after each block."""

import functools
from collections.abc import Callable
from pathlib import Path

from sae.base import damaged, digest, plain, read_object, say, seal, write_json, write_text
from sae.cache.layout import ActivationCache, open_cache
from sae.lenses import (
    LENS,
    LensConfig,
    TunedLens,
    cached_streams,
    check_before_loading,
    fit_tuned,
    fitted_digest,
    load_tuned,
    read_lens,
)
from sae.models import LanguageModel, load_model, recorded_config, recorded_model, recorded_name
from sae.pages.lens import Lens
from sae.pages.lens_picture import draw_lens
from sae.run import Run, keep_settings, make

__all__ = ["LensConfig", "run"]

_ABOUT, _PAGE, _PICTURE = "lens.json", "index.html", "lens.png"
_ANEW = "remove the folder and run sae lens again"


def run(config: LensConfig) -> Lens:
    """Read a text through lenses, or reuse what was read with the same settings.

    Returns:
        The lens, which a notebook shows as a grid.
    """
    run = Run.at(config.run)
    folder = run.lens(config.name)
    cache = open_cache(config.cache_location) if config.tuned else None

    @functools.cache
    def model() -> LanguageModel:
        if cache is None:
            return load_model(config.model)
        return recorded_model(cache.model, config.model.device)

    _check(config, cache)
    # A cache knows which weights it is of; of a model alone only its weights tell.
    weights = "" if cache is not None else model().record.weight_digest
    wanted = _digest(config, cache, weights)

    def is_current() -> bool:
        if not (folder / _ABOUT).exists() or damaged(folder):
            return False
        return read_object(folder / _ABOUT, _ANEW).values.get("digest") == wanted

    def build(temporary: Path) -> None:
        tuned = None if cache is None else _tuned(config, cache, model)
        table = read_lens(model(), config.text, tuned=tuned, n_top=config.n_top)
        judged = None if tuned is None else {**tuned.judged}
        name = model().record.hub_id
        temporary.mkdir()
        LENS.write(temporary, {one: table[one] for one in table.column_names})
        about = {"model": name, "text": config.text, "judged": judged}
        write_json(temporary / _ABOUT, {"digest": wanted, **about})
        lens = Lens(table, name, config.text, judged)
        write_text(temporary / _PAGE, lens.page())
        draw_lens(lens.plot(), temporary / _PICTURE)
        seal(temporary)

    made = make(folder, is_current, build, command="lens")
    if made:
        keep_settings(config, "lens", folder)
    found = _read(folder)
    say(f"\n{found.as_text()}")
    say(f"lens: {found.headline}")
    if made:
        say(f"lens: {folder}/{_PAGE}, {_PICTURE}, {LENS.file}")
    return found


def _digest(config: LensConfig, cache: ActivationCache | None, weights: str) -> str:
    """Identify what is read, by what, and what is kept of it."""
    settings = config.text, config.n_top
    if cache is not None:
        return digest(["lens", *settings, cache.digest, config.n_held_out_tokens])
    model = {**plain(config.model), "name": recorded_name(config.model.name)}
    del model["device"]
    return digest(["lens", *settings, model, weights])


def _check(config: LensConfig, cache: ActivationCache | None) -> None:
    """Refuse what no lens can read, before weights are loaded."""
    if cache is None:
        check_before_loading(config.model, config.text)
        return
    skeleton = check_before_loading(
        recorded_config(cache.model, config.model.device), config.text
    )
    cached_streams(skeleton, cache, _harvest(config, cache))


def _harvest(config: LensConfig, cache: ActivationCache) -> str:
    """Return the beginning of a command that makes another cache of a cache's model."""
    place = f"run={config.run} cache={config.run}/streams.zarr"
    return f"sae harvest {place} model={cache.model.name}"


def _tuned(
    config: LensConfig, cache: ActivationCache, model: Callable[[], LanguageModel]
) -> TunedLens:
    """Return the maps of a tuned lens, fitted to a cache unless they are there already."""
    place = Run.at(config.run).tuned_lens
    streams = cached_streams(model().module, cache, _harvest(config, cache))
    wanted = streams.digest(config.n_held_out_tokens)

    def build(temporary: Path) -> None:
        fit_tuned(streams, model(), config.n_held_out_tokens).save(temporary)

    make(place, lambda: fitted_digest(place) == wanted, build, command="lens")
    return load_tuned(place)


def _read(folder: Path) -> Lens:
    """Return what was written."""
    import pyarrow.parquet

    about = read_object(folder / _ABOUT, _ANEW)
    table = pyarrow.parquet.read_table(folder / LENS.file)
    model, text = about.get("model", str), about.get("text", str)
    return Lens(table, model, text, about.maybe("judged", dict), folder)
