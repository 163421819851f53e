"""Results of patching to test the page with: made up, but in the form of real ones."""

import math
import random
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

N_LAYERS, N_HEADS = 30, 9
TOKENS = ["<|im_start|>", "When", " Mary…", " and", " John…", " went", " to", " the", " store…"]
TOKENS += [",", " John…", " gave", " a", " drink", " to"]
DIFFERING = 10
CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
HOOK = "blocks.9.hook_resid_post"
RECEIVER = "blocks.22 head 4, query"
FEATURES = {412: " names that came before", 77: " givers", 1908: None}
SCHEMA = pa.schema(
    [
        ("method", pa.string()),
        ("patch", pa.string()),
        ("site", pa.string()),
        ("receiver", pa.string()),
        ("group", pa.int64()),
        ("layer", pa.int64()),
        ("head", pa.int64()),
        ("position", pa.int64()),
        ("feature", pa.int64()),
        ("effect", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("n", pa.int64()),
    ]
)
_NOISE = {"exact": 0.0, "relp": 0.03, "ig": 0.05, "plain": 0.12}
Place = dict[str, Any]


def sample_patching(text: str = "", n_features: int = 60) -> tuple[dict[str, Any], pa.Table]:
    """Return summary and table of two groups, the second a single pair.

    At layer 20 the residual stream's last position has an effect of 1 exactly, what is before
    the differing token none at all. `text` is added wherever the data is text.
    """
    rng = random.Random(0)
    places = list(_places(text, n_features))
    records = []
    for method, noise in _NOISE.items():
        for patch in ("denoising", "noising"):
            for group in (0, 1):
                for place, effect in places:
                    n = (2 if method == "exact" else 8) if group == 0 else 1
                    found = effect * (1 if patch == "denoising" else 0.8)
                    found += noise * rng.gauss(0, 1) * (effect != 0)
                    half = 0.02 + 0.1 * abs(found)
                    ends = {"low": found - half, "high": found + half} if n > 1 else {}
                    about = {"method": method, "patch": patch, "group": group, "n": n}
                    records.append({**about, **place, "effect": found, **ends})
    columns = {name: [record.get(name) for record in records] for name in SCHEMA.names}
    return _summary(text), pa.table(columns, schema=SCHEMA)


def _places(text: str, n_features: int) -> Iterator[tuple[Place, float]]:
    """All places with the effect that they have in truth."""
    rng = random.Random(1)
    last = len(TOKENS) - 1
    for layer in range(N_LAYERS):
        moved = 1 if layer >= 20 else 1 / (1 + math.exp(-(layer - 16)))
        for position in range(len(TOKENS)):
            stream = {DIFFERING: 1 - moved, last: moved}.get(position, 0.0)
            yield {"site": "residual", "layer": layer, "position": position}, stream
            after = position >= DIFFERING
            for site, width, where in (("attention", 4, last), ("mlp", 30, DIFFERING)):
                bump = 0.5 * math.exp(-((layer - 17) ** 2) / width) * (position == where)
                effect = after * (bump + 0.02 * rng.gauss(0, 1))
                yield {"site": site, "layer": layer, "position": position}, effect
        for head in range(N_HEADS):
            strong = {(18, 3): 0.62, (22, 4): 0.41, (24, 7): -0.48}.get((layer, head), 0.0)
            effect = strong + 0.02 * rng.gauss(0, 1)
            yield {"site": "head", "layer": layer, "head": head}, effect
            if layer < 22:
                path = {"site": "path", "receiver": RECEIVER + text}
                told = 0.3 if (layer, head) == (18, 3) else 0.01 * rng.gauss(0, 1)
                yield {**path, "layer": layer, "head": head}, told
    for position in range(len(TOKENS)):
        both = {DIFFERING: 0.9, last: 0.12}.get(position, 0.0)
        for site, share in (("features", 0.7), ("error", 0.35), ("features+error", 1.0)):
            yield {"site": site, "position": position}, both * share
    for i in range(n_features):
        feature = [*FEATURES, *range(2000, 2000 + n_features)][i]
        yield {"site": "feature", "feature": feature}, 0.4 * (-1) ** i * 0.86**i


def _summary(text: str) -> dict[str, Any]:
    hooks = {"residual": "hook_resid_post", "attention": "hook_attn_out", "mlp": "hook_mlp_out"}
    hook_names = {site: f"blocks.{{layer}}.{name}" for site, name in hooks.items()}
    group = {
        "clean": CLEAN + text,
        "corrupt": CORRUPT + text,
        "answer": " Mary" + text,
        "wrong": " John" + text,
        "tokens": [*TOKENS[:-1], TOKENS[-1] + text],
        "differing": [DIFFERING],
        "clean_difference": 4.2,
        "corrupt_difference": -4.3,
    }
    return {
        "name": "ioi" + text,
        "model": "HuggingFaceTB/SmolLM2-135M-Instruct" + text,
        "folder": "runs/ioi" + text,
        "hook_names": {**hook_names, "head": "blocks.{layer}.attn.hook_z"},
        "n_layers": N_LAYERS,
        "n_heads": N_HEADS,
        "groups": [
            {"group": 0, "n_pairs": 8, "n_exact": 2, **group},
            {"group": 1, "n_pairs": 1, "n_exact": 1, **group},
        ],
        "left_out": [
            {
                "pair": "When Tom and Guinevere went to the store, Tom gave a drink to" + text,
                "why": f"Its prompts have 15 and 17 tokens, so positions do not line up.{text}",
            }
        ],
        "agreement": _agreement(),
        "controls": _controls(),
        "cost": _cost(),
        "dictionary": {
            "name": "topk-32x" + text,
            "hook_name": HOOK + text,
            "labels": {str(i): label + text for i, label in FEATURES.items() if label},
            "atlas": "../atlas/index.html",
        },
    }


def _agreement() -> list[dict[str, Any]]:
    r = {"plain": 0.74, "relp": 0.89, "ig": 0.86, "norm": 0.31}
    return [
        {
            "site": site,
            "patch": patch,
            "method": method,
            "r": value - less,
            "n": 270 if site == "head" else 450,
        }
        for site, less in (("residual", 0.2), ("attention", 0.05), ("mlp", 0.0), ("head", 0.1))
        for patch in ("denoising", "noising")
        for method, value in r.items()
    ]


def _controls() -> list[dict[str, Any]]:
    last = len(TOKENS) - 1
    controls = [
        ("residual", 20, last, None, 1.0, 0.03),
        ("attention", 17, last, None, 0.5, -0.02),
        ("mlp", 17, DIFFERING, None, 0.5, None),
        ("head", 18, None, 3, 0.62, 0.05),
    ]
    names = ("site", "layer", "position", "head", "effect", "control")
    return [{"group": 0} | dict(zip(names, control, strict=True)) for control in controls]


def _cost() -> list[dict[str, Any]]:
    spent = [
        {
            "site": site,
            "patch": patch,
            "n_patched": n,
            "forwards": n * 0.48,
            "naive": n,
            "seconds": n * 0.05,
        }
        for site, n in (("residual", 450), ("attention", 450), ("mlp", 450), ("head", 270))
        for patch in ("denoising", "noising")
    ]
    methods = (("plain", 0.5), ("relp", 0.6), ("ig", 4.1))
    return spent + [{"method": method, "seconds": seconds} for method, seconds in methods]
