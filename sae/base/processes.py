"""Several processes at one job, as `torchrun` starts them; one process is the usual case."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sae.base.errors import UserError

# A barrier is met by the slowest process, after days perhaps; a dead one ends them all anyway.
_PATIENCE = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Processes:
    """This process's place among those that share a job."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.share(None)

    def share(self, value: Any) -> Any:
        """Return in all processes what the first one gives; waits until every process is here.

        Raises:
            UserError: if one has ended.
        """
        if self.size == 1:
            return value
        import torch.distributed

        values = [value]
        try:
            torch.distributed.barrier()
            torch.distributed.broadcast_object_list(values, src=0)
        except RuntimeError as error:
            raise UserError(
                "another process of this job has ended; its own message says why"
            ) from error
        return values[0]


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """Join the processes that `torchrun` started with this one (`RANK`, `WORLD_SIZE`)."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Processes()
        return
    import torch.distributed

    torch.distributed.init_process_group("gloo", timeout=_PATIENCE)
    yield Processes(int(os.environ["RANK"]), size, int(os.environ.get("LOCAL_RANK", "0")))
    # Not after an error: the others would end, and `torchrun` with them, before it is said.
    torch.distributed.destroy_process_group()
