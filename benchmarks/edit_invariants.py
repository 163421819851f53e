"""What has to hold of edits, tried once on SmolLM2-135M and a dictionary of the demo's size."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader
from torch import Tensor

import sae
from benchmarks.common import HOOK, write_results
from benchmarks.edits import ALL, dictionaries
from sae.base import UserError
from sae.edits import Edit, Put, Where, edited
from sae.models import find_site, read_activations
from sae.models.packaged import EMBEDDED

PROMPTS = ["I went for a walk and", "The capital of France is", "Once"]
N_TOKENS = 32
EQUAL = "equal to the bit"


class _Trial:
    """One model and one dictionary."""

    def __init__(self, m: sae.Model, folder: str) -> None:
        self.m, self.folder = m, folder
        self.ids = torch.from_numpy(m.language_model.prompt_ids(PROMPTS[1])).long()[None]
        self.dictionary = sae.load(folder)
        self.site = find_site(m.module, HOOK)
        x = m.activations(PROMPTS[1], HOOK)
        acts = self.dictionary.encode(x)[1:]
        # Those that are active here, so that there is something to change.
        self.active = acts.sum(0).topk(4).indices.tolist()

    def edit(self, **keys: Any) -> Any:
        return sae.edit(
            **{"dictionary": self.folder, "feature": self.active[0], "do": "set", "by": 9.0}
            | keys
        )

    def logits(self, *edits: Any) -> Tensor:
        with torch.inference_mode(), self.m.edited([*edits]):
            found: Tensor = self.m.module(self.ids, use_cache=False).logits
        return found

    def texts(self, prompts: list[str], edit: Any) -> list[str]:
        with self.m.edited(edit):
            return self.m.generate(prompts, max_new_tokens=N_TOKENS, to_the_end=True)


def _difference(a: Tensor, b: Tensor) -> str:
    if torch.equal(a, b):
        return EQUAL
    return f"{float((a - b).abs().max() / b.abs().max()):.0e} of the largest logit"


def _same(a: object, b: object) -> str:
    return "the same" if a == b else "NOT the same"


def _rows(t: _Trial) -> Iterator[tuple[str, str]]:
    plain = t.logits()
    with torch.inference_mode():
        never_edited = t.m.module(t.ids, use_cache=False).logits
    yield "an empty list leaves the logits", _difference(plain, never_edited)
    for name, edit in {
        "adding 0": t.edit(do="add", by=0.0),
        "multiplying by 1": t.edit(do="multiply", by=1.0),
        "a gate that stays closed": t.edit(when={"feature": t.active[1], "above": 1e9}),
    }.items():
        yield f"{name} leaves the logits", _difference(t.logits(edit), plain)
    changed = t.logits(t.edit())
    yield "and setting a feature does not", _difference(changed, plain)
    yield "setting it = the whole reconstruction and its error", _error_term(t, changed)
    yield "setting twice = the last", _difference(t.logits(t.edit(by=3.0), t.edit()), changed)
    out = t.edit(do="orthogonal", by=None)
    yield (
        "taking a direction out twice = once",
        _difference(t.logits(out, out), t.logits(out)),
    )
    one, two = t.edit(where={"prompt": [1, 3]}), t.edit(do="add", where={"prompt": [3, 5]})
    yield "edits of other tokens commute", _difference(t.logits(one, two), t.logits(two, one))
    yield from _writing(t)
    yield from _leaving(t)
    before = _n_hooks(t.m)
    try:
        with t.m.edited(t.edit()):
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        yield "hooks left by an exception", str(_n_hooks(t.m) - before)


def _error_term(t: _Trial, changed: Tensor) -> str:
    """Return how far an edit is from decoding all codes anew and adding the old error."""
    d = t.dictionary
    (x,) = read_activations(t.m.module, [t.site], t.ids).values()
    acts = d.encode(x[0])
    error = x[0] - d.decode(acts)
    acts[:, t.active[0]] = 9.0
    rows = d.decode(acts) + error
    rows[0] = x[0, 0]
    found = []
    for i in range(len(rows)):
        chosen = torch.zeros(1, len(rows), dtype=torch.bool)
        chosen[0, i] = True
        found.append(Edit(t.site, Put(rows[i]), Where(chosen)))
    with torch.inference_mode(), edited(t.m.module, found):
        return _difference(changed, t.m.module(t.ids, use_cache=False).logits)


def _writing(t: _Trial) -> Iterator[tuple[str, str]]:
    edit = t.edit(by=30.0)
    together = t.texts(PROMPTS, edit)
    alone = [t.texts([prompt], edit)[0] for prompt in PROMPTS]
    yield "rows padded on the left = lone rows, 32 tokens", _same(together, alone)

    def tokens(use_cache: bool) -> list[int]:
        with torch.inference_mode(), t.m.edited(edit):
            found: Tensor = t.m.module.generate(
                t.ids, max_new_tokens=N_TOKENS, do_sample=False, use_cache=use_cache
            )
        ids: list[int] = found[0].tolist()
        return ids

    yield "with a key-value cache = without, 32 tokens", _same(tokens(True), tokens(False))
    doses = [-30.0, -3.0, 0.0, 3.0, 30.0]
    batch = t.texts([PROMPTS[1]] * len(doses), t.edit(by=doses))
    apart = [t.texts([PROMPTS[1]], t.edit(by=dose))[0] for dose in doses]
    yield "a batch of five doses = five runs, 32 tokens", _same(batch, apart)


def _leaving(t: _Trial) -> Iterator[tuple[str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        edits = sae.Edits((t.edit(do="add", by=30.0, where=ALL),))
        edits.save(place / "edits.yaml")
        yield (
            "edits, a file, edits: the digest",
            _same(sae.Edits.read(place / "edits.yaml").digest, edits.digest),
        )
        file = str(place / "edits.yaml")
        sae.edit_bake(file=file, out=str(place / "baked"))
        baked = sae.model(str(place / "baked"), bos_token=EMBEDDED["smollm2"].bos_token)
        with torch.inference_mode():
            found = baked.module(t.ids, use_cache=False).logits
        yield "adding with hooks = baked weights", _difference(found, t.logits(*edits.records))
        sae.edit_export(file=file, out=str(place / "edits.gguf"))
        (tensor,) = GGUFReader(place / "edits.gguf").tensors
        added = (30 * t.dictionary.W_dec[t.active[0]]).numpy()
        yield (
            "the control vector read back",
            "the same" if np.array_equal(tensor.data, added) else "NOT the same",
        )
        sae.edit_check(file=file, out=str(place / "pinned.yaml"))
        text = (place / "pinned.yaml").read_text()
        other = text.replace(t.dictionary.digest, "f" * len(t.dictionary.digest))
        (place / "other.yaml").write_text(other)
        yield "another dictionary's digest", _refused(lambda: t.m.planned(place / "other.yaml"))
        model = {"model": "smollm2", "model_digest": "0" * 16}
        foreign = sae.Edits(edits.records, **model)
        yield "another model's digest", _refused(lambda: t.m.planned(foreign))


def _refused(plan: Callable[[], object]) -> str:
    try:
        plan()
    except UserError:
        return "refused"
    return "NOT refused"


def _n_hooks(m: sae.Model) -> int:
    return sum(
        len(part._forward_hooks) + len(part._forward_pre_hooks) for part in m.module.modules()
    )


def main() -> None:
    """Write `results/edit_invariants.md`."""
    m = sae.model("smollm2")
    rows = [
        {"dictionary": name, "what has to hold": what, "found": found}
        for name, folder in dictionaries().items()
        for what, found in _rows(_Trial(m, folder))
    ]
    title = "Invariants of edits on SmolLM2-135M, float32"
    write_results("edit_invariants", title, rows)


if __name__ == "__main__":
    main()
