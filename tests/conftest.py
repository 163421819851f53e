"""A tiny world for the tests: random models, a tokenizer and texts, all made here."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# A shell that starts the tests in the background has Ctrl-C ignored; some of them send it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")

from jaxtyping import install_import_hook

# Every shape written on a function of the core is checked at every call of the tests. Modules
# of kernels are left out: what compiles them cannot read decorated functions.
_CORE = ("losses", "metrics", "scaling", "select", "sparse")
install_import_hook(
    [*(f"sae.core.{name}" for name in _CORE), "sae.dictionary"], "beartype.beartype"
)

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


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer whose beginning token has id 0."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(sentences(200), trainer)
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    ).save_pretrained(folder)
    return folder


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


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A Llama of width 32 in a folder."""
    return save_tiny_model("llama", tmp_path_factory.mktemp("llama"), tokenizer_folder)


@pytest.fixture(scope="module")
def lens_folder(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path
) -> Iterator[Path]:
    """The tiny Llama in a folder that TransformerLens's `HookedTransformer` loads by its path.

    It reads local folders, but looks every name up in its list first, and takes a folder whose
    path has the name of a family for one of its list.
    """
    loading = pytest.importorskip("transformer_lens.loading_from_pretrained")
    listed = loading.get_official_model_name

    def or_a_path(name: str) -> str:
        return name if Path(name).is_dir() else listed(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "get_official_model_name", or_a_path)
        yield save_tiny_model("llama", tmp_path_factory.mktemp("lm"), tokenizer_folder)


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 300 documents as JSONL."""
    folder = tmp_path_factory.mktemp("text")
    lines = [json.dumps({"text": text}) for text in sentences(300, seed=1)]
    (folder / "notes.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def random_dictionary(
    architecture: str = "standard",
    *,
    d_in: int = 32,
    d_sae: int = 48,
    d_out: int | None = None,
    skip: bool = False,
    **metadata: str,
):
    """Random weights, all fields of the architecture; with `d_out` a transcoder."""
    import torch

    from sae.dictionary import ARCHITECTURES, Dictionary

    draw = torch.Generator().manual_seed(len(architecture))
    width = d_in if d_out is None else d_out
    fields = {
        "threshold": lambda: torch.rand(d_sae, generator=draw),
        "k": lambda: 7,
        "b_mag": lambda: torch.randn(d_sae, generator=draw),
        "r_mag": lambda: 0.3 * torch.randn(d_sae, generator=draw),
    }
    return Dictionary(
        torch.randn(d_in, d_sae, generator=draw) / d_in**0.5,
        torch.randn(d_sae, generator=draw),
        torch.randn(d_sae, width, generator=draw) / d_sae**0.5,
        torch.randn(width, generator=draw),
        architecture,
        metadata,
        **{name: fields[name]() for name in ARCHITECTURES[architecture].fields},
        W_skip=torch.randn(width, d_in, generator=draw) / d_in**0.5 if skip else None,
    )


HOOK = "blocks.1.hook_resid_post"


def cache_of(path: Path, tokens, held_out, activations, *, special=(0,), **settings):
    """A finished cache of given tokens (sequence, position) and activations by hook."""
    import numpy as np

    from sae.cache.create import create_cache
    from sae.cache.layout import open_cache
    from sae.cache.text_writer import write_text
    from sae.cache.writer import HookShape
    from sae.text.packing import RowBlock, TextPlan

    n_training = int((~held_out).sum())
    plan = TextPlan(n_training, len(tokens) - n_training, tokens.shape[1])
    about = {"digest": path.name, "special_token_ids": list(special), "data": {"name": "made"}}
    about |= {"model": {"weight_digest": "made"}, "tokenizer_digest": "made"}
    shapes = [HookShape(name, name, x.shape[2]) for name, x in activations.items()]
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


@pytest.fixture(scope="session")
def tiny_run(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_text: Path
) -> Path:
    """A run with a cache and two dictionaries, `weak` and `strong`; not to be changed."""
    import sae

    run = tmp_path_factory.mktemp("runs") / "tiny"
    sae.harvest(**harvest_settings(run, tiny_model, tiny_text))
    for name, coefficient in (("weak", 0.5), ("strong", 2.0)):
        sae.train(
            run=str(run),
            name=name,
            sae=sae.StandardConfig(d_sae=64, l1_coefficient=coefficient),
            training_tokens=40_000,
            train_batch_size_tokens=256,
        )
    return run


@pytest.fixture(scope="session")
def processes() -> multiprocessing.context.ForkServerContext:
    """Starts processes that have imported everything, in a moment."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "sae.stages.sweep",
            "sae.schemas.grids",
            "datasets",
            "transformers.models.llama.modeling_llama",
        ]
    )
    return context


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a disk of so many bytes, or changes its size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size: int) -> Path:
        again = "remount," if folder.is_mount() else ""
        words = ["mount", "-t", "tmpfs", "-o", f"{again}size={size}", "tmpfs", str(folder)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Sums are taken in the same order as in child processes; small matrices are faster too."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
