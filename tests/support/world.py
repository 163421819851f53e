"""A tiny world for the tests: random models, texts, dictionaries and caches, all made here."""

import random
from pathlib import Path

HOOK = "blocks.1.hook_resid_post"


WORDS = (
    "the river ran past old mill where she kept seven grey cats and one very small dog that "
    "never barked at night while rain fell on roof tiles red as autumn leaves because winter "
    "was late this year people said it would snow before morning but nobody believed them"
).split()


def sentences(n: int, seed: int = 0, words: int = 24) -> list[str]:
    """`n` different documents of about `words` words."""
    draw = random.Random(seed)
    return [
        f"Note {seed}-{i}: " + " ".join(draw.choice(WORDS) for _ in range(words)) + "."
        for i in range(n)
    ]


def save_tiny_model(family: str, folder: Path, tokenizer_folder: Path, seed: int = 0) -> Path:
    """A random model of three layers and width 32, with the tokenizer beside it."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        GPT2Config,
        GPTNeoXConfig,
        LlamaConfig,
    )

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    common = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 1}
    sizes = {
        "num_hidden_layers": 3,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
    }
    config = {
        "llama": lambda: LlamaConfig(**common, **sizes, num_key_value_heads=2),
        "gpt_neox": lambda: GPTNeoXConfig(**common, **sizes),
        "gpt2": lambda: GPT2Config(**common, n_layer=3, n_embd=32, n_head=4, n_positions=128),
    }[family]()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        # Random weights of the usual size make a model that hardly reacts to its input.
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def random_dictionary(
    architecture: str = "standard",
    *,
    d_in: int = 32,
    d_sae: int = 48,
    d_out: int | None = None,
    skip: bool = False,
    **metadata: object,
):
    """Random weights, all tensors of the activation; with `d_out` a transcoder.

    Args:
        metadata: what a file would say of it, such as `hook_name` and `model_name`.
    """
    import torch

    from sae.dictionary import Gated, JumpReLU, ReLU, TopK
    from sae.dictionary.metadata import dictionary_of

    draw = torch.Generator().manual_seed(len(architecture))
    width = d_in if d_out is None else d_out
    activations = {
        "standard": ReLU,
        "jumprelu": lambda: JumpReLU(torch.rand(d_sae, generator=draw)),
        "topk": lambda: TopK(7),
        "gated": lambda: Gated(
            torch.randn(d_sae, generator=draw), 0.3 * torch.randn(d_sae, generator=draw)
        ),
    }
    weights = {
        "W_enc": torch.randn(d_in, d_sae, generator=draw) / d_in**0.5,
        "b_enc": torch.randn(d_sae, generator=draw),
        "W_dec": torch.randn(d_sae, width, generator=draw) / d_sae**0.5,
        "b_dec": torch.randn(width, generator=draw),
    }
    activation = activations[architecture]()
    if skip:
        weights["W_skip"] = torch.randn(width, d_in, generator=draw) / d_in**0.5
    return dictionary_of(weights, activation, Path("random"), metadata)


def with_metadata(dictionary, metadata: dict[str, object]):
    """The dictionary as a file with this metadata would have it."""
    from sae.dictionary.metadata import dictionary_of

    return dictionary_of(dictionary.tensors, dictionary.activation, Path("made"), metadata)


def training_json(**changes: object) -> dict[str, object]:
    """What `sae_atlas` says of a dictionary that was trained here, with changes."""
    record: dict[str, object] = {
        "versions": {"sae-atlas": "1"},
        "training_tokens": 1000,
        "data": {"name": "text"},
        "architecture": "topk",
        "sae": {"k": 7},
        "optim": {"lr": 1e-3},
        "train_batch_size_tokens": 10,
        "max_norm_multiple": 10.0,
        "seed": 0,
        "digest": "0" * 16,
        "identity": {"training_tokens": 1000},
    }
    return record | changes


def cache_of(path: Path, tokens, held_out, activations, *, special=(0,), **settings):
    """A finished cache of given tokens (sequence, position) and activations by hook."""
    import numpy as np

    from sae.cache.create import create_cache
    from sae.cache.layout import open_cache
    from sae.cache.text_writer import write_text
    from sae.models.site import Site
    from sae.text.packing import RowBlock, TextPlan

    n_training = int((~held_out).sum())
    plan = TextPlan(n_training, len(tokens) - n_training, tokens.shape[1])
    about = {"digest": path.name, "special_token_ids": list(special), "data": {"name": "made"}}
    model = {"name": "made", "weight_digest": "made", "dtype": "float32"}
    about |= {"model": model, "tokenizer_digest": "made"}
    shapes = [Site(name, name, "output", x.shape[2]) for name, x in activations.items()]
    settings = {"dtype": "float32"} | settings
    writer = create_cache(path, shapes, plan, attributes=about, **settings)
    documents = np.zeros_like(tokens)
    blocks = [
        RowBlock(side, tokens[held_out == side], documents[held_out == side])
        for side in (False, True)
    ]
    write_text(writer, blocks, lambda: np.array([7], dtype=np.uint64))
    for chunk in writer.chunks():
        writer.write(chunk, {name: x[chunk] for name, x in activations.items()})
    writer.finish()
    return open_cache(path)


def harvest_settings(run: Path, model: Path, text: Path) -> dict:
    """Keyword arguments of a small harvest: 8,192 tokens in 256 rows of 32."""
    from sae import DataConfig, ModelConfig

    return {
        "run": str(run),
        "model": ModelConfig(name=str(model)),
        "data": DataConfig(name=str(text)),
        "hook_names": [HOOK],
        "n_tokens": 8192,
        "context_size": 32,
    }
