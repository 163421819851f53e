"""A model's files, handed to transformers: the one place where its errors become sentences.

What is read here belongs to strangers. No code of theirs runs unless that was allowed, and
whatever a library raises while it reads is told in one sentence with the model's name.
Libraries raise what they like, so errors are known by where they come from, not by class.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae.base import UserError, nearest, require
from sae.models.embedded import embedded_folder
from sae.models.packaged import EMBEDDED
from sae.models.randomised import randomise

_TOKENIZER_FILES = ("tokenizer*.json", "*.model", "*.tiktoken", "vocab*", "*.spm", "tekken*")
_MOST_TOLD = 300
"""Characters of a library's error that are shown."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where the files of a model are, and whether code among them may run."""

    name: str
    revision: str | None
    trust_remote_code: bool
    random_weights: bool = False
    """Whether to draw weights at random once they are read."""

    @property
    def path(self) -> Path:
        """The folder of that name, if it is one; `~` is the home folder."""
        return Path(self.name).expanduser()

    @property
    def _on_this_disk(self) -> bool:
        return self.name in EMBEDDED or self.path.exists()

    def configuration(self) -> Any:
        """Return what the model's config.json says.

        Raises:
            UserError: if it cannot be read, or asks for code of strangers.
        """
        from transformers import AutoConfig

        self._check_folder()
        found = self._read("configuration", AutoConfig)
        kernel = _kernel(found)
        require(
            kernel is None or self.trust_remote_code,
            f"model.name={self.name} asks in its config.json for a kernel from the Hub "
            f"({kernel}), which is foreign code that would run on this machine; remove that "
            "line, or read the code and allow it with model.trust_remote_code=true",
        )
        return found

    def tokenizer(self) -> Any:
        """Return the model's tokenizer.

        Raises:
            UserError: if it cannot be read, or is code of strangers.
        """
        from transformers import AutoTokenizer

        self._check_folder()
        return self._read("tokenizer", AutoTokenizer)

    def weights(self, kind: Any, settings: Any, **others: Any) -> tuple[Any, Any]:
        """Return a model, and what loading it found missing.

        Args:
            kind: the class whose `from_pretrained` loads it.
            settings: the model's configuration.

        Raises:
            UserError: if the weights cannot be read.
        """
        from transformers import GenerationConfig

        # Instead of generation_config.json: its penalties, beams and bans are no part of what
        # is measured, and `generate` fills up from there whatever a call leaves open.
        others["generation_config"] = GenerationConfig()
        others["output_loading_info"] = True
        quantised = _quantised(settings)
        module, found = self._read(f"weights{quantised}", kind, **others)
        # Where transformers does not know a method it takes the stored numbers for weights.
        kept = getattr(module.config, "quantization_config", None)
        require(
            kept is None or getattr(module, "is_quantized", False),
            f"model.name={self.name}: its weights{quantised} are stored in a way that "
            "transformers does not know; give the model with its weights in float32, bfloat16 "
            "or float16",
        )
        if self.random_weights:
            randomise(module)
        return module, found

    def skeleton(self, kind: Any, settings: Any) -> Any:
        """Return the model of a configuration, with weights on the device that is the default.

        Raises:
            UserError: if the class cannot make it.
        """
        with self.explained("configuration"):
            if not hasattr(kind, "from_config"):
                return kind(settings)
            return kind.from_config(settings, trust_remote_code=self.trust_remote_code)

    def _read(self, part: str, kind: Any, **others: Any) -> Any:
        # Left to itself transformers asks on standard input whether code may run.
        others["trust_remote_code"] = self.trust_remote_code
        if self.revision is not None:
            others["revision"] = self.revision
        where = embedded_folder(self.name) if self.name in EMBEDDED else self.name
        if self.path.is_dir():
            where = self.path
        with self.explained(part):
            return kind.from_pretrained(str(where), **others)

    def _check_folder(self) -> None:
        if self.name in EMBEDDED or not self.path.exists():
            return
        named = f"model.name={self.name}"
        require(self.path.is_dir(), f"{named} is a file; give the folder that contains it")
        if (self.path / "config.json").is_file():
            return
        gguf = sorted(self.path.glob("*.gguf"))
        if gguf:
            raise UserError(
                f"{named} holds {gguf[0].name} and no config.json, but GGUF files are not "
                "read; convert it once with transformers: AutoModelForCausalLM and "
                "AutoTokenizer, each with from_pretrained(FOLDER, gguf_file=FILE) and "
                "save_pretrained"
            )
        adapter = (self.path / "adapter_config.json").is_file()
        raise UserError(
            f"{named} is a folder without a config.json; "
            + ("it is an adapter: merge it into its model, and " if adapter else "")
            + "give one that save_pretrained wrote"
        )

    @contextmanager
    def explained(self, part: str) -> Iterator[None]:
        """Tell in one sentence whatever a library raises while it reads a part of the model."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            raise UserError(self._sentence(part, error)) from error

    def _sentence(self, part: str, error: Exception) -> str:
        """Return what was tried, why it failed, and what to do about it."""
        named = f"model.name={self.name}"
        if "trust_remote_code" in str(error):
            return (
                f"{named} has code of its own for its {part}, which would run on this machine; "
                "read that code, and if you trust it say model.trust_remote_code=true"
            )
        told = _told(error)
        if self._on_this_disk:
            cure = self._cure(part)
            return f"{named}: its {part} could not be read from its folder{cure}. {told}"
        refused = _refused_by_the_hub(self.name, error)
        if refused is not None:
            return refused
        if part != "configuration" or not isinstance(error, OSError):
            # Its name was found: something is wrong with what is there.
            return f"{named}: its {part} could not be read{self._cure(part)}. {told}"
        offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
        return (
            f"{named} is not embedded ({', '.join(EMBEDDED)}), not a local folder "
            f"({Path(self.name).absolute()}), and could not be downloaded from the "
            f"Hub{' (offline)' if offline else ''}{nearest(self.name, EMBEDDED)}. {told}"
        )

    def _cure(self, part: str) -> str:
        if part == "tokenizer":
            there = not self.path.is_dir() or self._has(*_TOKENIZER_FILES)
            where = "" if there else ", where no tokenizer is"
            return f"{where}; put the model's own there with tokenizer.save_pretrained"
        if "quantised" in part:
            return "; give the model with its weights in float32, bfloat16 or float16"
        if part == "weights" and self._has("*.bin") and not self._has("*.safetensors"):
            return "; a .bin file can hold code, which is never run: give safetensors"
        return ""

    def _has(self, *patterns: str) -> bool:
        return any(True for pattern in patterns for _ in self.path.glob(pattern))


def _told(error: BaseException) -> str:
    """Return an error of a library on one line, and no longer than is read."""
    text = " ".join(str(error).split())
    shown = text if len(text) <= _MOST_TOLD else f"{text[:_MOST_TOLD]}…"
    return f"Its message: {type(error).__name__}: {shown}"


def _refused_by_the_hub(name: str, error: BaseException) -> str | None:
    """Return the sentence for a model that not everybody may have; None of other errors."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

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
    return None


def _quantised(settings: Any) -> str:
    """Return in words that weights are quantised, and how; nothing of those that are not."""
    found = getattr(settings, "quantization_config", None)
    if found is None:
        return ""
    method = found.get("quant_method") if isinstance(found, dict) else None
    return f" (quantised: {method or 'the configuration does not say how'})"


def _kernel(settings: Any) -> str | None:
    """Return the kernel from the Hub that a configuration wants for its attention."""
    inner = (getattr(settings, name, None) for name in getattr(settings, "sub_configs", {}))
    for part in (settings, *inner):
        wanted = getattr(part, "_attn_implementation", None)
        if isinstance(wanted, str) and "/" in wanted:
            return wanted
    return None
