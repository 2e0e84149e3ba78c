from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pathup.memory import ask_for_huge_pages

FAULTS = """
import resource, sys
import torch
from pathup.memory import keep_freed_memory

if sys.argv[1] == "kept" and not keep_freed_memory():
    sys.exit("no glibc")
for turn in range(20):
    if turn == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(12_000_000)  # 48 MB: above what malloc keeps of itself
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_freed_memory_is_taken_again_without_page_faults():
    faults = {}
    for how in ("as it is", "kept"):
        done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=False)
        if done.stderr.strip() == "no glibc":
            pytest.skip("the C library is not glibc")
        assert done.returncode == 0, done.stderr
        faults[how] = int(done.stdout)
    assert faults["kept"] < 100, faults  # ten blocks of 48 MB are 117,000 pages of 4 KiB
    assert faults["kept"] < faults["as it is"] / 10 or faults["as it is"] < 100, faults


def test_a_chosen_page_size_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    ask_for_huge_pages()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    ask_for_huge_pages()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"
