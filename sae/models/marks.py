"""The tokens around a text: what the tokenizer itself puts there, seen on a probe."""

from typing import Any

from sae.base import UserError, nearest
from sae.text.packing import Marks

NO_TOKEN = "none"
"""Asked for in place of a beginning token by whoever wants none."""
_PROBE = "The river ran past 7 old mills."


def find_marks(
    tokenizer: Any, named: str, asked: str | None, *, causal: bool, usual: str | None
) -> Marks:
    """Return the tokens that stand around a model's documents.

    They are those that the tokenizer puts around a text by itself. Where it leaves the
    beginning bare, its `bos_token` stands there if it has one, which is the convention for
    GPT-2 and its kin; but not for an encoder whose texts are marked at their end. No other
    token takes the place of one that there is not.

    Args:
        named: the model, for the sentence of an error.
        asked: beginning token that was asked for; `NO_TOKEN` for none.
        usual: beginning token where none was asked for, instead of the tokenizer's own.

    Raises:
        UserError: if `asked` is no token of it, or if what it does cannot be told.
    """
    token = asked or usual
    around = _around(tokenizer)
    if around is None and token is None:
        raise UserError(
            f"model.name={named}: its tokenizer splits a text differently when it adds its "
            "special tokens, so it is not known which of them begin a text; give "
            f"model.bos_token=... or model.bos_token={NO_TOKEN}"
        )
    begin, end = around or ((), ())
    if token == NO_TOKEN:
        begin = ()
    elif token is not None:
        begin = (token_id(tokenizer, named, token),)
    elif not begin and (causal or not end) and tokenizer.bos_token_id is not None:
        begin = (tokenizer.bos_token_id,)
    return Marks(begin, end, _padding(tokenizer, begin))


def marks_before(tokenizer: Any, bos_token_id: int | None, *, causal: bool) -> Marks:
    """Return the marks of a model whose record is from before marks were kept in it.

    Until then they were guessed from the names of the tokenizer's tokens.

    Args:
        bos_token_id: the beginning token that was asked for, or that is usual for the model.
    """
    own = [tokenizer.bos_token_id, tokenizer.cls_token_id]
    begin = _first(bos_token_id, *(own if causal else own[::-1]), tokenizer.eos_token_id)
    end = None if causal else tokenizer.sep_token_id
    begins, ends = (() if i is None else (i,) for i in (begin, end))
    return Marks(begins, ends, _padding(tokenizer, begins))


def special_ids(tokenizer: Any) -> set[int]:
    """Return the ids of tokens that are no text: those of its roles, and of its templates."""
    added = tokenizer.added_tokens_decoder.items()
    return {*tokenizer.all_special_ids, *(i for i, token in added if token.special)}


def token_id(tokenizer: Any, named: str, token: str) -> int:
    """Return the id of a token.

    Raises:
        UserError: if the tokenizer has no such token.
    """
    vocabulary = tokenizer.get_vocab()
    if token not in vocabulary:
        raise UserError(
            f"model.bos_token={token} is no token of {named}"
            f"{nearest(token, tokenizer.all_special_tokens)}; or say {NO_TOKEN}"
        )
    return int(vocabulary[token])


def _around(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return what the tokenizer puts before and after a text; None if it changes the text."""
    text, whole = (
        list(tokenizer(_PROBE, add_special_tokens=special)["input_ids"])
        for special in (False, True)
    )
    for at in range(len(whole) - len(text) + 1):
        if whole[at : at + len(text)] == text:
            return tuple(whole[:at]), tuple(whole[at + len(text) :])
    return None


def _padding(tokenizer: Any, begin: tuple[int, ...]) -> int:
    found = _first(tokenizer.pad_token_id, tokenizer.eos_token_id, *begin)
    return 0 if found is None else found


def _first(*ids: int | None) -> int | None:
    """Return the first id that there is: 0 is a token like any other, only None means none."""
    return next((i for i in ids if i is not None), None)
