"""Results of steering to test the page with: made up, but in the form of real ones."""

from typing import Any

from support.atlas_samples import HOSTILE

MAX_COST = 0.05
DOSES = [-2.0, -1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 2.0]
OPERATING = 0.5
PROMPTS = ["I went for a walk and", "She opened the letter:"]
TITLES = {
    "feature": "This feature",
    "unsteered": "Unsteered",
    "prompt": "Plain prompt",
    "difference_of_means": "Difference of means",
    "wrong_sign": "Wrong sign",
    "random_direction": "Random direction",
    "random_feature": "Random feature",
    "reconstruction": "Reconstruction only",
}
_PULL = {
    "feature": 2.4,
    "prompt": 2.9,
    "difference_of_means": 2.0,
    "random_direction": 0.1,
    "random_feature": 0.2,
    "reconstruction": -0.05,
}
"""Shift at strength one, or of what has no strength."""
_PRICE = {
    "feature": 0.16,
    "prompt": 0.021,
    "difference_of_means": 0.17,
    "random_direction": 0.15,
    "random_feature": 0.19,
    "reconstruction": 0.034,
}
"""Cost at strength one, where it grows as the square of the strength."""
_OF_TEXT = ("round_trip", "perplexity", "distinct_2", "longest_repeat")


def interval(mean: float, half: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def figures(direction: str, strength: float | None, *, written: bool = True) -> dict[str, Any]:
    dose = 1.0 if strength is None else strength
    shift = _PULL[direction] * dose
    kl = _PRICE[direction] * dose**2
    found: dict[str, Any] = {
        "shift": interval(shift, 0.12 + 0.2 * abs(shift)),
        "gain": interval(0.1 * shift, 0.02 + 0.03 * abs(shift)),
        "kl": {"mean": kl, "low": 0.85 * kl, "high": 1.2 * kl},
        "delta_ce": interval(0.9 * kl, 0.02 + 0.2 * kl),
        "round_trip": interval(max(0.012, 0.2 * shift), 0.01 + 0.03 * max(0.0, shift)),
        "perplexity": interval(9 + 20 * kl, 1.5),
        "distinct_2": interval(max(0.2, 0.93 - 0.4 * kl), 0.04),
        "longest_repeat": interval(2 + 5 * kl, 0.6),
    }
    return found if written else found | dict.fromkeys(_OF_TEXT)


def measurement(
    direction: str,
    strength: float | None,
    *,
    like: str = "",
    operating: bool = True,
    written: bool = True,
) -> dict[str, Any]:
    about = {"direction": direction, "strength": strength, "operating": operating}
    return about | figures(like or direction, strength, written=written)


def measurements(operating: float | None) -> list[dict[str, Any]]:
    """Return what each arm gives; texts are written at every other dose alone."""
    swept = [("feature", DOSES)]
    positive = [dose for dose in DOSES if dose > 0]
    others = ("difference_of_means", "random_direction", "random_feature")
    swept += [(direction, positive) for direction in others]
    found = [
        measurement(
            direction,
            dose,
            operating=dose == operating,
            written=dose == operating or dose in DOSES[::2],
        )
        for direction, doses in swept
        for dose in doses
    ]
    if operating is not None:
        found.append(measurement("wrong_sign", -operating, like="feature"))
    return [*found, measurement("prompt", None), measurement("reconstruction", None)]


def samples(operating: float | None, text: str) -> list[dict[str, Any]]:
    arms: list[tuple[str, float | None]] = [("prompt", None), ("reconstruction", None)]
    for direction in ("feature", "random_direction"):
        arms += [(direction, dose) for dose in (-2.0, -0.5, 0.0, 0.5, 1.0, 2.0)]
    if operating is not None:
        arms += [("wrong_sign", -operating)]
        arms += [(one, operating) for one in ("difference_of_means", "random_feature")]
    told = "saw a cat asleep on the wall. " * 3
    return [
        {
            "prompt": prompt,
            "direction": direction,
            "strength": strength,
            "text": f"{prompt} {told}{text}",
        }
        for prompt in PROMPTS
        for direction, strength in arms
    ]


def checks(text: str) -> list[dict[str, Any]]:
    return [
        {
            "name": "reworded",
            "title": "Other wordings",
            "shift": interval(1.0, 0.4),
            "kept": 0.83,
            "holds": True,
            "told": "Under five other wordings of the prompts 83% of the shift is left.",
        },
        {
            "name": "chat",
            "title": "Chat template",
            "shift": None,
            "kept": None,
            "holds": None,
            "told": f"The tokenizer has no chat template. {text}",
        },
        {
            "name": "contrary",
            "title": "Contrary instruction",
            "shift": interval(0.1, 0.4),
            "kept": 0.08,
            "holds": False,
            "told": "Asked to write of something else, it does: 8% of the shift is left.",
        },
    ]


def steered_feature(
    feature: int, operating: float | None = OPERATING, text: str = ""
) -> dict[str, Any]:
    null = {"n": 32, "direction_z": 5.1, "direction_p": 0.0303}
    null |= {"feature_z": 3.2, "feature_p": 0.0606}
    told = (
        "The strongest dose whose cost on the choosing prompts stays under 0.05 nats a token."
        if operating is not None
        else f"Every dose that moves the text costs more than 0.05 nats a token. {text}"
    )
    return {
        "criterion": f"The clearest of the features. {text}",
        "feature": feature,
        "top_tokens": [" cat", " kitten", f" {text or 'paw'}"],
        "max_activation": 21.0,
        "norm_at_strength_one": 21.0,
        "prompts": {"choosing": ["The most important thing is"], "reporting": PROMPTS},
        "max_cost": MAX_COST,
        "operating_strength": operating,
        "told": told.strip(),
        "null": null if operating is not None else None,
        "curve": {
            "monotonicity": 0.98,
            "half_effect_strength": 0.4,
            "asymmetry": 0.3,
            "break_strength": 2.0 if operating is not None else None,
        },
        "measurements": measurements(operating),
        "checks": checks(text),
        "samples": samples(operating, text),
    }


def summary(text: str) -> dict[str, Any]:
    def arm(direction: str) -> dict[str, Any]:
        like, dose = direction, OPERATING
        if direction in ("wrong_sign", "unsteered"):
            like, dose = "feature", -OPERATING if direction == "wrong_sign" else 0.0
        strength = None if direction in ("prompt", "reconstruction") else dose
        about = {"direction": direction, "title": TITLES[direction], "n_features": 2}
        return about | {"figures": figures(like, strength)}

    tally = {"prompt": (0, 2, 0), "difference_of_means": (0, 0, 2), "wrong_sign": (2, 0, 0)}
    comparison = [
        {
            "baseline": direction,
            "title": title,
            **dict(
                zip(
                    ("wins", "losses", "undecided"),
                    tally.get(direction, (1, 0, 1)),
                    strict=True,
                )
            ),
            "difference": interval(
                _PULL["feature"] * 0.1 - _PULL.get(direction, 0) * 0.1, 0.08
            ),
        }
        for direction, title in TITLES.items()
        if direction not in ("feature", "unsteered")
    ]
    return {
        "headline": (
            "Of 3 features, steering beats the plain prompt on 0 and loses to it on 2 (1 has "
            "no operating point); it beats a random direction on 1 and cannot be told from it "
            f"on 1. {text}"
        ),
        "read_back": "By how strongly the feature is found in the written text: 0 : 1.",
        "max_cost": MAX_COST,
        "measure": "round_trip",
        "n_features": 3,
        "n_without_operating_point": 1,
        "comparison": comparison,
        "arms": [arm(direction) for direction in TITLES],
    }


def vocabulary_task(text: str) -> dict[str, Any]:
    return {
        "arms": [
            {"title": "The model as it is", "figures": {"share_kept": 0.12, "perplexity": 9.1}},
            {
                "title": f"Steered {text}",
                "figures": {"share_kept": interval(0.8, 0.1), "perplexity": None},
            },
        ]
    }


def sample_steering(text: str = HOSTILE, *, vocabulary: bool = False) -> dict[str, Any]:
    """Return what a report has under `steering`, with `text` wherever text comes from data.

    The last of its features has no operating point.
    """
    return {
        "summary": summary(text),
        "features": [
            steered_feature(1, text=text),
            steered_feature(412, text=text),
            steered_feature(7, None, text=text),
        ],
        "vocabulary": vocabulary_task(text) if vocabulary else None,
    }
