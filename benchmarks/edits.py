"""What edits cost while a model writes, and nine doses in one batch beside nine runs.

All take turns with the unedited model, so that what the machine does besides hits all alike.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader
from transformers import DynamicCache

import sae
from benchmarks.common import HOOK, RUN, real_rows, write_results
from sae.commands.serve_api import complete_with
from sae.edits import edited
from sae.models.packaged import EMBEDDED
from sae.pages.server.completions import Completion
from sae.run import Run

PROMPT = "I went for a walk and"
N_TOKENS, N_PAIRS, N_DOSES = 48, 250, 9
ALL = {"prompt": "all", "generated": "all", "except": []}
DICTIONARIES = {
    "standard": sae.StandardConfig(d_sae=2_304, l1_coefficient=1.5),
    "topk": sae.TopKConfig(d_sae=2_304, k=32),
}


def dictionaries() -> dict[str, str]:
    """Dictionaries of the demo's size, trained briefly."""
    real_rows(1)
    sae.sweep(
        sae.TrainConfig(run=str(RUN), name=f"edits-{name}", sae=one, training_tokens=200_000)
        for name, one in DICTIONARIES.items()
    )
    return {name: str(RUN / "dictionaries" / f"edits-{name}") for name in DICTIONARIES}


def _edits(folders: dict[str, str]) -> dict[str, list[Any]]:
    def each(folder: str, **keys: Any) -> list[Any]:
        return [sae.edit(dictionary=folder, **keys)]

    topk, standard = folders["topk"], folders["standard"]
    return {
        "no edit, in the context": [],
        "a constant: add one feature": each(standard, feature=5, do="add", by=1.0),
        "a constant: add along a token": [sae.edit(at=HOOK, token=" Paris", do="add", by=1.0)],
        "clamp one feature (ReLU)": each(standard, feature=5, do="set", by=1.0),
        "clamp ten features (ReLU)": each(standard, features=[*range(10)], do="set", by=1.0),
        "clamp one feature, gated (ReLU)": each(
            standard, feature=5, do="set", by=1.0, when={"feature": 9, "above": 0.0}
        ),
        "clamp one feature (TopK)": each(topk, feature=5, do="set", by=1.0),
        "clamp ten features (TopK)": each(topk, features=[*range(10)], do="set", by=1.0),
    }


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _overhead(m: sae.Model, contenders: dict[str, list[Any]]) -> list[dict[str, object]]:
    """Median, over pairs in turns, of a token's time with edits over that of one without.

    One token at a time is compared with the next, as what the machine does besides changes
    faster than a whole text is written.
    """
    ids = torch.from_numpy(m.language_model.prompt_ids(PROMPT)).long()[None]
    cache = DynamicCache()
    with torch.inference_mode():
        m.module(ids, past_key_values=cache)

    def step() -> None:
        with torch.inference_mode():
            m.module(ids[:, -1:], past_key_values=cache, use_cache=True)
        cache.crop(-1)

    rows: list[dict[str, object]] = []
    planned = {name: m.planned(edits) for name, edits in contenders.items()}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for turn in range(N_PAIRS + 10):
        for name, edits in planned.items():
            # Which of the two goes first changes with every round.
            plain = 0.0 if turn % 2 else _seconds(step)
            with edited(m.module, edits):
                with_edits = _seconds(step)
            plain = _seconds(step) if turn % 2 else plain
            if turn >= 10:
                found[name].append((plain, with_edits))
    for name, pairs in found.items():
        ratios = [with_edits / plain for plain, with_edits in pairs]
        quarters = statistics.quantiles(ratios, n=4)
        # Of a median, for numbers spread as these are.
        error = 1.2533 * 0.7413 * (quarters[2] - quarters[0]) / len(ratios) ** 0.5
        rows.append(
            {
                "edit": name,
                "plain (ms a token)": round(1e3 * statistics.median(p for p, _ in pairs), 1),
                "time over plain": f"{statistics.median(ratios) - 1:+.1%}",
                "standard error": f"{error:.1%}",
            }
        )
    return rows


