"""A tiny world for the tests: random models, a tokenizer and texts, all made here."""

import json
import multiprocessing
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jaxtyping import install_import_hook
from support.world import harvest_settings, save_tiny_model, sentences

_PLUGINS = ("browser", "commands", "dashboards", "encoders")
pytest_plugins = [f"support.{name}" for name in _PLUGINS]

# A shell that starts the tests in the background has Ctrl-C ignored, and `nohup` that the
# terminal is closed; some of them send it.
for _ignored, _usual in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_ignored) == signal.SIG_IGN:
        signal.signal(_ignored, _usual)

# One thread in every process, said before anything imports torch: what is small is faster so,
# processes do not wait for each other, and all of them add in the same order.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "passive"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")


# Every shape written on a function of the core is checked at every call of the tests. Modules
# of kernels are left out: what compiles them cannot read decorated functions.
_CORE = ("bootstrap", "effects", "fidelity", "losses", "nulls", "scaling", "select", "sparse")
install_import_hook(
    [
        *(f"sae.core.{name}" for name in _CORE),
        "sae.dictionary.activations",
        "sae.edits",
    ],
    "beartype.beartype",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Pages of `docs/` that tests make are compared with what is there, or written anew."""
    parser.addoption("--write-pages", action="store_true", help="write the pages of docs/ anew")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with what takes minutes: nobody waits for it in the end."""
    items.sort(key=lambda item: item.get_closest_marker("longest") is None)


@pytest.fixture
def check_page(request: pytest.FixtureRequest) -> Callable[[Path, str], None]:
    """Compares a page of `docs/` with what it should be; with --write-pages it is written."""

    def check(page: Path, text: str) -> None:
        if request.config.getoption("--write-pages"):
            page.write_text(text, encoding="utf-8")
        folder = Path(request.node.fspath).parent.relative_to(request.config.rootpath)
        again = f"run: pytest --write-pages {folder}"
        assert page.read_text(encoding="utf-8") == text, again

    return check


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
            "sae.commands.train",
            "sae.config.launch",
            "datasets",
            "matplotlib.figure",
            "sklearn.linear_model",
            "umap",
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


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Kernels share rows out among threads, as they do for users."""
    import torch

    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)
