"""What a model writes after prompts and in conversations, under whatever edits are made."""

from sae.writing.following import check_reads, log_prob_of, next_log_probs
from sae.writing.sampling import (
    Sampling,
    Scores,
    SharedNoise,
    check_length,
    check_writes,
    continued_texts,
    generate,
    prompt_ids,
)
from sae.writing.texts import (
    Ids,
    Written,
    chat_ids,
    checked_prompt_ids,
    write,
    write_beside,
)

__all__ = [
    "Ids",
    "Sampling",
    "Scores",
    "SharedNoise",
    "Written",
    "chat_ids",
    "check_length",
    "check_reads",
    "check_writes",
    "checked_prompt_ids",
    "continued_texts",
    "generate",
    "log_prob_of",
    "next_log_probs",
    "prompt_ids",
    "write",
    "write_beside",
]
