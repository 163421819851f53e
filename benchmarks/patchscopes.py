"""What SmolLM2 says of its own states and of features, beside vectors that mean nothing.

    python -m benchmarks.patchscopes [RUN [forms|states|features]]

The run needs a cache of SmolLM2, and a dictionary with an atlas.
"""

import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import sae
from benchmarks.common import write_results
from sae.atlas import Atlas
from sae.core.nulls import random_directions
from sae.edits import edited
from sae.interactive import Model
from sae.lenses.patchscope import IDENTITY, Question, placed, put, typical_norm
from sae.lenses.patchscope_asked import SCALES, place_of_feature
from sae.models import find_site, read_activations
from sae.run import Run
from sae.writing import generate

N_TOKENS, AT = 50, 24
LAYERS = (0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 29)
PAPER = "cat->cat; 135->135; hello->hello; ?"
THREE = "cat -> cat\n135 -> 135\nhello -> hello\n? ->"
SIX = "cat->cat; 135->135; hello->hello; black->black; shoe->shoe; mean->mean; ?"
FORMS = {
    "own": (
        Question(prompt=THREE),
        Question(),
        Question(prompt="cat = cat; 135 = 135; hello = hello; x =", placeholder="x"),
        Question(prompt=f"{PAPER}->"),
        Question(prompt="cat: cat\n135: 135\nhello: hello\nx:", placeholder="x"),
        Question(prompt="cat cat\n135 135\nhello hello\nx", placeholder="x"),
    ),
    "next": (
        Question(prompt=PAPER),
        Question(prompt=SIX),
        Question(prompt=THREE.removesuffix(" ->")),
        Question(prompt="cat cat\n135 135\nhello hello\nx", placeholder="x"),
    ),
}
"""Prompts that could ask for the token itself, and for the one that comes next."""
TRIED = {"own": (0, 6, 12), "next": (12, 18, 24)}
"""Blocks that they are tried at."""
MEANING = "The meaning of the word ? is"
N_FEATURES = 40
N_WRITTEN = 12


def first_tokens(m: Model, question: Question, hook: str, vectors: Tensor) -> Tensor:
    """Log-probabilities of the first token, with a vector in each of a batch of prompts."""
    found = placed(m.language_model, question)
    prompts = found.ids.expand(max(1, len(vectors)), -1)
    edits = [put(find_site(m.module, hook), found.position, vectors)] if len(vectors) else []
    with torch.inference_mode(), edited(m.module, edits):
        logits = m.module(prompts, use_cache=False, logits_to_keep=1).logits
    last: Tensor = logits[:, -1].float()
    return last.log_softmax(-1)


def told(m: Model, first: Tensor, wanted: Sequence[int]) -> int:
    """How many first tokens are the wanted ones but for case and spaces."""
    both = zip(first.argmax(-1).expand(len(wanted)).tolist(), wanted, strict=True)
    plain = [[m.tokenizer.decode([i]).strip().lower() for i in pair] for pair in both]
    return sum(one == other != "" for one, other in plain)


def read_states(
    m: Model, run: Run, hooks: Sequence[str]
) -> tuple[dict[str, Tensor], list[int], Tensor]:
    """States of a token each of many texts, the tokens, and what is predicted after them."""
    cache = sae.open_cache(str(run.folder / "cache.zarr"))
    ids = torch.from_numpy(cache.tokens[:N_TOKENS, :AT].astype("int64"))
    read = read_activations(m.module, [find_site(m.module, hook) for hook in hooks], ids)
    with torch.inference_mode():
        following = m.module(ids, use_cache=False, logits_to_keep=1).logits[:, -1].argmax(-1)
    return {hook: x[:, -1].float() for hook, x in read.items()}, ids[:, -1].tolist(), following


def stream(layer: int) -> str:
    """Return the hook of what a block returns."""
    return f"blocks.{layer}.hook_resid_post"


def forms(m: Model, run: Run) -> None:
    """Forms of the prompt, each state put where it was read."""
    hooks = [stream(layer) for layer in LAYERS]
    read, own, following = read_states(m, run, hooks)
    rows: list[dict[str, object]] = []
    for asked, wanted in (("own", own), ("next", following.tolist())):
        for question in FORMS[asked]:
            row: dict[str, object] = {"asks for": asked, "prompt": repr(question.prompt)}
            for layer in TRIED[asked]:
                first = first_tokens(m, question, stream(layer), read[stream(layer)])
                row[f"block {layer}"] = told(m, first, wanted)
            rows.append(row)
    title = (
        f"Of {N_TOKENS} states, how many SmolLM2 says its own or the next token of, by prompt"
    )
    write_results("patchscopes_prompts", title, rows)


