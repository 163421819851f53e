"""Seconds and memory to load a dictionary of a gigabyte, beside reading its bytes."""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.common import medians, write_results
from sae.dictionary import Dictionary, TopK
from sae.exchange.dictionaries import load
from sae.exchange.formats import write_dictionary

D_IN, D_SAE = 2048, 65_536
ROUNDS = 5
BLOCK = 16 << 20


def main() -> None:
    """Medians of processes of their own, warm page cache, for two formats of safetensors."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("SAE_BENCH_FOLDER")) as scratch:
        folders = _folders(Path(scratch))
        rows: list[dict[str, object]] = []
        for name, (folder, weights) in folders.items():
            memory: dict[str, tuple[float, float]] = {}
            contenders = {
                what: _in_a_process(what, weights if "bytes" in what else folder, memory)
                for what in ("read the bytes", "read the bytes into memory", "load")
            }
            times = medians(contenders, ROUNDS)
            size = weights.stat().st_size
            rows += [
                {
                    "format": name,
                    "what": what,
                    "s": round(seconds, 3),
                    "GB/s": round(size / seconds / 1e9, 2),
                    "over reading into memory": round(
                        seconds / times["read the bytes into memory"], 2
                    ),
                    "peak memory over the file's size": round(memory[what][0] / size, 2),
                    "of that no file's own pages": round(memory[what][1] / size, 2),
                }
                for what, seconds in times.items()
            ]
    write_results(
        "loading",
        f"Loading a dictionary of {D_IN} x {D_SAE} float32 (1.07 GB), page cache warm",
        rows,
    )


def _folders(scratch: Path) -> dict[str, tuple[Path, Path]]:
    """Folder and weights by format, of one random dictionary."""
    draw = torch.Generator().manual_seed(0)
    dictionary = Dictionary.from_weights(
        torch.randn(D_IN, D_SAE, generator=draw),
        torch.zeros(D_SAE),
        torch.randn(D_SAE, D_IN, generator=draw),
        torch.zeros(D_IN),
        TopK(32),
    ).placed("blocks.9.hook_resid_post")
    found = {}
    for name, file in (("saelens", "sae_weights"), ("sparsify", "sae")):
        write_dictionary(dictionary, scratch / name, name)
        found[name] = scratch / name, scratch / name / f"{file}.safetensors"
    return found


def _in_a_process(
    what: str, path: Path, memory: dict[str, tuple[float, float]]
) -> Callable[[], float]:
    """Seconds in a new process; what memory it took goes to `memory`."""

    def seconds() -> float:
        command = [sys.executable, "-m", "benchmarks.loading", "--do", what, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        took, peak, anonymous = map(float, done.stdout.split())
        memory[what] = peak, anonymous
        return took

    return seconds


def _memory(name: str) -> float:
    """Bytes of this process by a name in /proc: VmRSS, VmHWM (its peak) or RssAnon."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024.0 * int(status.split(f"{name}:")[1].split()[0])


def _do(what: str, path: Path) -> None:
    """One contender: prints its seconds, its peak of memory and what is no file's."""
    before, anonymous = _memory("VmRSS"), _memory("RssAnon")
    began = time.perf_counter()
    if what == "load":
        held: object = load(str(path))
    elif what == "read the bytes into memory":
        held = path.read_bytes()
    else:
        held = bytearray(BLOCK)
        with path.open("rb", buffering=0) as file:
            while file.readinto(held):
                pass
    took = time.perf_counter() - began
    print(took, _memory("VmHWM") - before, _memory("RssAnon") - anonymous)
    del held


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--do", nargs=2)
    asked = parser.parse_args().do
    if asked:
        _do(asked[0], Path(asked[1]))
    else:
        main()
