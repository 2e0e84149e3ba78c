"""The processes that share one run, as Accelerate (or torchrun) launched them; usually there is one."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch

from pathup.errors import PathUpError
from pathup.peers import process_count

__all__ = [
    "ONE_PROCESS",
    "PATIENCE",
    "Processes",
    "check_launcher",
    "check_one_process",
    "computes_on_cpu",
    "launched_processes",
]

PATIENCE = timedelta(hours=24)
"""How long processes wait for each other: one may write, or measure, what the others have to do nothing for."""


class Processes:
    """One process, this one, among those of a run.

    Attributes
    ----------
    rank, count
        Its number, from 0, and how many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def share(self, indices: list[int]) -> list[int]:
        """A process's own windows of some: as many for each process, the last one repeated where they are short."""
        size = -(-len(indices) // self.count)
        mine = indices[self.rank * size : (self.rank + 1) * size]
        return mine + [indices[-1]] * (size - len(mine))

    def gathered(self, values_B: torch.Tensor) -> torch.Tensor:
        """All processes' values, one after the other, in every process."""
        return values_B

    def wait(self) -> None:
        """Wait until every process has come here."""

    def told(self, value: Any) -> Any:
        """In every process, what the first one says."""
        return value

    def gathered_objects(self, value: Any) -> list[Any]:
        """All processes' values, by rank, in every process."""
        return [value]


class _Launched(Processes):
    def __init__(self, state: Any) -> None:
        self._state = state
        self.rank, self.count = int(state.process_index), int(state.num_processes)

    def gathered(self, values_B: torch.Tensor) -> torch.Tensor:
        from accelerate.utils import gather

        result: torch.Tensor = gather(values_B.contiguous())
        return result

    def wait(self) -> None:
        self._state.wait_for_everyone()

    def told(self, value: Any) -> Any:
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def gathered_objects(self, value: Any) -> list[Any]:
        from accelerate.utils import gather_object

        values: list[Any] = gather_object([value])
        return values


ONE_PROCESS = Processes()


def launched_processes(device: str) -> tuple[Processes, str]:
    """The processes of this run, and the device that is this process's own.

    Started by ``accelerate launch`` or ``torchrun`` with more than one process, each takes a part of a canvas's
    windows.
    """
    if process_count() < 2:
        return ONE_PROCESS, device
    from accelerate import PartialState

    state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available(), timeout=PATIENCE)
    return _Launched(state), "cpu" if state.device.type == "cpu" else str(state.device)  # not torchrun's 'cpu:0'


def computes_on_cpu(asked: bool) -> bool:
    """Whether a run computes on the CPU: it was asked to, or there is nothing else.

    Accelerate has to be told so: else it takes each process that torchrun starts on a machine without a GPU for a run
    of its own; and so where Apple's is the only one, which several processes cannot share.
    """
    found = torch.accelerator.current_accelerator(check_available=True)
    return asked or found is None or (found.type == "mps" and process_count() > 1)


def check_one_process(what: str) -> None:
    """Refuse a launcher's several processes, each of which would do the same.

    Raises
    ------
    PathUpError
        There are several.
    """
    count = process_count()
    if count > 1:
        raise PathUpError(
            f"{what} is trained by one process, but {count} were launched; leave accelerate launch or torchrun out"
        )


def check_launcher(accelerator: Any) -> None:
    """Refuse a launcher's configuration in which others than PyTorch and PathUp share the weights out.

    Raises
    ------
    PathUpError
        The launcher asks for DeepSpeed or Megatron-LM.
    """
    kind = str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type))
    if kind in ("DEEPSPEED", "MEGATRON_LM"):
        raise PathUpError(
            f"the launcher's configuration asks for {kind}, which training does not do; for a share of the weights in "
            "each process ask for FSDP of version 2 in its place, or for none and give --shard"
        )
