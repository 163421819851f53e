"""Loading a causal language model by embedded name, local folder or Hub id."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sae.base.errors import UserError, nearest, require
from sae.base.provenance import digest_bytes
from sae.models.embedded import EMBEDDED, embedded_folder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Which language model to study."""

    name: str = "smollm2"
    """`smollm2` (embedded, no account), a local folder, or a Hub id such as `gpt2`."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    dtype: str = "float32"
    """Precision to run the model in: float32, bfloat16 or float16."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, ...; `auto` takes a GPU when there is one."""
    bos_token: str | None = None
    """Token before every row and between documents; by default the tokenizer's own."""

    def __post_init__(self) -> None:
        require(self.name != "", "model.name is empty; give an embedded name, folder or Hub id")
        require(
            self.dtype in DTYPES,
            f"model.dtype={self.dtype} is unknown; choose one of {', '.join(DTYPES)}",
        )


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A loaded model with its tokenizer, in evaluation mode and without gradients."""

    module: Any
    tokenizer: Any
    name: str
    hub_id: str
    bos_token_id: int | None
    digest: str

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        found: torch.device = next(iter(self.module.parameters())).device
        return found

    @property
    def special_token_ids(self) -> list[int]:
        """Token ids that are no text, ascending, the one before every row included."""
        ids = set(self.tokenizer.all_special_ids)
        if self.bos_token_id is not None:
            ids.add(self.bos_token_id)
        return sorted(ids)


def resolve_device(device: str) -> torch.device:
    """`auto` becomes the first GPU if there is one, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device={device} is unknown; say auto, cpu or cuda") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={device}, but torch sees no GPU here; say device=cpu")
    return chosen


def model_folder(config: ModelConfig) -> str:
    """What to hand to `from_pretrained`: a folder, or the Hub id."""
    if config.name in EMBEDDED:
        return str(embedded_folder(config.name))
    if Path(config.name).is_dir():
        require(
            (Path(config.name) / "config.json").is_file(),
            f"model.name={config.name} is a folder without a config.json; "
            "give one that save_pretrained wrote",
        )
    return config.name


def _from_pretrained(kind: Any, config: ModelConfig, **settings: Any) -> Any:
    source = model_folder(config)
    if config.revision is not None:
        settings["revision"] = config.revision
    try:
        return kind.from_pretrained(source, **settings)
    except (OSError, ValueError) as error:
        first = str(error).strip().split("\n")[0]
        offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
        raise UserError(
            f"model.name={config.name} is not embedded ({', '.join(EMBEDDED)}), not a local "
            f"folder, and could not be had from the Hub{' (offline)' if offline else ''}"
            f"{nearest(config.name, EMBEDDED)}. It said: {first}"
        ) from error


def load_skeleton(config: ModelConfig) -> nn.Module:
    """The model's modules without weights (on the meta device): to check hooks in a second."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = _from_pretrained(AutoConfig, config)
    with torch.device("meta"):
        module: nn.Module = AutoModelForCausalLM.from_config(settings)
    return module


def load_tokenizer(config: ModelConfig) -> Any:
    """The model's tokenizer."""
    from transformers import AutoTokenizer

    return _from_pretrained(AutoTokenizer, config)


def load_model(config: ModelConfig) -> LanguageModel:
    """Load weights and tokenizer.

    Raises:
        UserError: if there is no such model, or `bos_token` is not one of its tokens.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    tokenizer = load_tokenizer(config)
    bos_token_id = _bos_token_id(config, tokenizer)
    logging.disable_progress_bar()
    device = resolve_device(config.device)
    module = _from_pretrained(AutoModelForCausalLM, config, dtype=DTYPES[config.dtype])
    module = module.to(device).eval().requires_grad_(False)
    embedded = EMBEDDED.get(config.name)
    hub_id = embedded.hub_id if embedded else config.name
    return LanguageModel(
        module, tokenizer, config.name, hub_id, bos_token_id, weight_digest(module)
    )


def _bos_token_id(config: ModelConfig, tokenizer: Any) -> int | None:
    embedded = EMBEDDED.get(config.name)
    token = config.bos_token or (embedded.bos_token if embedded else None)
    if token is None:
        # Id 0 is a token like any other, so only None means that there is none.
        found: int | None = tokenizer.bos_token_id
        end: int | None = tokenizer.eos_token_id
        return end if found is None else found
    vocabulary = tokenizer.get_vocab()
    if token not in vocabulary:
        raise UserError(
            f"model.bos_token={token} is no token of {config.name}"
            f"{nearest(token, tokenizer.all_special_tokens)}"
        )
    return int(vocabulary[token])


def weight_digest(module: nn.Module, samples: int = 65_536) -> str:
    """Identifies weights by name, shape and up to `samples` evenly spaced values per tensor.

    Reading everything would take minutes for a large model; a fine-tune moves all values,
    so a sample tells it apart.
    """

    def parts() -> Iterator[bytes]:
        for name, tensor in sorted(module.state_dict().items()):
            yield f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode()
            flat: Tensor = tensor.detach().reshape(-1)
            step = max(1, flat.numel() // samples)
            yield flat[::step].float().cpu().numpy().tobytes()

    return digest_bytes(parts())
