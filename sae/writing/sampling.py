"""Tokens that a model writes after prompts, under edits, and what it cannot write."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.base import require
from sae.edits import Edit, edited
from sae.models import LanguageModel
from sae.text.token_texts import TokenTexts


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How a continuation is drawn."""

    max_new_tokens: int
    temperature: float
    """0 takes the likeliest token every time."""
    seed: int
    to_the_end: bool = True
    """Whether the token that ends a text is never drawn. Else what follows it is padding, and
    fewer tokens come where all texts have ended."""

    def __post_init__(self) -> None:
        require(
            isinstance(self.max_new_tokens, Integral) and self.max_new_tokens >= 1,
            f"max_new_tokens={self.max_new_tokens!r}; give a whole number of at least 1",
        )
        require(
            0 <= self.temperature < math.inf,
            f"temperature={self.temperature}; give a finite number of at least 0",
        )


Scores = Callable[[Tensor, Tensor], Tensor]
"""Takes the ids so far and the scores of the next token, and returns scores for these."""


def prompt_ids(model: LanguageModel, prompt: str) -> Int[Tensor, " position"]:
    """Return the token ids of a prompt, begun as the model's documents are."""
    return torch.from_numpy(model.prompt_ids(prompt)).long().to(model.device)


def generate(
    model: LanguageModel,
    prompts: Int[Tensor, "sequence position"],
    edits: Sequence[Edit],
    sampling: Sampling,
    *,
    use_cache: bool = True,
    noise: "Scores | None" = None,
    attention_mask: Int[Tensor, "sequence position"] | None = None,
) -> Int[Tensor, "sequence new_position"]:
    """Return the ids of `max_new_tokens` tokens that the model writes after each prompt.

    Edits are in force while the model reads the prompts and while it writes; `noise` is added
    to the scores of the next token. The caller's random state is left alone.

    Args:
        attention_mask: 0 where there is padding, which stands before a prompt; by default
            there is none.
    """
    devices = [model.device] if model.device.type == "cuda" else []
    if attention_mask is None:
        attention_mask = torch.ones_like(prompts)
    with torch.inference_mode(), torch.random.fork_rng(devices), edited(model.module, edits):
        torch.manual_seed(sampling.seed)
        texts: Tensor = model.module.generate(
            prompts,
            attention_mask=attention_mask,
            generation_config=_settings(model, sampling, use_cache),
            logits_processor=[] if noise is None else [noise],
        )
    return texts[:, prompts.shape[1] :]


def _settings(model: LanguageModel, sampling: Sampling, use_cache: bool) -> Any:
    """Return all that a continuation is drawn by; what is not said here is off.

    A loaded model has no defaults of its own, which would fill up what is left open.
    """
    from transformers import GenerationConfig

    how: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        # Without limits in top_k and top_p: all tokens count.
        how = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
    return GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        # Until then the token that ends a text is not drawn.
        min_new_tokens=sampling.max_new_tokens if sampling.to_the_end else None,
        eos_token_id=model.tokenizer.eos_token_id,
        pad_token_id=model.marks.pad,
        num_beams=1,
        use_cache=use_cache,
        **how,
    )


def continued_texts(
    model: LanguageModel,
    prompts: Int[Tensor, "sequence position"],
    continuations: Int[Tensor, "sequence new_position"],
) -> list[str]:
    """Return what each continuation adds to the text of its prompt, the first space too."""
    texts, both = TokenTexts(model.tokenizer), (prompts.tolist(), continuations.tolist())
    return [texts.continuation(before, ids) for before, ids in zip(*both, strict=True)]


def check_writes(model: LanguageModel) -> None:
    """Refuse a model that predicts no next token.

    Raises:
        UserError: if it is an encoder.
    """
    require(
        model.record.causal,
        f"{model.record.name} predicts no next token, so it cannot write; reading its "
        "activations works",
    )


def check_length(
    model: LanguageModel,
    prompt: Int[Tensor, " position"],
    sampling: Sampling,
    what: str = "the prompt",
) -> None:
    """Refuse a prompt that leaves the model no room for what is to be written.

    Raises:
        UserError: if both together are longer than what the model can read.
    """
    limit = model.max_positions
    require(
        limit is None or len(prompt) + sampling.max_new_tokens <= limit,
        f"{what} has {len(prompt):,} tokens and {sampling.max_new_tokens:,} are to be "
        f"written, but the model reads only {limit or 0:,} at once; shorten the prompt or "
        "lower max_new_tokens",
    )


class SharedNoise:
    """Adds the same Gumbel noise to the scores of every sequence: the highest sum is a sample.

    argmax(logits / T + g) with g = -log(-log(u)) is distributed as softmax(logits / T)
    (Gumbel 1954; Maddison et al. 2014, "A* sampling"). Multiplied by T it is the same argmax,
    and none at all where T is 0.

    Args:
        check: is called before each token; whatever it raises ends the writing.
        n_groups: equal parts of the batch, each with noise of its own.
    """

    def __init__(
        self, sampling: Sampling, check: Callable[[], None] = lambda: None, n_groups: int = 1
    ) -> None:
        self.temperature, self.check, self.n_groups = sampling.temperature, check, n_groups
        self.generator = torch.Generator().manual_seed(sampling.seed)

    def __call__(
        self,
        _: Int[Tensor, "sequence position"],
        scores: Float[Tensor, "sequence vocabulary"],
    ) -> Float[Tensor, "sequence vocabulary"]:
        """Return the scores with noise, as a step of `generate` wants them."""
        self.check()
        if self.temperature == 0:
            return scores
        shape = self.n_groups, scores.shape[1]
        u = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        noise = -torch.log(-torch.log(u.clamp_min(1e-300)))
        noise = noise.to(scores.device, torch.float32).repeat_interleave(
            len(scores) // self.n_groups, 0
        )
        return scores.float() + self.temperature * noise
