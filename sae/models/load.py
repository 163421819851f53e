"""Loading a causal language model or an encoder by embedded name, local folder or Hub id."""

from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sae.base import UNKNOWN, UserError, digest_bytes, require, say
from sae.base.names import from_anywhere
from sae.models.kinds import class_of, is_causal, predicts_next_token, unusual_name
from sae.models.marks import find_marks, marks_before, special_ids, token_id
from sae.models.packaged import EMBEDDED
from sae.models.positions import usable_positions
from sae.models.pretrained import Source
from sae.models.record import ModelRecord
from sae.models.trust import allow, check_allowed
from sae.text.packing import Marks, marked

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The language model to study."""

    name: str = "smollm2"
    """The model: `smollm2`, which needs no account (SmolLM2-135M-Instruct, its weights from a
    4-bit file), a local folder, or a Hub id such as `gpt2`."""
    revision: str | None = None
    """Branch, tag or commit of the model on the Hub; by default its main branch."""
    dtype: str = "float32"
    """Precision in which the model runs: float32, bfloat16 or float16."""
    device: str = "auto"
    """Device that the model runs on: `cpu`, `cuda`, `cuda:1`, ...; `auto` takes a GPU if there
    is one."""
    bos_token: str | None = None
    """Token that is put before every sequence and between documents. By default it is the one
    that the tokenizer itself puts there, or else its `bos_token`; `none` puts nothing there."""
    trust_remote_code: bool = False
    """Allow code that comes with the model to run on this machine. Read that code first."""
    random_weights: bool = False
    """Draw every weight at random, with the mean and the standard deviation of its matrix. This
    makes the model a control, because nothing that is found in it was learned."""

    def __post_init__(self) -> None:
        require(self.name != "", "model.name is empty; give an embedded name, folder or Hub id")
        require(
            self.dtype in DTYPES,
            f"model.dtype={self.dtype} is unknown; choose one of {', '.join(DTYPES)}",
        )

    def is_causal(self) -> bool:
        """Return whether the model predicts a next token; reads config.json and no weights."""
        return predicts_next_token(_settings(self))


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A loaded model with its tokenizer, in evaluation mode and without gradients."""

    module: Any
    tokenizer: Any
    record: ModelRecord
    """Which model it is, as is kept with what was computed by it."""
    marks: Marks
    """Tokens around its documents."""
    max_positions: int | None
    """Tokens that it can read at once; None where there is no end."""

    @property
    def device(self) -> torch.device:
        """Device that the weights are on."""
        found: torch.device = next(iter(self.module.parameters())).device
        return found

    @property
    def bos_token_id(self) -> int | None:
        """The token before every document and row; None unless there is just one."""
        begin = self.marks.begin
        return begin[0] if len(begin) == 1 else None

    @property
    def special_token_ids(self) -> list[int]:
        """Token ids that are no text, ascending, those around documents included."""
        return sorted({*special_ids(self.tokenizer), *self.marks.begin, *self.marks.end})

    def document_ids(self, text: str) -> NDArray[np.int32]:
        """Return the token ids of a text as a harvest reads it as a document, (position,)."""
        return marked(self.text_ids(text), self.marks)

    def prompt_ids(self, text: str) -> NDArray[np.int32]:
        """Return the token ids of a text that is to go on: nothing stands after it."""
        return marked(self.text_ids(text), replace(self.marks, end=()))

    def text_ids(self, text: str) -> NDArray[np.int32]:
        """Return the token ids of a text alone, (position,)."""
        found = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return np.array(found, dtype=np.int32)


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
        raise UserError(f"device={device} is unknown; give auto, cpu or cuda") from error
    require(
        chosen.type in ("cpu", "cuda"),
        f"device={device} cannot be used; give auto, cpu or cuda",
    )
    if chosen.type == "cuda":
        n = torch.cuda.device_count() if torch.cuda.is_available() else 0
        require(n > 0, f"device={device}, but torch sees no GPU here; use device=cpu")
        require(
            (chosen.index or 0) < n,
            f"device={device}, but torch sees {n} of them here; the last is cuda:{n - 1}",
        )
    return chosen


def _source(config: ModelConfig) -> Source:
    """Return where a model's files are; what may run there is kept as allowed by hand."""
    if config.trust_remote_code:
        allow(recorded_name(config.name), config.revision)
    random = config.random_weights
    return Source(config.name, config.revision, config.trust_remote_code, random)


