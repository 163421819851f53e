"""Steering specifications of EasySteer, its extension of vLLM, as JSON.

The keys and what they mean are those of `SteeringSpec`, `VectorSpec` and `ApplySpec` in
vllm/steer_vectors/api.py of its engine, in the version of August 2026. A vector is in the file
itself, as vllm/steer_vectors/payloads.py wants it (`DirectionVector`), so the file is whole.
"""

import base64
import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae.base import UserError
from sae.edits.aim import Aim
from sae.edits.constants import why_not_always, why_not_same
from sae.edits.control_vector import block_before
from sae.edits.positions import EVERYWHERE, Span
from sae.edits.record import BOS, EVERY_WRITER

_VERSION = 1
"""Of the form in which a payload travels."""


def steering_spec(aims: Sequence[Aim]) -> dict[str, Any]:
    """Return the specification that does what edits do, ready for JSON.

    Raises:
        UserError: with a sentence for each edit that no specification can say.
    """
    wrong, vectors = list[str](), list[dict[str, Any]]()
    for i, aim in enumerate(aims):
        why = _why_not(aim)
        if why is None:
            try:
                vectors += _vectors(aim)
            except UserError as error:
                why = str(error)
        if why is not None:
            wrong.append(f"edits[{i}] cannot be made a steering specification: {why}")
    if not aims:
        wrong.append("there is no edit that could be made a steering specification")
    if wrong:
        raise UserError(*wrong)
    # Not `priority`, the default there, by which only the first of several is made at a token.
    return {"vectors": vectors, "conflict": "sequential"}


def _why_not(aim: Aim) -> str | None:
    """Return why no specification says an edit; None if one does."""
    record = aim.record
    if record.do == "orthogonal":
        if record.at == EVERY_WRITER:
            return f"it is made at {EVERY_WRITER}; sae edit bake makes weights of it"
        amount = aim.amount
        if amount is None or bool((amount != 0).any()):
            return "EasySteer takes a direction out whole; leave out by"
        return why_not_always(aim)
    return why_not_same(aim)


def _vectors(aim: Aim) -> list[dict[str, Any]]:
    """Return the `VectorSpec`s of an edit."""
    assert aim.amount is not None
    layer = block_before(aim.site)
    directions = torch.stack([scale.vector for scale in aim.scales]).to(aim.amount).cpu()
    adds = aim.record.mode.reads == "nothing"
    made = aim.amount.cpu() @ directions if adds else directions
    return [
        {
            "data": _payload(layer, vector),
            "algorithm": "direct" if adds else "erase",
            "apply": _apply(aim),
        }
        for vector in made
    ]


def _payload(layer: int, vector: Float[Tensor, " d"]) -> dict[str, Any]:
    """Return a vector as it travels in JSON, with the digest that it is known by there."""
    name, array = f"layer.{layer}", vector.float().contiguous().numpy()
    data = array.tobytes()
    found = hashlib.sha256(f"direction:{_VERSION}".encode())
    for part in (name.encode(), str(array.shape).encode(), data):
        found.update(part)
    tensor = {"shape": [*array.shape], "data": base64.b64encode(data).decode()}
    return {
        "version": _VERSION,
        "kind": "direction",
        "tensors": {name: tensor},
        "extra": {},
        "sha256": found.hexdigest(),
    }


def _apply(aim: Aim) -> dict[str, Any]:
    """Return the `ApplySpec` of an edit."""
    where = aim.positions
    found = _phase("prompt", where.prompt) | _phase("generation", where.generated)
    if len(where.but) > 1:
        raise UserError(
            "EasySteer can leave out only one range of the prompt; name a single one in except"
        )
    for said, (first, last) in zip(aim.record.where.but, where.but, strict=True):
        # A prompt holds the tokens before every text, and its end is where it ends.
        of_prompt = said == BOS or (last is not None and last < 0)
        if where.generated and not of_prompt:
            raise UserError(
                f"except {[first, last]} may reach beyond the prompt, but EasySteer counts "
                "the prompt and the generated text separately; count from the end of the "
                "prompt, as in [-4, -1]"
            )
        if where.prompt:
            found["exclude_prompt_window"] = [first, last]
    return found


def _phase(name: str, spans: Sequence[Span]) -> dict[str, Any]:
    if len(spans) > 1:
        raise UserError(
            f"EasySteer takes only one range of the {name}, but there are {len(spans)}; "
            "make an edit for each"
        )
    if tuple(spans) == EVERYWHERE:
        return {name: "all"}
    return {f"{name}_window": [*span] for span in spans}
