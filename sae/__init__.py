"""Sparse autoencoders, from text to steering: harvest, train, eval, analyze, steer, export.

Every command (`sae train ...`) is also a call (`sae.train(...)`) with the same keys. Names are
imported when they are first used, so `import sae` costs nothing; `__init__.pyi` tells editors
and type checkers what they are.
"""

import importlib

# The calls and configuration classes of the commands come from their table.
_HOMES = {
    "ActivationCache": "sae.cache.layout",
    "ActivationDataset": "sae.rows.dataset",
    "ArchitectureConfig": "sae.architectures",
    "Atlas": "sae.atlas.atlas",
    "BatchTopKConfig": "sae.architectures",
    "CheckpointConfig": "sae.training.checkpoint",
    "DataConfig": "sae.text.source",
    "DialConfig": "sae.analysis.dials",
    "Dictionary": "sae.dictionary",
    "EditRecord": "sae.edits",
    "Edits": "sae.edits",
    "GatedConfig": "sae.architectures",
    "HierarchicalTopKConfig": "sae.architectures",
    "JumpReLUConfig": "sae.architectures",
    "LoggerConfig": "sae.training.loggers",
    "MatryoshkaConfig": "sae.architectures",
    "Model": "sae.interactive",
    "ModelConfig": "sae.models.load",
    "OptimConfig": "sae.training.optim",
    "OrderedTopKConfig": "sae.architectures",
    "PAnnealConfig": "sae.architectures",
    "Question": "sae.lenses.patchscope",
    "Reading": "sae.rows.reading",
    "StandardConfig": "sae.architectures",
    "SweepConfig": "sae.training.config",
    "TopKConfig": "sae.architectures",
    "UserError": "sae.base",
    "WorldConfig": "sae.synthetic",
    "check_model": "sae.evaluation.model_check",
    "edit": "sae.edits",
    "load": "sae.exchange.dictionaries",
    "model": "sae.interactive",
    "open_cache": "sae.cache.layout",
    "save": "sae.exchange.dictionaries",
    "sweep": "sae.commands.train",
}


def __getattr__(name: str) -> object:
    if name == "__all__":
        return __dir__()
    found: object
    if name == "__version__":
        from sae.base.provenance import code_version

        found = code_version()
    elif name in _HOMES:
        found = getattr(importlib.import_module(_HOMES[name]), name)
    elif name.startswith("_"):
        raise AttributeError(f"module 'sae' has no attribute {name!r}")
    else:
        from sae.config.commands import configurations, python_calls

        if name in configurations():
            found = configurations()[name].config_class()
        elif name in python_calls():
            from sae.config.calls import call_of

            found = call_of(python_calls()[name])
        else:
            raise AttributeError(f"module 'sae' has no attribute {name!r}")
    # From now on Python finds it by itself.
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    from sae.config.commands import configurations, python_calls

    return sorted([*_HOMES, *configurations(), *python_calls()])