def _settings(config: ModelConfig) -> Any:
    """Read what the model's config.json says, and refuse an encoder with a decoder."""
    settings = _source(config).configuration()
    class_of(settings, config.name)
    return settings


def record_without_weights(name: str) -> ModelRecord:
    """Return the record of a model by which others computed something: its weights are unknown.

    Raises:
        UserError: if there is no such model.
    """
    settings = _settings(ModelConfig(name=name))
    return ModelRecord(
        *_recorded_names(name),
        causal=predicts_next_token(settings),
        loaded_by=unusual_name(class_of(settings, name)),
    )


def recorded_name(name: str) -> str:
    """Return the name to load a model by, a folder's from wherever one is."""
    here = name not in EMBEDDED and Path(name).expanduser().is_dir()
    return from_anywhere(name) if here else name


def _recorded_names(name: str) -> tuple[str, str]:
    """Return the name to load a model by, and the one that others know it by."""
    return recorded_name(name), EMBEDDED[name].hub_id if name in EMBEDDED else name


def recorded_config(record: ModelRecord, device: str) -> ModelConfig:
    """Return the configuration that loads the model of a record.

    Raises:
        UserError: if it needs code of its own, which nobody has allowed on this machine.
    """
    if record.trust_remote_code:
        check_allowed(record.name, record.revision)
    return ModelConfig(
        name=record.name,
        revision=record.revision,
        dtype=record.dtype,
        bos_token=record.bos_token,
        trust_remote_code=record.trust_remote_code,
        random_weights=record.random_weights,
        device=device,
    )


def recorded_model(record: ModelRecord, device: str) -> LanguageModel:
    """Load the model that a cache or a dictionary was made with.

    Raises:
        UserError: if the model found under that name has other weights now.
    """
    model = _with_marks(load_model(recorded_config(record, device)), record)
    now, then = model.record.weight_digest, record.weight_digest
    if then == UNKNOWN:
        say(f"it is not known whether {record.name} is exactly the model of these activations")
    require(
        then in (now, UNKNOWN),
        f"model {record.name} now has other weights (digest {now}) than those that were "
        f"harvested ({then})",
    )
    return model


def _with_marks(model: LanguageModel, record: ModelRecord) -> LanguageModel:
    """Return the model with the marks that its texts had when the record was made."""
    if record.begin is None or record.end is None:
        asked = _usual_token(record.name) if record.bos_token is None else record.bos_token
        bos = None if asked is None else token_id(model.tokenizer, record.name, asked)
        marks = marks_before(model.tokenizer, bos, causal=record.causal)
    else:
        marks = replace(model.marks, begin=record.begin, end=record.end)
    return replace(
        model, marks=marks, record=replace(model.record, begin=marks.begin, end=marks.end)
    )


def adopted_model(module: nn.Module, like: ModelRecord) -> LanguageModel:
    """Return a module of `transformers` that somebody loaded, with the tokenizer of its name.

    Args:
        like: a record whose marks its texts get, and that names the tokenizer of a module that
            has no name.

    Raises:
        UserError: if there is no tokenizer of that name.
    """
    name = str(getattr(module.config, "name_or_path", "")) or like.name
    first = next(iter(module.parameters()))
    record = replace(
        like,
        name=name,
        hub_id=name,
        weight_digest=weight_digest(module),
        dtype=str(first.dtype).removeprefix("torch."),
        origin=None,
    )
    tokenizer = load_tokenizer(ModelConfig(name=name))
    marks = Marks(like.begin or (), like.end or ())
    return LanguageModel(module, tokenizer, record, marks, usable_positions(module))


