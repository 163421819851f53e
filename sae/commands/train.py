"""`sae train`: rows of activations to a dictionary."""

from sae.base import check_writable
from sae.dictionary import Dictionary, load_dictionary
from sae.rows.own import OwnTensors
from sae.training.config import TrainConfig
from sae.training.task import open_source, tasks_of
from sae.training.train import train_together

__all__ = ["TrainConfig", "run"]


def run(config: TrainConfig, rows: OwnTensors | None = None) -> Dictionary:
    """Train, or go on from a checkpoint, or reuse a finished dictionary.

    Args:
        rows: tensors (n, d_in) to train on in place of a cache, of any n; pairs of them,
            (n, d_in) and (n, d_out), for a transcoder.
    """
    check_writable(config.dictionary_path)
    source = open_source(config, rows)
    train_together(tasks_of([config], source), source)
    return load_dictionary(config.dictionary_path)
