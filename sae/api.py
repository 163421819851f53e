"""Every stage as a Python call, with the keys of the command line.

`sae.train(run="runs/mine", sae=StandardConfig(d_sae=2304))` does what
`sae train run=runs/mine sae.d_sae=2304` does. Each call takes either a finished
configuration or its fields, and returns what the stage made.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sae.base.errors import UserError, require
from sae.cache.layout import ActivationCache
from sae.dictionary import Dictionary
from sae.dictionary.files import load_dictionary
from sae.exchange.formats import read_dictionary, write_dictionary
from sae.exchange.hub import local_path
from sae.schemas import STAGES
from sae.schemas.grids import refuse_twins

if TYPE_CHECKING:
    from sae.commands.train import TrainConfig
    from sae.figures import Figures


def _run(name: str, config: Any, settings: dict[str, Any], **more: Any) -> Any:
    stage = STAGES[name]
    expected = stage.config_class()
    if config is None:
        try:
            config = expected(**settings)
        except TypeError as error:
            raise UserError(f"sae.{stage.call}: {error}") from error
    elif settings or not isinstance(config, expected):
        raise UserError(
            f"sae.{stage.call} takes one {expected.__name__}, or its fields by keyword"
        )
    return stage.module().run(config, **more)


def harvest(config: Any = None, /, **settings: Any) -> ActivationCache:
    """Stream activations of a model over text into `{run}/cache.zarr`; see `HarvestConfig`."""
    cache: ActivationCache = _run("harvest", config, settings)
    return cache


def train(
    config: Any = None,
    /,
    *,
    rows: Iterable[Tensor | tuple[Tensor, Tensor]] | None = None,
    **settings: Any,
) -> Dictionary:
    """Fit one autoencoder to a cache, or beside the model; see `TrainConfig`.

    Args:
        rows: activations (n, d_in) from your own code instead, or for a transcoder pairs of
            input and output.
    """
    dictionary: Dictionary = _run("train", config, settings, rows=rows)
    return dictionary


def sweep(configs: "Iterable[TrainConfig]") -> list[Dictionary]:
    """Several dictionaries side by side from one stream of batches, in the order given."""
    expected = STAGES["train"].config_class()
    require(
        isinstance(configs, Iterable),
        f"sae.sweep takes a list of TrainConfigs; this is none: {type(configs).__name__}",
    )
    wanted = list(configs)
    require(bool(wanted), "sae.sweep was given no configuration; give one TrainConfig or more")
    for config in wanted:
        found = type(config).__name__
        require(
            isinstance(config, expected), f"sae.sweep takes TrainConfigs; this is none: {found}"
        )
    refuse_twins(wanted)
    from sae.commands.sweep import run

    run(wanted)
    return [load_dictionary(str(config.dictionary_path)) for config in wanted]


def eval(config: Any = None, /, **settings: Any) -> "list[Figures]":
    """Figures of a run's dictionaries on held-out text; see `EvalConfig`."""
    figures: list[Figures] = _run("eval", config, settings)
    return figures


def analyze(config: Any = None, /, **settings: Any) -> Any:
    """Density, contexts and logits of every feature; returns the atlas, see `AnalyzeConfig`."""
    return _run("analyze", config, settings)


def serve(config: Any = None, /, **settings: Any) -> None:
    """Show the atlases of a run in a browser until stopped; see `ServeConfig`."""
    _run("serve", config, settings)


def steer(config: Any = None, /, **settings: Any) -> list[dict[str, Any]]:
    """Turn features up and down and measure what it does; see `SteerConfig`."""
    results: list[dict[str, Any]] = _run("steer", config, settings)
    return results


def export(config: Any = None, /, **settings: Any) -> Any:
    """A folder that others can load; returns its path, see `ExportConfig`."""
    return _run("export", config, settings)


def import_(config: Any = None, /, **settings: Any) -> Dictionary:
    """A dictionary of another tool, taken into a run; see `ImportConfig`."""
    dictionary: Dictionary = _run("import", config, settings)
    return dictionary


def demo(config: Any = None, /, **settings: Any) -> dict[str, Any]:
    """The whole path on a small real model; returns the report's figures, see `DemoConfig`."""
    report: dict[str, Any] = _run("demo", config, settings)
    return report


def load(path: str, format: str | None = None) -> Dictionary:
    """A trained dictionary, ours or of any format in `docs/formats.md`.

    Args:
        path: the folder, of OpenAI's and Qwen's also the file, or `ORG/NAME:FOLDER` on the Hub.
        format: name of the format; by default told from what is in the folder.

    Raises:
        UserError: if there is no dictionary, several formats fit, or it is not what it claims.
    """
    return read_dictionary(local_path(path), format)


def save(dictionary: Dictionary, path: str, format: str = "saelens") -> None:
    """Write a dictionary as a folder that other tools load, all at once.

    With `load` this turns one format into another. `export` writes a folder for the Hub, with
    the tables and figures of a run.

    Args:
        path: the folder; one that holds something is not touched.
        format: `docs/formats.md` lists those that are written.

    Raises:
        UserError: if the folder holds something, or the format has no place for the dictionary.
    """
    folder = Path(path)
    free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    require(free, f"{path} is there already; give a new folder")
    write_dictionary(dictionary, folder, format)
