"""How near lenses come to SmolLM2's own predictions, layer by layer, on held-out text.

    python -m benchmarks.lenses

A tuned lens is fitted to about 54,000 rows of the mixed text, and judged beside the logit lens
and the mean of the last stream on 2,048 tokens that it was not fitted to.
"""

import shutil
from pathlib import Path

import sae
from benchmarks.common import write_results
from sae.lenses.streams import hook_of

RUN, LAYERS = "runs/lens", (3, 9, 15, 21, 27, 29)
PICTURE = Path("docs/images/lens.png")
TEXT = "The Eiffel Tower is in the middle of Paris, the capital of"


def main() -> None:
    """Fit, judge, and write a line for each layer, and the picture of one text."""
    sae.harvest(run=RUN, hook_names=[hook_of(layer) for layer in LAYERS], n_tokens=61_440)
    found = sae.lens(text=TEXT, run=RUN, name="benchmark", tuned=True)
    judged = found.judged
    assert found.folder is not None
    assert judged is not None
    shutil.copyfile(found.folder / "lens.png", PICTURE)
    floor = judged["floor"]
    rows = [
        {
            "layer": line["layer"],
            "KL of the logit lens": _interval(line["logit"]["kl"]),
            "KL of the tuned lens": _interval(line["tuned"]["kl"]),
            "KL of the mean stream": _interval(floor["kl"]),
            "tuned below logit by": _interval(line["gain"]),
            "same first token, logit": f"{line['logit']['agreement']:.1%}",
            "same first token, tuned": f"{line['tuned']['agreement']:.1%}",
            "same first token, mean": f"{floor['agreement']:.1%}",
            "ridge strength": f"{line['strength']:.0e}",
        }
        for line in judged["layers"]
    ]
    n, m = judged["n_held_out_rows"], judged["n_training_rows"]
    title = f"Lenses of SmolLM2, fitted to {m:,} rows: KL from the model on {n:,} others, nats"
    write_results("lenses", title, rows)


def _interval(found: dict[str, float]) -> str:
    return f"{found['mean']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


if __name__ == "__main__":
    main()
