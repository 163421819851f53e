"""Time that the stages of a pipeline have worked, kept over interruptions."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sae.base import digest, plain, read_object, write_json


class Clock:
    """Seconds that each stage worked, added up over interruptions but not over reuse."""

    def __init__(self, path: Path, config: object) -> None:
        self.path = path
        fresh: dict[str, Any] = {"digest": digest(plain(config)), "seconds": {}, "done": []}
        self.state = fresh
        if path.exists():
            found = read_object(path, "remove it; only the times are forgotten")
            if found.values.get("digest") == fresh["digest"]:
                times, stages = found.part("seconds"), found.get("done", list)
                seconds = {stage: times.get(stage, float) for stage in times.values}
                self.state = fresh | {"seconds": seconds, "done": stages}
        self.seconds: dict[str, float] = self.state["seconds"]

    def time(self, stage: str, work: Callable[[], Any]) -> Any:
        """Do `work`; its time counts until it has once come to its end."""
        if stage in self.state["done"]:
            return work()
        began = time.perf_counter()
        try:
            result = work()
            self.state["done"].append(stage)
        finally:
            spent = time.perf_counter() - began
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent
            write_json(self.path, self.state)
        return result
