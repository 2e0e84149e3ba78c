"""Passes recorded once and replayed: a small U-Net's kernels take less time than Python needs to launch them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from accelerate import Accelerator

from pathup.errors import PathUpError
from pathup.recipes import DiffusionRecipe
from pathup.training.batches import Batch

WARM_UP = 3
"""Passes before the recording, in which kernels are chosen and memory is set aside."""


class Passed(NamedTuple):
    """What a forward and backward pass leaves beside gradients; all detached."""

    error_B: torch.Tensor
    reconstruction: torch.Tensor
    entropy: torch.Tensor
    z_BD: torch.Tensor
    prompt_B: torch.Tensor


Passes = Callable[[Batch, torch.Tensor], Passed]
"""Forward and backward of a micro-batch, whose L_e is multiplied by the second argument; gradients add up."""

Recorder = Callable[[Callable[[], Passed], Callable[[], None]], Callable[[], Passed]]
"""Makes of a run (and of what clears the gradients that it leaves) one that does the same again."""


class Recorded:
    """`passes`, recorded at the first call and replayed on the values of each call.

    What a call returns is overwritten by the next one. All batches must have the first one's shapes, and parameters
    and gradients must stay where they are (cleared in place).

    Parameters
    ----------
    passes
        What is recorded. It must not ask the device for a value.
    clear
        Sets gradients to zero in place.
    recorder
        `cuda_graph`.
    """

    def __init__(self, passes: Passes, clear: Callable[[], None], recorder: Recorder) -> None:
        self._passes, self._clear, self._recorder = passes, clear, recorder
        self._given: tuple[Batch, torch.Tensor] | None = None
        self._replay: Callable[[], Passed] | None = None

    def __call__(self, batch: Batch, share: torch.Tensor) -> Passed:
        """The passes of this micro-batch.

        Raises
        ------
        ValueError
            The batch has other shapes than the first one.
        """
        if self._given is None or self._replay is None:
            self._given = given = Batch(*(column.clone() for column in batch)), share.clone()
            self._replay = self._recorder(lambda: self._passes(*given), self._clear)
        own, own_share = self._given
        for kept, new in zip((*own, own_share), (*batch, share), strict=True):
            if kept.shape != new.shape:
                raise ValueError(f"passes of {tuple(kept.shape)} were recorded, not of {tuple(new.shape)}")
            kept.copy_(new, non_blocking=True)
        return self._replay()


def cuda_graph(run: Callable[[], Passed], clear: Callable[[], None]) -> Callable[[], Passed]:
    """Record a run on the current CUDA device as a graph; what it returns replays it."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(aside)
    clear()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        passed = run()

    def replay() -> Passed:
        graph.replay()
        return passed

    return replay


def check_recording(accelerator: Accelerator, spec: DiffusionRecipe, *, gradient_checkpointing: bool) -> None:
    """Refuse what a recorded pass cannot have.

    Raises
    ------
    PathUpError
        The run is on the CPU, of several processes or fp16, or checkpoints gradients.
    """
    for found, hindered in (
        ("the CPU", accelerator.device.type != "cuda"),
        (f"{accelerator.num_processes} processes", accelerator.num_processes > 1),
        ("fp16", spec.precision == "fp16"),
        ("gradient checkpointing", gradient_checkpointing),
    ):
        if hindered:
            raise PathUpError(
                f"--record needs one process on a GPU, in bf16 or fp32 and without gradient checkpointing; "
                f"this run has {found}, so leave it out"
            )
