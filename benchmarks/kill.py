"""A harvest killed at fifty random instants, against one that nothing interrupted."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import write_results

KILLS = 50
N_TOKENS = 40_960
SEED = 20_261_121


def main() -> None:
    """Count kills, tokens kept at each, and compare the bytes at the end."""
    draw = random.Random(SEED)
    folder = Path(tempfile.mkdtemp())
    whole = _start(folder / "whole")
    began = time.perf_counter()
    whole.wait()
    seconds = time.perf_counter() - began
    kept, phases = [0], {"before the cache": 0, "text and activations": 0, "after the end": 0}
    for _ in range(KILLS):
        child = _start(folder / "killed")
        # Loading takes most of such a short run: half of the kills fall after it.
        time.sleep(draw.uniform(0, seconds * 0.7))
        over = child.poll() is not None
        child.send_signal(signal.SIGKILL)
        child.wait()
        found = _chunks(folder / "killed")
        if found < kept[-1]:
            raise RuntimeError(f"chunks were lost: {kept[-1]}, then {found}")
        kept.append(found)
        there = (folder / "killed" / "cache.zarr").exists()
        phase = "after the end" if over else "text and activations" if there else None
        phases[phase or "before the cache"] += 1
        if over:
            shutil.rmtree(folder / "killed")
            kept = [0]
    last = _start(folder / "killed")
    if last.wait():
        raise RuntimeError("the last start failed")
    same = _bytes(folder / "killed") == _bytes(folder / "whole")
    row: dict[str, object] = {"kills": KILLS, **phases, "same bytes": same}
    write_results("kill", f"A harvest of {N_TOKENS:,} tokens, killed with SIGKILL", [row])
    shutil.rmtree(folder)


def _start(run: Path) -> subprocess.Popen[bytes]:
    words = ["harvest", f"run={run}", "data=factbook", f"n_tokens={N_TOKENS}"]
    program = "import sys; from sae.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", program, *words], stderr=subprocess.DEVNULL, env=os.environ
    )


def _chunks(run: Path) -> int:
    return len(list((run / "cache.zarr" / "activations").rglob("c.*.0.0")))


def _bytes(run: Path) -> dict[str, str]:
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (run / "cache.zarr").rglob("*")
        if path.is_file()
    }


if __name__ == "__main__":
    main()