def wrapped_model(
    module: nn.Module, tokenizer: Any = None, bos_token: str | None = None
) -> LanguageModel:
    """Return a module of `transformers` that somebody loaded, as it is.

    Args:
        tokenizer: its tokenizer; that of the name it was loaded by if left out.
        bos_token: the token before every text, if not the tokenizer's own.

    Raises:
        UserError: if it has no name and no tokenizer is given.
    """
    # What torch.compile returns is wrapped around the model that has the places.
    module = getattr(module, "_orig_mod", module)
    name = str(getattr(getattr(module, "config", None), "name_or_path", ""))
    require(
        tokenizer is not None or name != "",
        "this model has no name from which to find its tokenizer; give tokenizer=...",
    )
    tokenizer = tokenizer or load_tokenizer(ModelConfig(name=name))
    causal, name = is_causal(module, name), name or "this model"
    marks = find_marks(tokenizer, name, bos_token, causal=causal, usual=_usual_token(name))
    record = ModelRecord(
        name=name,
        hub_id=name,
        weight_digest=weight_digest(module),
        causal=causal,
        dtype=str(next(iter(module.parameters())).dtype).removeprefix("torch."),
        bos_token=bos_token,
        begin=marks.begin,
        end=marks.end,
    )
    return LanguageModel(module, tokenizer, record, marks, usable_positions(module))


def load_skeleton(config: ModelConfig) -> nn.Module:
    """Return the model's modules without weights, on the meta device, to check hooks quickly.

    Raises:
        UserError: if there is no such model.
    """
    settings = _settings(config)
    with torch.device("meta"):
        module: nn.Module = _source(config).skeleton(class_of(settings, config.name), settings)
    return module


def load_tokenizer(config: ModelConfig) -> Any:
    """Return the model's tokenizer.

    Raises:
        UserError: if there is no such model.
    """
    return _source(config).tokenizer()


def load_model(config: ModelConfig) -> LanguageModel:
    """Load weights and tokenizer.

    Raises:
        UserError: if there is no such model, `bos_token` is not one of its tokens, its
            tokenizer is another model's, or weights of it are missing.
    """
    from transformers.utils import logging

    settings, source = _settings(config), _source(config)
    causal, kind = predicts_next_token(settings), class_of(settings, config.name)
    tokenizer = load_tokenizer(config)
    usual = _usual_token(config.name)
    with source.explained("tokenizer"):
        marks = find_marks(tokenizer, config.name, config.bos_token, causal=causal, usual=usual)
    added = (*marks.begin, *marks.end)
    _check_vocabulary(config, tokenizer, added, settings.get_text_config().vocab_size)
    logging.disable_progress_bar()
    device = resolve_device(config.device)
    module, found = source.weights(kind, settings, dtype=DTYPES[config.dtype])
    # What is missing is made up at random, which only the pooler may be: nothing here reads it.
    missing = found["missing_keys"]
    needed = sorted(name for name in missing if "pooler" not in name)
    if needed:
        raise UserError(
            f"model.name={config.name} lacks {len(needed)} of its weights, for example "
            f"{needed[0]}; give a complete checkpoint"
        )
    module = module.to(device).eval().requires_grad_(False)
    weights = weight_digest(module, without=missing)
    if causal and not is_causal(module, config.name):
        say(f"{config.name}: its logits depend on later tokens, so it is read like an encoder")
        causal, module = False, module.base_model
    name, hub_id = _recorded_names(config.name)
    record = ModelRecord(
        name=name,
        hub_id=hub_id,
        weight_digest=weights,
        causal=causal,
        loaded_by=unusual_name(kind),
        revision=config.revision,
        dtype=config.dtype,
        bos_token=config.bos_token,
        begin=marks.begin,
        end=marks.end,
        origin=EMBEDDED[config.name].origin if config.name in EMBEDDED else None,
        trust_remote_code=config.trust_remote_code,
        random_weights=config.random_weights,
    )
    return LanguageModel(module, tokenizer, record, marks, usable_positions(module))


def _check_vocabulary(
    config: ModelConfig, tokenizer: Any, added: tuple[int, ...], rows: int
) -> None:
    """Refuse a tokenizer that makes ids of text which the model has no embedding for.

    Special tokens are no text: Gemma's tokenizer has one for images more than its models of
    text have rows.
    """
    special = special_ids(tokenizer)
    text = [i for i in tokenizer.get_vocab().values() if i not in special]
    require(
        bool(text),
        f"model.name={config.name} has a tokenizer without text tokens; save the tokenizer "
        "of the model there with tokenizer.save_pretrained",
    )
    largest = max(*text, *added)
    require(
        largest < rows,
        f"model.name={config.name} has an embedding of {rows} rows, but its tokenizer gives "
        f"ids up to {largest}; the two do not belong together",
    )


def _usual_token(name: str) -> str | None:
    return EMBEDDED[name].bos_token if name in EMBEDDED else None


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