def states(m: Model, run: Run) -> None:
    """States of the embedded text, each put where it was read."""
    hooks = [stream(layer) for layer in LAYERS]
    read, own, following = read_states(m, run, hooks)
    after = following.tolist()
    identity, paper = Question(), Question(prompt=PAPER)
    rows: list[dict[str, object]] = []
    nothing = torch.zeros(0, 1)
    for hook in hooks:
        mine = read[hook]
        norms = torch.linalg.vector_norm(mine, dim=1, keepdim=True)
        drawn = norms * random_directions(N_TOKENS, mine.shape[1], 0)
        row: dict[str, object] = {"put into its own place": hook}
        for arm, vectors in (("state", mine), ("random", drawn)):
            row[f"says its token, {arm}"] = told(
                m, first_tokens(m, identity, hook, vectors), own
            )
            first = first_tokens(m, paper, hook, vectors)
            row[f"precision@1 of the next, {arm}"] = (
                f"{float((first.argmax(-1) == following).float().mean()):.2f}"
            )
            surprisal = -first.gather(1, following[:, None]).mean()
            row[f"surprisal of the next, {arm}"] = f"{float(surprisal):.1f}"
        rows.append(row)
    plain = first_tokens(m, identity, hooks[0], nothing)
    last = first_tokens(m, paper, hooks[0], nothing).expand(N_TOKENS, -1)
    rows.append(
        {
            "put into its own place": "nothing put anywhere",
            "says its token, state": told(m, plain, own),
            "precision@1 of the next, state": f"{told(m, last, after) / N_TOKENS:.2f}",
            "surprisal of the next, state": (
                f"{float(-last.gather(1, following[:, None]).mean()):.1f}"
            ),
        }
    )
    title = f"What SmolLM2 says of {N_TOKENS} of its states, by the block they are of"
    write_results("patchscopes_states", title, rows)


def words_of(row: dict[str, list[str]]) -> set[str]:
    """Words that a feature promotes or fires on."""
    shown = [*row["top_logit_tokens"][:10], *row["top_tokens"][:10]]
    return {word for token in shown if len(word := token.strip().lower()) >= 3}


def features(m: Model, run: Run) -> None:
    """Directions of features, beside another feature's and random ones."""
    name, dictionary = run.load(None)
    columns = ["feature", "density", "max_activation"]
    columns += ["top_logit_tokens", "top_tokens", "top_logit_ids", "top_token_ids"]
    table = Atlas(run.atlas(name)).feature_table(columns)
    live = [row for row in table.to_pylist() if row["max_activation"] > 0]
    usual = [row for row in live if 1e-4 < row["density"] < 0.05 and words_of(row)]
    chosen = random.Random(0).sample(usual, N_FEATURES)
    directions = dictionary.W_dec[[row["feature"] for row in chosen]].float()
    directions = torch.nn.functional.normalize(directions)
    drawn = random_directions(N_FEATURES, directions.shape[1], 0)
    site = place_of_feature(m.module, dictionary, None)
    tokens = {
        "promoted": [row["top_logit_ids"][:10] for row in chosen],
        "fired on": [row["top_token_ids"][:10] for row in chosen],
    }
    rows: list[dict[str, object]] = []
    for prompt in (IDENTITY, MEANING):
        question = Question(prompt=prompt, max_new_tokens=N_WRITTEN)
        found = placed(m.language_model, question)
        unit = typical_norm(m.language_model, question, site)
        for scale in SCALES:
            vectors = torch.cat([directions, drawn]) * unit * scale
            edit, prompts = (
                put(site, found.position, vectors),
                found.ids.expand(len(vectors), -1),
            )
            written = generate(m.language_model, prompts, [edit], question.sampling)
            said = [
                {*re.findall(r"[\w']+", m.tokenizer.decode(ids).lower())}
                for ids in written.tolist()
            ]
            first = first_tokens(m, question, site.hook_name, vectors)
            own = [words_of(row) for row in chosen]
            shifted = [own[(i + 1) % N_FEATURES] for i in range(N_FEATURES)]
            rows.append(
                {
                    "prompt": repr(prompt),
                    "scale": scale,
                    "its own words": hits(own, said[:N_FEATURES]),
                    "words of another feature": hits(shifted, said[:N_FEATURES]),
                    "its words, random direction": hits(own, said[N_FEATURES:]),
                    **{
                        f"{kind}, {beside}": f"{above(first, ids, other):.2f}"
                        for kind, ids in tokens.items()
                        for beside, other in (("others", 0), ("random", N_FEATURES))
                    },
                }
            )
    title = f"Of {N_FEATURES} features, how often a word of one is in what SmolLM2 writes of it"
    write_results("patchscopes_features", title, rows)


def above(first: Tensor, ids: Sequence[list[int]], other: int) -> float:
    """How often a feature's tokens are likelier first with its direction than with another.

    It is the mean over features and the directions from `other` on; .5 is chance.
    """
    means = torch.stack([first[:, own].mean(1) for own in ids])
    mine = means[:, : len(ids)].diagonal()[:, None]
    wins = (mine > means[:, other : other + len(ids)]).double()
    if other == 0:
        wins.fill_diagonal_(0)
        return float(wins.sum() / (len(ids) * (len(ids) - 1)))
    return float(wins.mean())


def hits(words: Sequence[set[str]], said: Sequence[set[str]]) -> int:
    """Count the texts in which one of their words stands, as a word of its own."""
    return sum(bool(own & text) for own, text in zip(words, said, strict=True))


def main(folder: str = "runs/demo", what: str = "all") -> None:
    """Write the results of forms of the prompt, of states, of features, or of all."""
    run, m = Run.at(Path(folder)), sae.model("smollm2", device="cpu")
    for name, measure in (("forms", forms), ("states", states), ("features", features)):
        if what in ("all", name):
            measure(m, run)


if __name__ == "__main__":
    main(*sys.argv[1:])
