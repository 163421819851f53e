"""Atlases to look at and to test the page with: made up, but in the form of real ones."""

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from support.figures import compared, made_figures

from sae.atlas import AtlasRecord
from sae.atlas.labels import Labels
from sae.atlas.schema import CONTEXTS, DIALS, FEATURES
from sae.pages.site import write_site

HOSTILE = "</script><script>document.title='broken'</script><img src=x onerror=alert(1)>\u2028"
BROKEN = "caf\ufffd \ufffd\u202e\x00\u200b"
"""Broken UTF-8 as a decoder leaves it, marks that turn writing round."""
HALF = "half a pair \ud83d"

_TOPICS = """cat kitten purr whisker paw feline meow tabby
theorem lemma proof axiom corollary induction algebra geometry
river lake stream water flood bank current delta
copper iron steel alloy metal bronze forge ore
violin cello orchestra sonata music string bow concert
harbour ship sail port anchor vessel captain tide
bread flour oven dough baker yeast crust loaf
court judge verdict appeal jury trial lawyer guilty
doctor patient nurse hospital dose clinic surgery symptom
return function print variable loop string class import
Monday Tuesday Wednesday Thursday Friday Saturday Sunday week
market stock price share trade investor profit bank
king queen throne crown prince palace royal reign
snow winter ice cold frost blizzard freeze sleet
goal match team score player coach league season
war army soldier battle general troops siege defeat"""
TOPICS = [line.split() for line in _TOPICS.splitlines()]
_FILL = "the of and to in a is that it was for on are with as at be this from or by not".split()
_N_BANDS = 5
N_NULLS = 24
VERDICTS = ("dial", "weak", "none")

Columns = dict[str, list[Any]]


