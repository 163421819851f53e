"""A tiny model, a text, and the commands that make every artefact from them, one by one."""

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from pathlib import Path

HOOK = "blocks.1.hook_resid_post"
# Everything heavy is imported once, in the process that all commands are forked from.
PRELOADED = [
    *(f"sae.commands.{name}" for name in ("harvest", "train", "eval", "analyze", "steer")),
    *(f"sae.commands.{name}" for name in ("export", "import_", "cache", "atlas")),
    *("sae.core.cpu_kernels", "sae.core.panel_kernels", "sae.core.row_statistics"),
    *("sae.config.launch", "torch._dynamo", "transformers.models.llama.modeling_llama", "umap"),
]
_SIZE = "512m"


@dataclass(frozen=True, slots=True)
class Stage:
    """A command, and the stages whose artefacts it reads."""

    name: str
    words: str
    reads: tuple[str, ...] = ()


STAGES = (
    Stage("harvest", f"harvest model=model data=text.jsonl hook_names=[{HOOK}] {{small}}"),
    Stage("train", "train sae.d_sae=48 name=one {training}", ("harvest",)),
    Stage("sweep", "train sae.d_sae=32 sae.l1_coefficient=1,3 {training}", ("harvest",)),
    Stage("eval", "eval dictionary=one n_behaviour_tokens=256", ("harvest", "train")),
    Stage("analyze", "analyze dictionary=one", ("harvest", "train")),
    Stage(
        "steer", "steer dictionary=one n_features=1 strengths=[0,1] prompts=[river] {few}",
        ("train", "analyze"),
    ),
    Stage("export", "export dictionary=one", ("train", "eval", "analyze")),
    Stage("import", "import run/export/one run=theirs name=one", ("export",)),
    Stage("cache verify", "cache verify run/cache.zarr", ("harvest",)),
    Stage("cache info", "cache info run/cache.zarr", ("harvest",)),
    Stage("cache sample", "cache sample run/cache.zarr out=sample.zarr n=16", ("harvest",)),
    Stage("cache merge", "cache merge both.zarr run/cache.zarr other/cache.zarr", ("harvest",)),
    Stage("cache export", "cache export run/cache.zarr rows", ("harvest",)),
    Stage("cache import", "cache import rows again.zarr model_name=model", ("cache export",)),
    Stage(
        "atlas export", "atlas export run/atlas/one bulk model_id=m source=1-res-mine",
        ("analyze",),
    ),
    Stage("atlas import", "atlas import bulk run/atlas/two", ("atlas export",)),
    Stage("extend", "train sae.d_sae=48 name=one extend=true {longer}", ("harvest", "train")),
)  # fmt: skip
_WORDS = {
    "small": "n_tokens=4096 context_size=32",
    "training": "training_tokens=24000 train_batch_size_tokens=256 "
    "checkpoint.every_seconds=0.1",
    "longer": "training_tokens=36000 train_batch_size_tokens=256",
    "few": "max_new_tokens=4",
}


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: its status, None where it was killed, and what it said."""

    status: int | None
    said: str
    seconds: float


@dataclass
class World:
    """A folder in which the commands run, always at the same place, and what they make."""

    folder: Path
    processes: ForkServerContext
    stages: tuple[Stage, ...] = STAGES
    states: list[Path] = field(default_factory=list)
    """Copies of the folder: before any command, and after each."""
    seconds: list[float] = field(default_factory=list)
    steady: list[dict[str, str]] = field(default_factory=list)
    """Digests of the files after each command, those that are the same every time."""
    usual: list[set[str]] = field(default_factory=list)
    """All files that were there after each command, undisturbed."""
    mounted: bool = False

    @property
    def work(self) -> Path:
        """Where the commands run."""
        return self.folder / "work"

    def build(self) -> None:
        """Run every command twice undisturbed, and keep each state."""
        self.work.mkdir(parents=True)
        # In memory where that is allowed: a disk of any size can be filled then.
        self.mounted = _mount(self.work)
        make_model(self.work / "model")
        for seed, name in enumerate(("text.jsonl", "other.jsonl")):
            make_text(self.work / name, seed)
        other = f"harvest run=other model=model data=other.jsonl hook_names=[{HOOK}]"
        first = self.run(f"{other} {_WORDS['small']}")
        if first.status:
            raise RuntimeError(first.said)
        self._keep(0)
        for number, stage in enumerate(self.stages, 1):
            found = []
            for _ in range(2):
                self.restore(number - 1)
                ended = self.run_stage(stage)
                if ended.status:
                    raise RuntimeError(f"{stage.name}: {ended.said}")
                found.append(digests(self.work))
            self.seconds.append(ended.seconds)
            self.usual.append(set(found[0]) | set(found[1]))
            same = {n for n, d in found[0].items() if found[1].get(n) == d}
            self.steady.append({name: found[0][name] for name in same})
            self._keep(number)

    def made_by(self, number: int) -> list[str]:
        """Return the files that the command of this number (from 0) adds or changes."""
        before = digests(self.states[number])
        after = digests(self.states[number + 1])
        return sorted(n for n, d in after.items() if before.get(n) != d and _is_content(n))

    def restore(self, number: int) -> None:
        """Lay the folder as it was after so many commands."""
        for path in self.work.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(self.states[number], self.work, dirs_exist_ok=True)

    def run_stage(self, stage: Stage, **limits: float) -> Ended:
        """Run a command of the table."""
        return self.run(stage.words.format(**_WORDS), **limits)

    def run(self, words: str, *, kill_after: float = 600, file_size: float = 0) -> Ended:
        """Run `sae` with these words, to its end or until it is killed."""
        said = self.folder / "said"
        said.write_text("")
        given = (_with_run(words), str(self.work), str(said), int(file_size))
        child = self.processes.Process(target=_main, args=given)
        began = time.perf_counter()
        child.start()
        child.join(kill_after)
        if child.exitcode is None:
            child.kill()
            child.join()
        seconds = time.perf_counter() - began
        status = None if child.exitcode == -signal.SIGKILL else child.exitcode
        return Ended(status, said.read_text(errors="replace"), seconds)

    def resize(self, size: str = _SIZE) -> None:
        """Give the disk another size."""
        options = f"remount,size={size}"
        subprocess.run(["mount", "-o", options, str(self.work)], check=True)

    def close(self) -> None:
        """Remove the folder of the world, and unmount its disk."""
        if self.mounted:
            subprocess.run(["umount", str(self.work)], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _keep(self, number: int) -> None:
        state = self.folder / "states" / str(number)
        shutil.copytree(self.work, state)
        self.states.append(state)


def _with_run(words: str) -> list[str]:
    split = words.split()
    own = split[0] in ("cache", "atlas") or any(word.startswith("run=") for word in split)
    return split if own else [*split, "run=run"]


def _main(words: list[str], folder: str, said: str, file_size: int) -> None:
    from sae.cli import main

    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(folder)
    if file_size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    sys.exit(main(words))


def _mount(folder: Path) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _is_content(name: str) -> bool:
    return not name.endswith(".lock")


def digests(folder: Path) -> dict[str, str]:
    """Return the digest of every file below a folder, by its name."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def make_text(path: Path, seed: int) -> None:
    """Write a text of words in random order."""
    draw = random.Random(seed)
    words = ["the", "river", "ran", "past", "old", "mill", "where", "she", "kept", "cats"]
    texts = (" ".join(draw.choices(words, k=24)) for _ in range(600))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def make_model(folder: Path) -> None:
    """Save a random Llama of three layers and width 32, with a byte-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *alphabet])}
    bpe = Tokenizer(models.BPE(vocabulary, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=bpe, **special).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=128, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
