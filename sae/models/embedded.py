"""The folder of an embedded model, converted on first use from what its package holds."""

import contextlib
from pathlib import Path
from typing import Any

from sae.base import say
from sae.base.assets import made_once, package_folder
from sae.models.packaged import EMBEDDED


def embedded_folder(name: str) -> Path:
    """Return a folder that `from_pretrained` reads, converted from GGUF on first use.

    Reading GGUF takes about 20 s, the converted safetensors less than one.
    """
    model = EMBEDDED[name]

    def convert(folder: Path) -> None:
        source = package_folder(model.requirement) / model.file
        say(f"converting {source.name} to safetensors; this is needed only once")
        _convert(source, folder)

    return made_once(f"models/{model.requirement.replace('==', '-')}", convert)


def _convert(source: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"gguf_file": source.name}
    tokenizer = AutoTokenizer.from_pretrained(source.parent, **where)
    model = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **where)
    # The weights are plain float32 by now, but a model read from GGUF still says that it is
    # quantised, and then refuses to be saved.
    del model.config.quantization_config
    for attribute in ("hf_quantizer", "quantization_method"):
        with contextlib.suppress(AttributeError):
            delattr(model, attribute)
    model.is_quantized = False
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