def write_sample(
    folder: Path,
    n: int = 200,
    *,
    described: int | None = None,
    hostile: bool = False,
    logits: bool = True,
    dials: bool = True,
    stability: bool = True,
    alive: bool = True,
    pareto: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Write a page of `n` features; returns its `index.html`.

    Feature 5 and every thirteenth after it are dead, feature 7 is labelled by hand. Of the
    others every fourth is a dial, the next one a weak one, the next none, and one not scored.

    Args:
        described: how many features have contexts; making them takes time.
        hostile: whether labels, tokens and names are such as a bad data set has.
        logits: whether the decoder writes into the stream.
        stability: whether another seed of the training was compared with.
        dials: whether features were scored by what they do to the output.
        alive: whether any feature fired.
        changes: to the record.
    """
    chance = random.Random(0)
    dead = [not alive or f % 13 == 5 for f in range(n)]
    topics = [chance.randrange(len(TOPICS)) for _ in range(n)]
    features = feature_columns(chance, topics, dead, hostile=hostile, logits=logits)
    counts: dict[str, Any] = {}
    if dials:
        features |= dial_columns(features["max_activation"])
        counts = dial_counts(features["dial_verdict"])
    if stability:
        features["stability"] = sample_stability(dead)
        counts |= {"stability_of": "seed-43", "stability_mean": 0.55, "stability_floor": 0.37}
    nasty = [HOSTILE, BROKEN] if hostile else []
    rows = [
        row
        for f in range(n if described is None else described)
        for row in context_rows(f, TOPICS[topics[f]], nasty, features["max_activation"][f])
    ]
    record = sample_record(n, sum(dead), **(counts | changes))
    labels = Labels.all_automatic(list(features["label"]))
    if hostile:
        record = replace(record, data=HOSTILE, dictionary=HOSTILE)
        labels.automatic[3:5] = labels.label[3:5] = [HOSTILE, HALF]
    if n > 7:
        labels.label[7] = "my own words for it"
        labels.explanation[7] = "Fires where somebody wrote about it."
    write_site(folder, *sample_tables(features, rows), record, labels, pareto)
    return folder / "index.html"


def sample_tables(columns: Columns, rows: list[dict[str, Any]]) -> tuple[Any, Any]:
    """Features and contexts as tables like real ones."""
    contexts = {name: [row[name] for row in rows] for name in CONTEXTS.required}
    return FEATURES.table(columns), CONTEXTS.table(contexts)


def sample_record(n: int, n_dead: int, **changes: Any) -> AtlasRecord:
    record = AtlasRecord(
        digest="0123456789abcdef",
        dictionary="batchtopk-2304-k32",
        architecture="jumprelu",
        model_name="HuggingFaceTB/SmolLM2-135M-Instruct",
        hook_name="blocks.9.hook_resid_post",
        d_in=576,
        d_sae=n,
        n_rows=448_000,
        n_sequences=3528,
        context_size=128,
        n_documents=3000,
        n_dead=n_dead,
        n_bands=_N_BANDS,
        context_radius=16,
        n_contexts=10,
        data="miscellany",
    )
    return replace(record, **changes)


def sample_pareto() -> dict[str, Any]:
    """Five dictionaries of a sweep; the atlas is of the third, the fourth is recommended."""
    figures = [
        made_figures(
            f"batchtopk-2304-k{k}",
            k * 0.98,
            0.55 + 0.09 * doublings,
            training_architecture="batchtopk",
            k=k,
            d_sae=2304,
            ce_loss_score=0.8 + 0.04 * doublings,
            dead_fraction=0.08 - 0.01 * doublings,
        )
        for doublings, k in enumerate((8, 16, 32, 64, 128))
    ]
    return compared(*figures, max_l0=70).for_page(current=figures[2].id)


def feature_columns(
    chance: random.Random, topics: list[int], dead: list[bool], *, hostile: bool, logits: bool
) -> Columns:
    """The columns of `features.parquet`."""
    n = len(topics)
    density = [0.0 if d else min(0.4, 10 ** chance.gauss(-2.9, 0.6)) for d in dead]
    maxima = [0.0 if d else chance.lognormvariate(2.2, 0.5) for d in dead]
    fired = [round(448_000 * value) for value in density]
    label = [", ".join(chance.sample(TOPICS[topic], 3)) for topic in topics]
    # One list for all: what the features fire on is told by their contexts.
    nasty = [HOSTILE, BROKEN] if hostile else []
    tokens = [
        [] if d else [f" {w}" for w in TOPICS[t][:6]] + nasty
        for t, d in zip(topics, dead, strict=True)
    ]
    by_topic: dict[int, list[int]] = {}
    for f, topic in enumerate(topics):
        by_topic.setdefault(topic, []).append(f)
    kin = [chance.sample(by_topic[t], min(11, len(by_topic[t]))) for t in topics]
    kin = [[other for other in some if other != f][:10] for f, some in enumerate(kin)]
    falling = [0.92 * 0.86**i for i in range(10)]
    near = [falling[: len(some)] for some in kin]
    some = [[] if d else own for own, d in zip(kin, dead, strict=True)]
    columns: Columns = {
        "feature": list(range(n)),
        "label": ["dead" if d else text for d, text in zip(dead, label, strict=True)],
        "density": density,
        "n_active": fired,
        "max_activation": maxima,
        "mean_activation": [value / 3 for value in maxima],
        "std_activation": [value / 4 for value in maxima],
        "decoder_norm": [1.0] * n,
        "encoder_norm": [chance.uniform(0.5, 2) for _ in range(n)],
        "histogram": [_falling(chance, 0 if d else 50, 9) for d in dead],
        "positions": [_falling(chance, 0 if d else 10, chance.uniform(4, 60)) for d in dead],
        "n_documents": [round(3000 * value**0.5) for value in density],
        "top_document_share": [0.0 if d else chance.uniform(0.01, 0.4) for d in dead],
        "top_token_ids": [list(range(len(own))) for own in tokens],
        "top_tokens": tokens,
        "top_token_counts": [[round(900 * 0.6**i) for i in range(len(own))] for own in tokens],
        "top_token_rates": [[0.9 * 0.8**i for i in range(len(own))] for own in tokens],
        "neighbours": kin,
        "neighbour_cosines": near,
        "correlated": some,
        "correlations": [[0.7 * value for value in falling[: len(own)]] for own in some],
        "coactive": some,
        "coactive_counts": [[round(900 * v) for v in falling[: len(own)]] for own in some],
        "coactive_jaccard": [[0.4 * value for value in falling[: len(own)]] for own in some],
        **_places(chance, topics),
    }
    return columns | (_logits(chance, topics, nasty) if logits else {})


def _falling(chance: random.Random, n: int, slope: float) -> list[int]:
    """Counts that fall; of a dead feature all are zero, and as many as the histogram has."""
    size = n or (50 if slope == 9 else 10)
    return [
        round(4000 * 2.7 ** (-i / slope) * chance.uniform(0.7, 1.1)) * (n > 0)
        for i in range(size)
    ]


def _logits(chance: random.Random, topics: list[int], nasty: list[str]) -> Columns:
    top = [[f" {word}" for word in TOPICS[topic]] + nasty for topic in topics]
    n = len(topics)
    return {
        "top_logit_tokens": top,
        "top_logit_ids": [list(range(len(own))) for own in top],
        "top_logits": [[2.4 * 0.9**i for i in range(len(own))] for own in top],
        "bottom_logit_tokens": [[f" {word}" for word in _FILL[:10]]] * n,
        "bottom_logit_ids": [list(range(10))] * n,
        "bottom_logits": [[-1.5 * 0.9**i for i in range(10)]] * n,
        "logit_sharpness": [chance.uniform(2, 9) for _ in topics],
        "logit_agreement": [chance.random() ** 2 for _ in topics],
    }


def dial_columns(maxima: list[float]) -> Columns:
    """What features do to the output, for three live ones of four: a dial, a weak one, none."""
    chance = random.Random(1)
    names = [column.name for column in FEATURES.columns.values() if column.group == DIALS]
    rows = [
        dict.fromkeys(names, math.nan) | {"dial_verdict": ""}
        if not most or f % 4 == 3
        else _scores(chance, VERDICTS[f % 4], most)
        for f, most in enumerate(maxima)
    ]
    return {name: [row[name] for row in rows] for name in names}


def sample_stability(dead: list[bool]) -> list[float | None]:
    """From 0.1 to 0.99, the same at every run; none of what is dead."""
    return [None if d else round(0.1 + (f * 37 % 90) / 100, 2) for f, d in enumerate(dead)]


def sample_dial(feature: int) -> dict[str, Any]:
    """What a sample says that a feature does to the output."""
    columns = dial_columns([float(f % 13 != 5) for f in range(feature + 1)])
    return {name: values[feature] for name, values in columns.items()}


def _scores(chance: random.Random, verdict: str, most: float) -> dict[str, Any]:
    by_chance = chance.uniform(0.1, 0.4)
    effect = {"dial": chance.uniform(0.7, 1.5), "weak": 0.5, "none": 0.4 * by_chance}
    shift = effect[verdict]
    rise, lowest = shift / 6, 1 / (1 + 2 * N_NULLS)
    cost = chance.uniform(0.03, 0.05)
    row: dict[str, Any] = {
        "dial_verdict": verdict,
        "dial_score": shift,
        "dial_score_null": by_chance,
        "dial_score_p": chance.uniform(0.1, 0.9) if verdict == "none" else lowest,
        "dial_strength": chance.lognormvariate(-0.2, 0.7),
        "dial_rise": rise,
        "dial_rise_null": by_chance / 6,
        "dial_kl": cost,
        "dial_delta_ce": cost / 4,
        "input_score": chance.random(),
        "input_score_feature_mean": 0.02,
        "stated_strength": 12 / most,
    }
    stated = {
        "output_score": 0.004 + 1.7 * rise,
        "token_shift": 11 * rise,
        "confidence_change": -rise / 3,
        "delta_ce": cost / 2,
        "kl": 2 * cost,
    }
    for name, value in stated.items():
        row[name] = value
        for kind, share in (("direction", 0.1), ("feature", 0.2)):
            row[f"{name}_{kind}_mean"] = share * value
            row[f"{name}_{kind}_z"] = chance.gauss(0, 1) + 60 * rise
            row[f"{name}_{kind}_p"] = max(1 / (1 + N_NULLS), chance.random() - 10 * rise)
    return row


def dial_counts(verdicts: list[str]) -> dict[str, Any]:
    """What the record of an atlas says of these verdicts."""
    return {
        "n_scored": sum(verdict != "" for verdict in verdicts),
        "n_dials": verdicts.count("dial"),
        "n_weak_dials": verdicts.count("weak"),
        "stated_dose": 0.25,
        "max_cost": 0.1,
        "median_dial_cost": 0.08,
        "n_nulls": N_NULLS,
    }


def _places(chance: random.Random, topics: list[int]) -> Columns:
    """Islands by topic."""
    centres = [(chance.uniform(0.12, 0.88), chance.uniform(0.12, 0.88)) for _ in TOPICS]

    def near(axis: int) -> list[float]:
        found = (chance.gauss(centres[topic][axis], 0.035) for topic in topics)
        return [min(1.0, max(0.0, value)) for value in found]

    return {"map_x": near(0), "map_y": near(1)}


def context_rows(
    feature: int, words: list[str], nasty: list[str], most: float
) -> list[dict[str, Any]]:
    """The rows of `contexts.parquet` of one feature; a dead one has only silent ones."""
    chance = random.Random(feature)
    firing = [("top", -1, rank, most * 0.985**rank) for rank in range(10)]
    for band in reversed(range(_N_BANDS)):
        for rank in range(3):
            level = most * (band + chance.uniform(0.1, 1)) / _N_BANDS
            firing.append(("band", band, rank, level))
    silent = [("silent", -1, rank, 0.0) for rank in range(4)]
    return [
        _context(chance, feature, (words, nasty), *one)
        for one in (firing + silent if most else silent)
    ]


def _context(
    chance: random.Random,
    feature: int,
    texts: tuple[list[str], list[str]],
    group: str,
    band: int,
    rank: int,
    level: float,
) -> dict[str, Any]:
    words, nasty = texts
    place = chance.randrange(3, 120)
    start, end = max(0, place - 16), min(128, place + 17)
    peak = place - start
    tokens = [
        chance.choice(["\n", ",", "."])
        if chance.random() < 0.12
        else f" {chance.choice(_FILL)}"
        for _ in range(start, end)
    ]
    tokens[peak] = f" {chance.choice(words)}"
    tokens[len(tokens) - len(nasty) :] = nasty
    activations = [0.0] * len(tokens)
    if level:
        activations[peak - 2] = 0.12 * level
        activations[peak + 1] = 0.3 * level
        activations[peak] = level
    return {
        "feature": feature,
        "group": group,
        "band": band,
        "rank": rank,
        "sequence": chance.randrange(3528),
        "position": place,
        "start": start,
        "activation": level,
        "token_ids": list(range(len(tokens))),
        "tokens": tokens,
        "activations": activations,
    }