def _doses(m: sae.Model, folder: str) -> list[dict[str, object]]:
    doses = [4.0 * i for i in range(-(N_DOSES // 2), N_DOSES // 2 + 1)]

    def one(by: float | list[float], prompts: list[str]) -> list[str]:
        with m.edited(sae.edit(dictionary=folder, feature=5, do="add", by=by)):
            texts: list[str] = m.generate(prompts, max_new_tokens=N_TOKENS, to_the_end=True)
        return texts

    found: dict[str, list[float]] = {"together": [], "apart": []}
    same = False
    for _ in range(5):
        began = time.perf_counter()
        together = one(doses, [PROMPT] * len(doses))
        found["together"].append(time.perf_counter() - began)
        began = time.perf_counter()
        apart = [one(by, [PROMPT])[0] for by in doses]
        found["apart"].append(time.perf_counter() - began)
        same = together == apart
    times = {name: statistics.median(seconds) for name, seconds in found.items()}
    ratios = [a / t for a, t in zip(found["apart"], found["together"], strict=True)]
    return [
        {
            "doses": len(doses),
            "one batch (s)": round(times["together"], 2),
            "one after the other (s)": round(times["apart"], 2),
            "times as fast": round(statistics.median(ratios), 2),
            "same texts": "yes" if same else "no",
        }
    ]


def _ways(m: sae.Model, folder: str) -> list[dict[str, object]]:
    """Return the text that one edit file gives: by hooks, and by all that it can become."""
    edits = sae.Edits(
        (
            sae.edit(
                dictionary=folder, feature=5, do="add", by=0.5, unit="residual_norm", where=ALL
            ),
        )
    )
    place = Path(tempfile.mkdtemp())
    edits.save(place / "edits.yaml")
    file = str(place / "edits.yaml")

    def text(model: sae.Model) -> str:
        return model.generate(PROMPT, max_new_tokens=N_TOKENS)

    plain = text(m)
    with m.edited(file):
        found = {"hooks, m.edited": text(m)}
    vector = sae.edit_export(file=file, out=str(place / "edits.gguf"))
    with ExitStack() as hooks:
        for tensor in GGUFReader(vector).tensors:
            block = m.module.model.layers[int(tensor.name.removeprefix("direction."))]
            added = torch.tensor(np.array(tensor.data))
            handle = block.register_forward_hook(lambda _, __, out, added=added: out + added)
            hooks.callback(handle.remove)
        found["control vector (GGUF), added behind its block"] = text(m)
    sae.edit_bake(file=file, out=str(place / "baked"))
    # The embedded model begins texts with another token than its tokenizer names.
    baked = sae.model(str(place / "baked"), bos_token=EMBEDDED["smollm2"].bos_token)
    found["weights, an ordinary checkpoint"] = text(baked)
    asked = Completion([PROMPT], [], N_TOKENS, 0.0, 0, _named(edits, folder))
    complete = complete_with(Run.at(RUN), m, sae.Edits(()))
    (written,) = complete(asked, lambda: None)
    found["endpoint, sae serve --api"] = written.text
    return [
        {
            "the same edit as": way,
            "text": f"{one[:60]}...",
            "as by hooks": "yes" if one == found["hooks, m.edited"] else "no",
            "as without edits": "yes" if one == plain else "no",
        }
        for way, one in found.items()
    ]


def _named(edits: sae.Edits, folder: str) -> list[object]:
    records: Any = edits.to_plain()["edits"]
    return [one | {"dictionary": Path(folder).name} for one in records]


def main(*words: str) -> None:
    """Write `results/edits.md`, `results/doses.md` and `results/edit_ways.md`.

    With the word `cost` the first alone.
    """
    folders = dictionaries()
    m = sae.model("smollm2")
    title = "A token of SmolLM2-135M, with a key-value cache, while activations are edited"
    write_results("edits", title, _overhead(m, _edits(folders)))
    if "cost" in words:
        return
    doses = f"{N_DOSES} strengths of one feature, {N_TOKENS} tokens each"
    write_results("doses", doses, _doses(m, folders["standard"]))
    ways = f"One edit file, {N_TOKENS} tokens at temperature 0"
    write_results("edit_ways", ways, _ways(m, folders["standard"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
