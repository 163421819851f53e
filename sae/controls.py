"""Controls: what a dictionary has to be better than before a figure of it means anything.

A dictionary with a random decoder scores nearly like a trained one on labels, probing and
editing (Korznikov et al., arXiv 2602.14111), and so do dictionaries of models that were never
trained (Heap et al., arXiv 2501.17727). `sae train control=[...]` trains such controls beside
a dictionary; wherever figures are shown, theirs stand next to those of the dictionary.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Control:
    """One kind of control."""

    kind: str
    """Kind of the control, named as in `control=[...]`."""
    title: str
    meaning: str
    """What it is, as a phrase that a newcomer understands."""
    frozen: str = "none"
    """What `sae.frozen` keeps at random first directions."""

    def named(self, dictionary: str) -> str:
        """Return the name of the control of a dictionary of that name."""
        return f"{dictionary}-{self.kind.replace('_', '-')}"


CONTROLS = {
    control.kind: control
    for control in (
        Control(
            kind="frozen_decoder",
            title="frozen decoder",
            meaning="the same training, but its decoder keeps random directions",
            frozen="decoder",
        ),
        Control(
            kind="soft_frozen",
            title="softly frozen decoder",
            meaning="the same training, but decoder directions stay within a cosine of 0.8 of "
            "random ones",
            frozen="decoder_softly",
        ),
        Control(
            kind="frozen_encoder",
            title="frozen encoder",
            meaning="the same training, but its encoder keeps random directions",
            frozen="encoder",
        ),
        Control(
            kind="random_model",
            title="random model",
            meaning="the same training, on a model whose weights were drawn at random",
        ),
    )
}
"""By kind, in the order in which they are shown."""
