"""Loading a causal language model or an encoder by embedded name, local folder or Hub id."""

import os
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sae.base import UNKNOWN, UserError, digest_bytes, nearest, require, say
from sae.models.embedded import EMBEDDED, embedded_folder
from sae.models.record import ModelRecord

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The language model to study."""

    name: str = "smollm2"
    """The model: `smollm2`, which needs no account, a local folder, or a Hub id such as
    `gpt2`."""
    revision: str | None = None
    """Branch, tag or commit of the model on the Hub; by default its main branch."""
    dtype: str = "float32"
    """Precision in which the model runs: float32, bfloat16 or float16."""
    device: str = "auto"
    """Device that the model runs on: `cpu`, `cuda`, `cuda:1`, ...; `auto` takes a GPU if there
    is one."""
    bos_token: str | None = None
    """Token before every sequence and between documents; by default the tokenizer's own."""

    def __post_init__(self) -> None:
        require(self.name != "", "model.name is empty; give an embedded name, folder or Hub id")
        require(
            self.dtype in DTYPES,
            f"model.dtype={self.dtype} is unknown; choose one of {', '.join(DTYPES)}",
        )

    def is_causal(self) -> bool:
        """Return whether the model predicts a next token; reads config.json and no weights."""
        return _causal(_settings(self))


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A loaded model with its tokenizer, in evaluation mode and without gradients."""

    module: Any
    tokenizer: Any
    record: ModelRecord
    """Which model it is, as is kept with what was computed by it."""
    bos_token_id: int | None
    """Put before every document and row; an encoder's is its class token."""
    end_token_id: int | None
    """Put after every document; only encoders have one, their separator."""
    pad_token_id: int
    """Fills up rows; what stands there is masked, so any token will do where none is named."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        found: torch.device = next(iter(self.module.parameters())).device
        return found

    @property
    def max_positions(self) -> int | None:
        """Tokens that it can read at once; None where its configuration gives no number."""
        settings = self.module.config.get_text_config()
        found: int | None = getattr(settings, "max_position_embeddings", None)
        return found

    @property
    def special_token_ids(self) -> list[int]:
        """Token ids that are no text, ascending, the one before every row included."""
        ids = set(self.tokenizer.all_special_ids)
        if self.bos_token_id is not None:
            ids.add(self.bos_token_id)
        return sorted(ids)


def resolve_device(device: str) -> torch.device:
    """Return the device of that name; `auto` is the first GPU if there is one, else the CPU.

    Raises:
        UserError: if there is no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"device={device} is unknown; say auto, cpu or cuda") from error
    require(
        chosen.type in ("cpu", "cuda"),
        f"device={device} is none that this computes on; say auto, cpu or cuda",
    )
    if chosen.type == "cuda":
        n = torch.cuda.device_count() if torch.cuda.is_available() else 0
        require(n > 0, f"device={device}, but torch sees no GPU here; say device=cpu")
        require(
            (chosen.index or 0) < n,
            f"device={device}, but torch sees {n} of them here; the last is cuda:{n - 1}",
        )
    return chosen


def _from_pretrained(kind: Any, config: ModelConfig, **settings: Any) -> Any:
    name = config.name
    require(
        name in EMBEDDED or not Path(name).is_dir() or (Path(name) / "config.json").is_file(),
        f"model.name={name} is a folder without a config.json; "
        "give one that save_pretrained wrote",
    )
    source = str(embedded_folder(name)) if name in EMBEDDED else name
    if config.revision is not None:
        settings["revision"] = config.revision
    try:
        return kind.from_pretrained(source, **settings)
    except (OSError, ValueError) as error:
        raise UserError(_not_loaded(name, error)) from error


def _not_loaded(name: str, error: BaseException) -> str:
    """Return what was tried, why it failed, and what to do about it."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    first = str(error).strip().split("\n")[0]
    if name in EMBEDDED or Path(name).is_dir():
        return f"model.name={name} could not be read from its folder. It said: {first}"
    login = "log in with `hf auth login` or set HF_TOKEN"
    terms = f"accept the model's terms at https://huggingface.co/{name}"
    # The libraries wrap these errors in others, differently by version.
    refused: BaseException | None = error
    while refused is not None:
        if isinstance(refused, GatedRepoError):
            return f"model.name={name} is gated on the Hub; {login}, and {terms}"
        status = getattr(getattr(refused, "response", None), "status_code", None)
        if isinstance(refused, RepositoryNotFoundError) or status == 401:
            return (
                f"model.name={name} is no local folder ({Path(name).absolute()}), and on the "
                f"Hub there is none that everybody may see; mend the name, or {login}, and "
                f"{terms}"
            )
        refused = refused.__cause__ or refused.__context__
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    return (
        f"model.name={name} is not embedded ({', '.join(EMBEDDED)}), not a local folder "
        f"({Path(name).absolute()}), and could not be had from the Hub"
        f"{' (offline)' if offline else ''}{nearest(name, EMBEDDED)}. It said: {first}"
    )


def _settings(config: ModelConfig) -> Any:
    """Read what the model's config.json says."""
    from transformers import AutoConfig

    settings = _from_pretrained(AutoConfig, config)
    require(
        not settings.is_encoder_decoder,
        f"model.name={config.name} has an encoder and a decoder ({settings.model_type}), and "
        "these are not read; give a causal model or an encoder",
    )
    return settings


def _causal(settings: Any) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if not settings.architectures:
        return settings.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return not set(settings.architectures).isdisjoint(
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    )


def _kind(settings: Any) -> Any:
    """Without their head models that are not causal are all alike to us."""
    from transformers import AutoModel, AutoModelForCausalLM

    return AutoModelForCausalLM if _causal(settings) else AutoModel


