"""An atlas for Neuronpedia: bodies for its upload call.

The call is `POST /api/feature/upload-batch` with 1 to 128 features a body. One value that
the schema of its route refuses (`apps/webapp/app/api/feature/upload-batch/route.tsx`, read in
November 2026) refuses the whole body: an empty token, a quantile's share below zero, and names
of methods and models that its database does not know.
"""

from pathlib import Path

from sae.base import progress, require
from sae.exchange.dashboards.neuronpedia import texts_of
from sae.exchange.dashboards.new_folder import new_folder
from sae.exchange.dashboards.place import Place
from sae.exchange.dashboards.rows import TOP, Dashboard, Exported, dashboards, json_bytes

UPLOAD = 128
"""Features a call may upload."""
_MOST_LOGITS, _MOST_TOKENS, _LONGEST_TEXT = 20, 1024, 512


def write_uploads(atlas: Exported, place: Place, folder: Path) -> tuple[int, int]:
    """Write bodies for `POST /api/feature/upload-batch`, one a file.

    A feature needs a context there, so one that never fires is left out.

    Returns:
        Features written, and features left out.

    Raises:
        UserError: if the folder exists, another process writes it, or a context is longer
            than the call takes.
    """
    written, left, bodies = 0, 0, 0
    with (
        new_folder(folder) as temporary,
        progress(len(atlas.features), "export", "feature") as bar,
    ):
        for block in dashboards(atlas, UPLOAD):
            rows = [_upload(atlas, one) for one in block if one.contexts]
            if rows:
                body = {"modelId": place.model_id, "source": place.source, "features": rows}
                (temporary / f"batch-{bodies}.json").write_bytes(json_bytes(body))
                bodies += 1
            written, left = written + len(rows), left + len(block) - len(rows)
            bar.update(len(block))
    return written, left


def _upload(atlas: Exported, one: Dashboard) -> dict[str, object]:
    """A feature as the upload call takes it, no more of anything than it allows."""
    longest = max(len(context.tokens) for context in one.contexts)
    require(
        longest <= _MOST_TOKENS,
        f"feature {one.feature} has a context of {longest} tokens, and an upload takes "
        f"{_MOST_TOKENS}; run sae analyze with context_radius={_MOST_TOKENS // 2 - 1} or less",
    )
    logits = {}
    for name, sign in (("topLogits", "pos"), ("bottomLogits", "neg")):
        pairs = zip(one.fields[f"{sign}_str"], one.fields[f"{sign}_values"], strict=True)
        rows = [{"token": _some(token), "value": value} for token, value in pairs]
        logits[name] = rows[:_MOST_LOGITS]
    return {
        "index": one.feature,
        "density": one.fields["frac_nonzero"],
        **logits,
        "explanations": [
            {"text": _cut(text)} for text, _ in texts_of(atlas, one.feature) if text
        ],
        "activations": [
            {
                "tokens": [_some(token) for token in context.tokens],
                "values": context.values,
                "quantileMin": context.bin_min,
                "quantileMax": context.bin_max,
                "quantileFraction": None
                if context.bin_contains == TOP
                else context.bin_contains,
            }
            for context in one.contexts
        ],
    }


def _some(token: str) -> str:
    """A token that is not empty: half a character, say, is one that cannot be seen."""
    return token or "\u200b"


def _cut(text: str) -> str:
    """As much of a text as a call takes; it counts in UTF-16, and half a character is none."""
    return text.encode("utf-16-le")[: 2 * _LONGEST_TEXT].decode("utf-16-le", "ignore")
