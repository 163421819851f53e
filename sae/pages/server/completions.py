"""Requests of OpenAI's interface, answered by a model under edits.

`/v1/completions` and `/v1/chat/completions` take what OpenAI's clients send, and beside it
`edits`, a list as in an edit file. What would be ignored is refused.
"""

import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from aiohttp import web

from sae.base import UserError, nearest, require
from sae.pages.server.app import Worker
from sae.pages.server.guard import add_headers, guard

_MAX_BODY = 1 << 20
_MOST_PROMPTS = 64
_MOST_TOKENS = 4_096
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "n": (1,),
    "top_p": (1, 1.0),
    "stream": (False,),
    "stop": ([],),
    "echo": (False,),
    "best_of": (1,),
    "suffix": ("",),
    "logprobs": (False, 0),
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "logit_bias": ({},),
}
"""Keys of OpenAI's that are taken only with the values that change nothing; null is one too."""


class Written(Protocol):
    """What was written after one prompt."""

    @property
    def text(self) -> str: ...
    @property
    def n_prompt(self) -> int: ...
    @property
    def n_tokens(self) -> int: ...
    @property
    def ended(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Completion:
    """One request."""

    prompts: Sequence[str]
    """Beginnings to go on with; empty for a conversation."""
    messages: Sequence[Mapping[str, str]]
    """A conversation to answer; empty for prompts."""
    max_tokens: int = 16
    temperature: float = 1.0
    seed: int = 0
    edits: Sequence[object] | None = None
    """Edits in the place of those that the server makes; None for those."""


Complete = Callable[[Completion, Callable[[], None]], Sequence[Written]]
"""Answers a request, a text for each prompt. The second argument is called before each token:
it raises once nobody waits."""


def application(
    name: str, complete: Complete, is_own_name: Callable[[str], bool]
) -> web.Application:
    """Return the application that answers for the model of that name."""
    handlers = _Handlers(name, complete)
    app = web.Application(
        middlewares=[guard(is_own_name, _refusal)],  # type: ignore[list-item]
        client_max_size=_MAX_BODY,
    )
    app.on_response_prepare.append(add_headers)
    app.on_cleanup.append(handlers.close)
    app.router.add_get("/v1/models", handlers.models)
    app.router.add_post("/v1/completions", handlers.completions)
    app.router.add_post("/v1/chat/completions", handlers.chat)
    return app


def _refusal(sentence: str) -> object:
    """Return an error as OpenAI's clients read it."""
    return {"error": {"message": sentence, "type": "invalid_request_error"}}


class _Handlers:
    def __init__(self, name: str, complete: Complete) -> None:
        self.name, self.complete, self.worker = name, complete, Worker()

    async def close(self, _: web.Application) -> None:
        await self.worker.close()

    async def models(self, _: web.Request) -> web.StreamResponse:
        one = {"id": self.name, "object": "model", "created": 0, "owned_by": "sae"}
        return web.json_response({"object": "list", "data": [one]})

    async def completions(self, request: web.Request) -> web.StreamResponse:
        wanted = read_request(await request.read(), self.name, chat=False)
        found = await self.worker.do(lambda check: self.complete(wanted, check))
        choices = [
            {"index": i, "text": one.text, "logprobs": None, "finish_reason": _reason(one)}
            for i, one in enumerate(found)
        ]
        return self._answer("text_completion", "cmpl", choices, found)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        wanted = read_request(await request.read(), self.name, chat=True)
        found = await self.worker.do(lambda check: self.complete(wanted, check))
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": one.text},
                "finish_reason": _reason(one),
            }
            for i, one in enumerate(found)
        ]
        return self._answer("chat.completion", "chatcmpl", choices, found)

    def _answer(
        self, kind: str, prefix: str, choices: list[Any], found: Sequence[Written]
    ) -> web.StreamResponse:
        read, written = (
            sum(n) for n in zip(*((w.n_prompt, w.n_tokens) for w in found), strict=True)
        )
        usage = {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
        }
        about = {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "model": self.name}
        made = {"created": int(time.time()), "choices": choices, "usage": usage}
        return web.json_response(about | made)


def _reason(one: Written) -> str:
    return "stop" if one.ended else "length"


def read_request(data: bytes, name: str, *, chat: bool) -> Completion:
    """Return the request in a body of OpenAI's form.

    Args:
        name: the model that answers.
        chat: whether it is a conversation.

    Raises:
        UserError: if it is no JSON object, asks for another model or for what is not done
            here, or a value is missing, of a wrong type or out of range.
    """
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError("the request is not readable as JSON") from error
    if not isinstance(body, dict):
        raise UserError('the request is no JSON object; give one such as {"prompt": "..."}')
    given = {key: value for key, value in body.items() if value is not None}
    what = "messages" if chat else "prompt"
    known = {what, "model", "max_tokens", "max_completion_tokens", "temperature", "seed"}
    known |= {"edits", "user", *_NEUTRAL}
    for key, value in given.items():
        if key not in known:
            raise UserError(f"{key[:40]!r} is no key of this request{nearest(key[:40], known)}")
        if key in _NEUTRAL and not any(value == one for one in _NEUTRAL[key]):
            raise UserError(f"{key}={_shown(value)} is not done here; leave {key} out")
    asked = given.get("model", name)
    require(asked == name, f"model is {_shown(asked)}, and this server answers for {name!r}")
    limit = given.get("max_completion_tokens", given.get("max_tokens", 128 if chat else 16))
    edits = given.get("edits")
    if not isinstance(edits, list | None):
        raise UserError(f"edits is {_shown(edits)}; give a list, as in an edit file")
    return Completion(
        [] if chat else _prompts(given.get("prompt")),
        _messages(given.get("messages")) if chat else [],
        int(_number("max_tokens", limit, 1, _MOST_TOKENS, whole=True)),
        _number("temperature", given.get("temperature", 1.0), 0, 5),
        int(_number("seed", given.get("seed", 0), 0, 2**32 - 1, whole=True)),
        edits,
    )


def _prompts(found: object) -> list[str]:
    prompts = [found] if isinstance(found, str) else found
    if not isinstance(prompts, list) or not all(isinstance(one, str) for one in prompts):
        raise UserError(f"prompt is {_shown(found)}; give a text, or a list of texts")
    require(
        1 <= len(prompts) <= _MOST_PROMPTS,
        f"prompt holds {len(prompts)} texts; give 1 to {_MOST_PROMPTS}",
    )
    return [_whole(one) for one in prompts]


def _messages(found: object) -> list[Mapping[str, str]]:
    if not isinstance(found, list) or not found:
        raise UserError(f'messages is {_shown(found)}; give a list of {{"role", "content"}}')
    for one in found:
        right = isinstance(one, dict) and {*one} == {"role", "content"}
        if not right or not all(isinstance(value, str) for value in one.values()):
            raise UserError(f"messages holds {_shown(one)}; give role and content, both texts")
    return [{key: _whole(value) for key, value in one.items()} for one in found]


def _whole(text: str) -> str:
    # JSON can name half a character, which no tokenizer takes.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _number(name: str, found: Any, low: float, high: float, *, whole: bool = False) -> float:
    # Not isinstance(): true would be a number. NaN is in no range.
    if type(found) in ((int,) if whole else (int, float)) and low <= found <= high:
        return float(found)
    kind = "whole number" if whole else "number"
    raise UserError(f"{name} is {_shown(found)}; give a {kind} from {low:g} to {high:g}")


def _shown(value: object) -> str:
    return "missing" if value is None else json.dumps(value)[:40]