def record_without_weights(name: str) -> ModelRecord:
    """Return the record of a model by which others computed something: its weights are unknown.

    Raises:
        UserError: if there is no such model.
    """
    names = _recorded_names(name)
    return ModelRecord(*names, causal=ModelConfig(name=name).is_causal())


def _recorded_names(name: str) -> tuple[str, str]:
    """Return the name to load a model by, a folder's from wherever one is, and the Hub id."""
    if name in EMBEDDED:
        return name, EMBEDDED[name].hub_id
    return str(Path(name).absolute()) if Path(name).is_dir() else name, name


def recorded_config(record: ModelRecord, device: str) -> ModelConfig:
    """Return the configuration that loads the model of a record."""
    return ModelConfig(
        name=record.name,
        revision=record.revision,
        dtype=record.dtype,
        bos_token=record.bos_token,
        device=device,
    )


def recorded_model(record: ModelRecord, device: str) -> LanguageModel:
    """Load the model that a cache or a dictionary was made with.

    Raises:
        UserError: if the model found under that name has other weights now.
    """
    model = load_model(recorded_config(record, device))
    now, then = model.record.weight_digest, record.weight_digest
    if then == UNKNOWN:
        say(f"nothing tells whether {record.name} is the very model of these activations")
    require(
        then in (now, UNKNOWN),
        f"model {record.name} has other weights now (digest {now}) than those that were "
        f"harvested ({then})",
    )
    return model


def load_skeleton(config: ModelConfig) -> nn.Module:
    """Return the model's modules without weights, on the meta device, to check hooks quickly.

    Raises:
        UserError: if there is no such model.
    """
    settings = _settings(config)
    with torch.device("meta"):
        module: nn.Module = _kind(settings).from_config(settings)
    return module


def load_tokenizer(config: ModelConfig) -> Any:
    """Return the model's tokenizer.

    Raises:
        UserError: if there is no such model.
    """
    from transformers import AutoTokenizer

    return _from_pretrained(AutoTokenizer, config)


def load_model(config: ModelConfig) -> LanguageModel:
    """Load weights and tokenizer.

    Raises:
        UserError: if there is no such model, `bos_token` is not one of its tokens, its
            tokenizer is another model's, or weights of it are missing.
    """
    from transformers.utils import logging

    settings = _settings(config)
    causal = _causal(settings)
    tokenizer = load_tokenizer(config)
    bos = _bos_token_id(config, tokenizer, causal)
    end = None if causal else tokenizer.sep_token_id
    _check_vocabulary(config, tokenizer, [bos, end], settings.get_text_config().vocab_size)
    pad = _first(tokenizer.pad_token_id, tokenizer.eos_token_id, bos)
    logging.disable_progress_bar()
    device = resolve_device(config.device)
    module, found = _from_pretrained(
        _kind(settings), config, dtype=DTYPES[config.dtype], output_loading_info=True
    )
    # What is missing is made up at random, which only the pooler may be: nothing here reads it.
    missing = found["missing_keys"]
    needed = sorted(name for name in missing if "pooler" not in name)
    if needed:
        raise UserError(
            f"model.name={config.name} lacks {len(needed)} of its weights, {needed[0]} among "
            "them; give a whole checkpoint"
        )
    module = module.to(device).eval().requires_grad_(False)
    name, hub_id = _recorded_names(config.name)
    record = ModelRecord(
        name=name,
        hub_id=hub_id,
        weight_digest=weight_digest(module, without=missing),
        causal=causal,
        revision=config.revision,
        dtype=config.dtype,
        bos_token=config.bos_token,
    )
    return LanguageModel(module, tokenizer, record, bos, end, 0 if pad is None else pad)


def _check_vocabulary(
    config: ModelConfig, tokenizer: Any, added: list[int | None], rows: int
) -> None:
    """Refuse a tokenizer that makes ids of text which the model has no embedding for.

    Special tokens are no text: Gemma's tokenizer has one for images more than its models of
    text have rows.
    """
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    text = (i for i in tokenizer.get_vocab().values() if i not in special)
    largest = max([*text, *(i for i in added if i is not None)], default=0)
    require(
        largest < rows,
        f"model.name={config.name} has an embedding of {rows} rows, but its tokenizer gives "
        f"ids up to {largest}; the two do not belong together",
    )


def _first(*ids: int | None) -> int | None:
    """Return the first id that there is: 0 is a token like any other, only None means none."""
    return next((i for i in ids if i is not None), None)


def _bos_token_id(config: ModelConfig, tokenizer: Any, causal: bool) -> int | None:
    embedded = EMBEDDED.get(config.name)
    token = config.bos_token or (embedded.bos_token if embedded else None)
    if token is None:
        own = [tokenizer.bos_token_id, tokenizer.cls_token_id]
        return _first(*(own if causal else reversed(own)), tokenizer.eos_token_id)
    vocabulary = tokenizer.get_vocab()
    if token not in vocabulary:
        raise UserError(
            f"model.bos_token={token} is no token of {config.name}"
            f"{nearest(token, tokenizer.all_special_tokens)}"
        )
    return int(vocabulary[token])


def weight_digest(
    module: nn.Module, samples: int = 65_536, without: Container[str] = ()
) -> str:
    """Return a digest of names, shapes and up to `samples` evenly spaced values per tensor.

    Reading everything would take minutes for a large model; a fine-tune moves all values,
    so a sample tells it apart. Tensors named in `without` do not count.
    """

    def parts() -> Iterator[bytes]:
        for name, tensor in sorted(module.state_dict().items()):
            if name in without:
                continue
            yield f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode()
            flat = tensor.detach().reshape(-1)
            step = max(1, flat.numel() // samples)
            yield flat[::step].float().cpu().numpy().tobytes()

    return digest_bytes(parts())
