"""What a dictionary sees in a text that somebody types: features token by token."""

from dataclasses import dataclass

import torch

from sae.base import UserError, require
from sae.dictionary import Dictionary
from sae.models import LanguageModel, locate, read_activations
from sae.text.token_texts import TokenTexts

# Rows that are encoded at once, so that a long text needs no more memory than a short one.
_ROWS = 256


@dataclass(frozen=True, slots=True)
class Reading:
    """The tokens of a text and the features that are active there."""

    tokens: list[str]
    """What each adds to the text; nothing for a part of a character that is not its last."""
    strongest: list[list[tuple[int, float]]]
    """For each token (feature, activation), the strongest first; none at special tokens."""
    acts: list[float] | None
    """Activation at each token of the one feature that was asked for."""


def read_text(
    model: LanguageModel,
    dictionary: Dictionary,
    text: str,
    *,
    n_strongest: int = 12,
    feature: int | None = None,
) -> Reading:
    """Features of `dictionary` in `text`, read as a harvest reads a document of its own.

    The tokens that the model has around a document are read with it and left out of what is
    returned. Special tokens inside the text are no text: no feature is active there. All
    activations of `feature` are returned, and the `n_strongest` of each token.

    Raises:
        UserError: for a text without tokens, or one longer than the model can read.
    """
    read, whole = model.text_ids(text), model.document_ids(text)
    require(len(read) > 0, "the text is empty; write something to read")
    limit = model.max_positions
    if limit is not None and len(whole) > limit:
        raise UserError(
            f"the text has {len(whole):,} tokens, but the model reads only {limit:,} at "
            "once; give a shorter text"
        )
    begin = len(model.prompt_ids(text)) - len(read)
    own = slice(begin, begin + len(read))
    ids = torch.from_numpy(whole).long().to(model.device)
    point = locate(model.module, dictionary.reads[0].place)
    (x,) = read_activations(model.module, [point], ids[None]).values()
    special = torch.isin(ids.cpu(), torch.tensor(model.special_token_ids))
    strongest: list[list[tuple[int, float]]] = []
    acts: list[float] = []
    # The weights stay where they are; so few rows are quickly brought there.
    for rows in torch.split(torch.arange(len(ids))[own], _ROWS):
        sent = x[0, rows].to(dictionary.W_enc.device, torch.float32)
        found = dictionary.encode(sent).float()
        found[special[rows]] = 0
        best = found.topk(min(n_strongest, found.shape[1]), dim=1)
        strongest += [
            [(i, act) for i, act in zip(*row, strict=True) if act > 0]
            for row in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        if feature is not None:
            acts += found[:, feature].tolist()
    # As it was typed: the marks around it are no part of the text.
    strings = TokenTexts(model.tokenizer).in_context(read.tolist())
    return Reading(strings, strongest, None if feature is None else acts)
