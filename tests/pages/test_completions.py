"""OpenAI's interface: what is answered under which edits, and what is refused."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.server import Server, answering

import sae
from sae.base.errors import UserError
from sae.commands.serve_api import complete_with
from sae.interactive import Model
from sae.pages.server.completions import application, read_request
from sae.pages.server.guard import name_check
from sae.run import Run

PROMPT = "Note 0-1: the river ran past"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('no system') }}{% endif %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture(scope="module")
def m(tiny_model: Path) -> Model:
    found = sae.model(str(tiny_model))
    found.tokenizer.chat_template = TEMPLATE
    return found


@pytest.fixture(scope="module")
def always(tiny_run: Path) -> sae.Edits:
    folder = str(tiny_run / "dictionaries/weak")
    return sae.Edits((sae.edit(dictionary=folder, feature=3, do="add", by=6.0),))


@pytest.fixture(scope="module")
def server(tiny_run: Path, m: Model, always: sae.Edits) -> Iterator[Server]:
    complete = complete_with(Run.at(tiny_run), m, always)
    with answering(lambda: application("tiny", complete, name_check("127.0.0.1"))) as found:
        yield found


def edit(**keys: Any) -> dict[str, Any]:
    return {"dictionary": "weak", "feature": 5, "do": "set", "by": 9.0} | keys


def text(server: Server, **body: Any) -> str:
    found = server.json(
        "/v1/completions", {"prompt": PROMPT, "temperature": 0, "max_tokens": 12} | body
    )
    return found["choices"][0]["text"]


def test_the_text_is_that_of_the_context_manager(server, m, always, tiny_run):
    # The server edits this very model: what is expected is written before it is asked.
    with m.edited(always):
        expected = m.generate(PROMPT, max_new_tokens=12)
    assert text(server) == expected
    assert text(server, edits=[]) == m.generate(PROMPT, max_new_tokens=12)
    folder = str(tiny_run / "dictionaries/weak")
    with m.edited(sae.edit(**edit(dictionary=folder))):
        own = m.generate(PROMPT, max_new_tokens=12)
    assert text(server, edits=[edit()]) == own
    assert len({text(server), text(server, edits=[]), own}) == 3


def test_several_prompts_are_answered_in_their_order(server, m):
    prompts = [PROMPT, "rain"]
    found = server.json(
        "/v1/completions",
        {"prompt": prompts, "temperature": 0, "max_tokens": 5, "edits": [], "model": "tiny"},
    )
    assert [one["text"] for one in found["choices"]] == m.generate(prompts, max_new_tokens=5)
    assert found["object"] == "text_completion"
    usage = found["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens"] == sum(
        len(m.language_model.prompt_ids(one)) for one in prompts
    )
    assert {one["finish_reason"] for one in found["choices"]} <= {"stop", "length"}


def test_a_conversation_is_answered(server, m):
    said = [{"role": "user", "content": "the river"}]
    body = {"messages": said, "temperature": 0, "max_tokens": 6, "edits": []}
    found = server.json("/v1/chat/completions", body)
    message = found["choices"][0]["message"]
    assert message == {"role": "assistant", "content": m.chat(said, max_new_tokens=6)}
    assert m.chat("the river", max_new_tokens=6) == message["content"]
    body["messages"] = [{"role": "system", "content": "x"}, *said]
    assert "no system" in server.refused("/v1/chat/completions", body)


def test_the_list_of_models_has_this_one(server):
    (one,) = server.json("/v1/models")["data"]
    assert one["id"] == "tiny"


def test_a_sampled_text_is_repeated_by_its_seed(server):
    first, again, other = (text(server, temperature=1.0, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_tokens": 1_000_000_000}, "max_tokens is 1000000000; give a whole number from 1"),
        ({"max_tokens": 200}, "reads only 128 at once"),
        ({"prompt": "river " * 200}, "reads only 128 at once"),
        ({"prompt": ""}, "write a beginning"),
        ({"prompt": None}, "prompt is missing"),
        ({"prompt": []}, "holds 0 texts"),
        ({"prompt": [1, 2]}, "give a text, or a list of texts"),
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": math.nan}, "temperature is NaN"),
        ({"seed": 0.5}, "seed is 0.5; give a whole number"),
        ({"model": "gpt-4"}, "model is \"gpt-4\", and this server answers for 'tiny'"),
        ({"stream": True}, "stream=true is not done here"),
        ({"n": 3}, "n=3 is not done here"),
        ({"promptt": "x"}, "'promptt' is no key of this request; nearest: prompt"),
        ({"edits": {}}, "edits is {}; give a list"),
        ({"edits": [edit(feature=64)]}, "has 0 to 63"),
        ({"edits": [edit(do="sett")]}, "nearest: set"),
        ({"edits": [edit(by="x"), 3]}, "edits[1] is 3"),
        ({"edits": [edit(dictionary="wek")]}, "is not in this run"),
        ({"edits": [edit(dictionary="../../etc")]}, "is not in this run"),
        (
            {"edits": [edit(cache="/etc")]},
            "cache names a file, which a request is not allowed to do",
        ),
        (
            {"edits": [{"at": "blocks.1.hook_resid_post", "direction": "/etc/passwd"}]},
            "direction names a file, which a request is not allowed to do",
        ),
        (
            {"edits": [edit(when={"feature": 1, "above": 0.0, "dictionary": "/etc"})]},
            "is not in this run",
        ),
    ],
)
def test_what_cannot_be_answered_is_refused_in_a_sentence(server, changes, words):
    body = {"prompt": PROMPT, "temperature": 0, "max_tokens": 4} | changes
    assert words in server.refused("/v1/completions", body)
    # Nothing is lost by it.
    assert text(server, edits=[])


def test_what_openais_clients_send_without_meaning_it_is_taken():
    neutral = {"n": 1, "top_p": 1, "stream": False, "stop": None, "user": "somebody"}
    body = {"prompt": "x", "presence_penalty": 0, **neutral}
    found = read_request(json.dumps(body).encode(), "tiny", chat=False)
    assert found.prompts == ["x"]
    for data in (b"", b"[]", b"\xff", b'{"prompt": "x", "top_p": 0.5}'):
        with pytest.raises(UserError):
            read_request(data, "tiny", chat=False)


def test_a_page_of_another_site_is_not_answered(server):
    body = {"prompt": PROMPT}
    assert "answers" in server.refused(
        "/v1/completions", body, 403, Origin="http://elsewhere.example"
    )
    status, _, _ = server.ask("/v1/completions", b"x=1", Content_Type="text/plain")
    assert status == 415
