"""What a launcher may ask of a run, and what one process alone makes of what is said to all."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from pathup.errors import PathUpError
from pathup.processes import ONE_PROCESS, check_launcher


def test_one_process_is_all_of_them() -> None:
    assert ONE_PROCESS.is_main and ONE_PROCESS.told("word") == "word" and ONE_PROCESS.gathered_objects(3) == [3]
    assert torch.equal(ONE_PROCESS.gathered(torch.ones(2)), torch.ones(2))


@pytest.mark.parametrize("kind", [DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM])
def test_others_that_share_weights_out_are_refused_and_plain_processes_are_not(kind: DistributedType) -> None:
    with pytest.raises(PathUpError, match=f"asks for {kind.value}, which training does not do; .* give --shard"):
        check_launcher(SimpleNamespace(distributed_type=kind))
    check_launcher(SimpleNamespace(distributed_type=DistributedType.MULTI_GPU))
    check_launcher(Accelerator(cpu=True))
