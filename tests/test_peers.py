"""A run of two processes, one of which is killed: what the other says, and how the run goes on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from pathup.peers import lost_peer
from tests.processes import run_several


def _line(tiles: Path, autoencoder: Path, output: Path, steps: int, *more: str) -> list[str]:
    told = ["--recipe", "tiny", "--cpu", "--tiles", tiles, "--autoencoder", autoencoder, "--steps", steps]
    return [str(part) for part in ["train", "diffusion", *told, "--output", output, *more]]


def _launched(line: list[str]) -> subprocess.Popen[str]:
    """Two processes of the command line, by torchrun."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pathup"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*launcher, *line], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(("how", "steps"), [([], 30), (["--shard"], 10)])  # enough to be killed within
def test_a_killed_process_stops_the_run_with_a_sentence_and_it_goes_on_exactly(
    tiny_tiles: Path, tiny_autoencoder: Path, tmp_path: Path, how: list[str], steps: int
) -> None:
    checkpoints = tmp_path / "killed/checkpoints"
    running = _launched(_line(tiny_tiles, tiny_autoencoder, tmp_path / "killed", steps, *how))
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("step-*")) and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    workers = {process.environ().get("RANK"): process for process in psutil.Process(running.pid).children()}
    workers["1"].send_signal(signal.SIGKILL)
    said = running.communicate(timeout=120)[1]
    assert running.returncode != 0, said
    assert "pathup: " in said, said
    (sentence,) = [line for line in said.splitlines() if "pathup: " in line]
    # whichever comes first: it notices, or the launcher, which has, ends it
    assert re.search("process 0 of 2 (lost another one|was told to end)", sentence)
    assert "--resume goes on from the newest checkpoint" in sentence
    assert "[rank0]: Traceback" not in said
    assert not (tmp_path / "killed/model").exists()
    for folder, more in (("killed", ["--resume"]), ("whole", [])):
        run_several(2, *_line(tiny_tiles, tiny_autoencoder, tmp_path / folder, steps, *how, *more))
    last = f"checkpoints/step-{steps:08d}"
    for path in (tmp_path / "whole" / last).glob("*.safetensors"):
        one, other = load_file(path), load_file(tmp_path / "killed" / last / path.name)
        assert all(torch.equal(one[key], other[key]) for key in one), path.name
    assert (tmp_path / "whole/losses.jsonl").read_text() == (tmp_path / "killed/losses.jsonl").read_text()


def test_other_errors_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = RuntimeError("[gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:3989:\nConnection reset by peer")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert lost_peer(gone) is None
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    said = lost_peer(gone)
    assert said is not None and said.startswith("process 3 of 4 lost another one") and "\n" not in said
    assert lost_peer(torch.distributed.DistBackendError("NCCL error: remote process exited")) is not None
    assert lost_peer(RuntimeError("shapes do not match")) is None
    assert lost_peer(ValueError("gloo")) is None


@pytest.mark.parametrize("processes", [1, 2])
def test_one_of_several_processes_ends_before_python_takes_itself_apart(tmp_path: Path, processes: int) -> None:
    script = f"""
import atexit, torch
from pathup.peers import leave

class Held:  # as by a thread of Gloo, which must not need Python when it is ending
    def __del__(self):
        print("let go of")

held = Held()
atexit.register(print, "done at the end")
atexit.register(lambda: print("connected:", torch.distributed.is_initialized()))
torch.distributed.init_process_group("gloo", init_method="file://{tmp_path}/store", rank=0, world_size=1)
print("said, not yet written")
leave(int("0"))
"""
    environment = {**os.environ, "WORLD_SIZE": str(processes), "RANK": "0"}
    ended = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    said = ["said, not yet written", f"connected: {processes == 1}", "done at the end"]
    assert ended.stdout.splitlines() == (said if processes > 1 else [*said, "let go of"])


@pytest.mark.parametrize("processes", ["1", "2"])
def test_the_exit_code_is_kept(processes: str) -> None:
    script = "from pathup.peers import leave; leave(3)"
    ended = subprocess.run([sys.executable, "-c", script], env={**os.environ, "WORLD_SIZE": processes})
    assert ended.returncode == 3


def test_a_process_deep_in_a_computation_says_what_ended_it() -> None:
    script = (
        "import hashlib, multiprocessing, time; from pathup.peers import say_what_ended_it; say_what_ended_it()\n"
        "child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,)); child.start()\n"
        "time.sleep(0.5); child.terminate(); child.join(); print(child.exitcode, flush=True)\n"  # not the parent's end
        "hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"  # no return to Python for minutes
    )
    environment = {**os.environ, "WORLD_SIZE": "2", "RANK": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline().strip() == str(-signal.SIGTERM)
    time.sleep(0.5)  # into the computation
    process.terminate()
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM
    assert said.count("pathup: ") == 1 and "process 1 of 2 was told to end" in said
