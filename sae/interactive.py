"""`Model`: a language model in the hands of somebody who asks it things, in Python."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae.atlas import Atlas
from sae.base import require
from sae.dictionary import Dictionary
from sae.edits import Edit, Edits, Library, Planner, Subject, edited, edits_of
from sae.lenses import (
    SCALES,
    Patchscopes,
    Question,
    TunedLens,
    ask_of_feature,
    ask_of_state,
    load_tuned,
    places_of_state,
    read_lens,
    source_of,
)
from sae.models import (
    LanguageModel,
    ModelConfig,
    find_site,
    list_sites,
    load_model,
    locate,
    read_activations,
    wrapped_model,
)
from sae.pages.lens import Lens
from sae.text.features import TextFeatures
from sae.text.token_texts import TokenTexts
from sae.writing import (
    Sampling,
    chat_ids,
    check_reads,
    checked_prompt_ids,
    log_prob_of,
    next_log_probs,
    write,
)

_ROWS = 256
"""Rows that are encoded at once, so that a long text needs no more memory than a short one."""


def model(
    name: "str | nn.Module" = "smollm2",
    *,
    tokenizer: Any = None,
    device: str = "auto",
    dtype: str = "float32",
    revision: str | None = None,
    bos_token: str | None = None,
    trust_remote_code: bool = False,
) -> "Model":
    """Load a language model that you can ask for features of a text, continuations and more.

        m = sae.model("smollm2")
        with m.edited(sae.edit(dictionary=folder, feature=412, do="add", by=8)):
            print(m.generate("I went for a walk and"))

    Args:
        name: an embedded name, a local folder, a Hub id, or a model of `transformers` that is
            loaded already, which is used as it is.
        tokenizer: the tokenizer of a loaded model, by default found by the model's name.
        device: `cpu`, `cuda`, `cuda:1`, ...; `auto` takes a GPU if there is one.
        dtype: precision: float32, bfloat16 or float16.
        revision: branch, tag or commit on the Hub.
        bos_token: token to put before every text, by default the tokenizer's own, or `none`.
        trust_remote_code: allow code that comes with the model to run on this machine.

    Raises:
        UserError: if there is no such model.
    """
    if isinstance(name, nn.Module):
        return Model(wrapped_model(name, tokenizer, bos_token))
    require(tokenizer is None, f"tokenizer is for a loaded model; {name} has its own tokenizer")
    config = ModelConfig(
        name=name,
        device=device,
        dtype=dtype,
        revision=revision,
        bos_token=bos_token,
        trust_remote_code=trust_remote_code,
    )
    return Model(load_model(config))


@dataclass(frozen=True, slots=True)
class Model:
    """A language model together with the questions that it can be asked. `sae.model` makes one.

    `module` and `tokenizer` belong to `transformers` and can be used as usual. An edit made
    with `edited` holds for everything that runs through `module`.
    """

    language_model: LanguageModel
    _library: Library = field(default_factory=Library)

    @property
    def module(self) -> Any:
        """The model of `transformers`."""
        return self.language_model.module

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self.language_model.tokenizer

    def __repr__(self) -> str:
        """One line: its name, size, precision and device."""
        record, n = self.language_model.record, sum(p.numel() for p in self.module.parameters())
        device = self.language_model.device
        return (
            f"Model({record.hub_id}, {n / 1e6:,.0f} million weights, {record.dtype}, {device})"
        )

    @property
    def hook_names(self) -> list[str]:
        """Names of the places whose activations can be read, block by block."""
        return [site.hook_name for site in list_sites(self.module)]

    def tokens(self, text: str) -> list[str]:
        """Return the text of each token, including those that the model puts around a text."""
        return TokenTexts(self.tokenizer).in_context(self._ids(text).tolist())

    def activations(self, text: str, hook_name: str) -> Float[Tensor, "position d"]:
        """Return the activations of a text at a hook, a row for each of its `tokens`.

        Raises:
            UserError: for an empty text, one longer than the model reads, or an unknown hook.
        """
        return self._read(text, find_site(self.module, hook_name))

    def features(
        self, text: str, dictionary: "str | Dictionary", *, atlas: Atlas | None = None
    ) -> TextFeatures:
        """Return which features of a dictionary are active in a text, a row for each token.

        Args:
            text: the text. No feature is active at special tokens.
            dictionary: one that is loaded, or its folder or place on the Hub.
            atlas: of the same dictionary, whose labels name the features.

        Raises:
            UserError: for an empty text, one longer than the model reads, a dictionary that
                does not say which hook it reads, or the atlas of another dictionary.
        """
        found = self._dictionary(dictionary)
        labels = {} if atlas is None else atlas.labels_for(found)
        x = self._read(text, locate(self.module, found.reads[0].place))
        ids = self._ids(text).cpu()
        special = torch.isin(ids, torch.tensor(self.language_model.special_token_ids))
        parts = []
        for rows in torch.split(torch.arange(len(ids)), _ROWS):
            acts = found.encode(x[rows].to(found.W_enc.device)).float().cpu()
            acts[special[rows]] = 0
            parts.append(acts.to_sparse())
        return TextFeatures(self.tokens(text), torch.cat(parts).coalesce(), special, labels)

    def lens(
        self, text: str, *, tuned: "str | Path | TunedLens | None" = None, n_top: int = 5
    ) -> Lens:
        """Return what the model would predict after each token, from the stream at each layer.

        Edits that hold during the call have their effect on what is returned.

        Args:
            text: the text to read.
            tuned: maps for a tuned lens beside the logit lens, or their folder, such as
                `runs/default/tuned_lens`, which `sae lens tuned=true` makes.
            n_top: number of likeliest tokens to keep.

        Raises:
            UserError: for a model that predicts no next token or cannot be read so, an empty
                text, one longer than the model reads, or maps of another model.
        """
        maps = load_tuned(Path(tuned)) if isinstance(tuned, str | Path) else tuned
        table = read_lens(self.language_model, text, tuned=maps, n_top=n_top)
        judged = None if maps is None else maps.judged
        return Lens(table, self.language_model.record.hub_id, text, judged)

    @contextmanager
    def edited(
        self,
        edits: "str | Path | Edits | object" = (),
        *,
        per_sequence: Sequence[object] | None = None,
    ) -> Iterator["Model"]:
        """Make edits in everything that runs through the model inside this context.

        Args:
            edits: one `sae.edit(...)`, a list of them, or the name of an edit file.
            per_sequence: edits for each sequence of a batch, in order, or None for a sequence
                that gets none. They are made after `edits`, which hold for all sequences.

        Raises:
            UserError: with a sentence for each edit that cannot be made.
        """
        with edited(self.module, self.planned(edits, per_sequence=per_sequence)):
            yield self

    def planned(
        self, edits: object = (), *, per_sequence: Sequence[object] | None = None
    ) -> list[Edit]:
        """Return the changes that `edited` makes in this model, as tensors and places."""
        planner = Planner(self.subject, self._library)
        aims = planner.aims(edits_of(edits))
        for i, own in enumerate(per_sequence or ()):
            of = i, len(per_sequence or ())
            aims += planner.aims(edits_of(() if own is None else own), of)
        return [*planner.edits(aims)]

    @property
    def subject(self) -> Subject:
        """The model with all that planning an edit needs to know."""
        model = self.language_model
        return Subject(model.module, model.record, len(model.marks.begin), model.text_ids)

    @overload
    def generate(
        self,
        prompt: str,
        *,
        max_new_tokens: int = ...,
        temperature: float = ...,
        seed: int = ...,
        to_the_end: bool = ...,
    ) -> str: ...
    @overload
    def generate(
        self,
        prompt: list[str],
        *,
        max_new_tokens: int = ...,
        temperature: float = ...,
        seed: int = ...,
        to_the_end: bool = ...,
    ) -> list[str]: ...
    def generate(
        self,
        prompt: str | list[str],
        *,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        seed: int = 0,
        to_the_end: bool = False,
    ) -> str | list[str]:
        """Return what the model writes after a prompt, or after each of several.

        Prompts of different lengths are continued in one batch.

        Args:
            prompt: a beginning, or a list of them, for which a list is returned.
            max_new_tokens: how much is written at most.
            temperature: 0 takes the likeliest token every time.
            seed: of sampling; the random state of torch is left alone.
            to_the_end: whether to write on where the model would end the text.

        Raises:
            UserError: if the model cannot write, if a prompt is empty, or if it leaves too
                little room for the tokens to write.
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        how = Sampling(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            to_the_end=to_the_end,
        )
        ids = [checked_prompt_ids(self.language_model, one) for one in prompts]
        texts = [written.text for written in write(self.language_model, ids, how)]
        return texts[0] if isinstance(prompt, str) else texts

    def chat(
        self,
        messages: str | Sequence[Mapping[str, str]],
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> str:
        """Return the answer of a model that was trained to chat.

        Args:
            messages: what is asked, or a conversation of `{"role": ..., "content": ...}`.
            max_new_tokens: how much is written at most.
            temperature: 0 takes the likeliest token every time.
            seed: of sampling.

        Raises:
            UserError: for a model without a chat template, or a conversation it cannot hold.
        """
        how = Sampling(
            max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, to_the_end=False
        )
        (written,) = write(self.language_model, [chat_ids(self.language_model, messages)], how)
        return written.text

    @overload
    def logprobs(self, prompt: str) -> Float[Tensor, " vocabulary"]: ...
    @overload
    def logprobs(self, prompt: str, continuation: str) -> float: ...
    def logprobs(
        self, prompt: str, continuation: str | None = None
    ) -> Float[Tensor, " vocabulary"] | float:
        """Return log-probabilities, in nats, of what follows a prompt.

        Args:
            prompt: a beginning.
            continuation: a text whose log-probability is wanted, with the space before it.

        Returns:
            A tensor (vocabulary,) for the next token, or one number for a continuation.

        Raises:
            UserError: for a model that writes nothing, an empty prompt or continuation, or a
                text longer than the model reads.
        """
        if continuation is None:
            return next_log_probs(self.language_model, prompt)
        return log_prob_of(self.language_model, prompt, continuation)

    def next_tokens(self, prompt: str, n: int = 5) -> list[tuple[str, float]]:
        """Return the `n` likeliest next tokens after a prompt, each with its probability.

            m.next_tokens("The Eiffel Tower is in the city of", 1)  # [(" Paris", 0.78)]

        Raises:
            UserError: for a model that writes nothing, or a prompt that is empty or too long.
        """
        require(n >= 1, f"n={n}; ask for one token or more")
        best = self.logprobs(prompt).exp().topk(min(n, self.module.config.vocab_size))
        texts = TokenTexts(self.tokenizer).single(best.indices.tolist())
        return list(zip(texts, best.values.tolist(), strict=True))

    def patchscope(
        self,
        source: "str | tuple[str | Dictionary, int]",
        *,
        at: "str | Sequence[str]" = (),
        token: int = -1,
        into: str | None = None,
        scales: Sequence[float] = SCALES,
        question: Question = Question(),  # noqa: B008 (it is frozen)
    ) -> Patchscopes:
        """Ask the model what a hidden state of a text, or a feature of a dictionary, is.

            m.patchscope("Amazon's former CEO attended Oscars", at="blocks.9.hook_resid_post")
            m.patchscope((folder, 412))

        The vector takes the place of one token of a prompt, and the model continues the prompt.
        Answers for the prompt left alone and for other vectors of equal length stand beside it.

        Args:
            source: a text, or a dictionary (or its folder) with the number of a feature.
            at: hooks at which states of the text are read, by default the ends of some blocks.
            token: position of the token whose state is read, or below 0 counted from the end.
            into: hook at which the vector is put, by default where a state was read, or for a
                feature an early block.
            scales: lengths of a feature's direction, in multiples of a typical state's length.
            question: the prompt, and how the model continues it.

        Raises:
            UserError: for an empty text, a position, hook or feature that is not there, or a
                prompt that has no place for it.
        """
        model = self.language_model
        if isinstance(source, str):
            places = places_of_state(self.module, [at] if isinstance(at, str) else at, into)
            return ask_of_state(model, question, source_of(model, source, token), places)
        of = self._dictionary(source[0]), source[1]
        return ask_of_feature(model, question, of, into, scales)

    def _ids(self, text: str) -> Int[Tensor, " position"]:
        found = torch.from_numpy(self.language_model.document_ids(text)).long()
        return found.to(self.language_model.device)

    def _read(self, text: str, site: Any) -> Float[Tensor, "position d"]:
        require(len(self.language_model.text_ids(text)) > 0, "the text is empty; write some")
        ids = self._ids(text)
        check_reads(self.language_model, len(ids))
        (x,) = read_activations(self.module, [site], ids[None]).values()
        return x[0].float().clone()

    def _dictionary(self, given: "str | Dictionary") -> Dictionary:
        if isinstance(given, Dictionary):
            return given
        return self._library.dictionary(given).dictionary
