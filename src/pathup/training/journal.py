"""What a run tells while it trains: progress, losses.jsonl, TensorBoard or W&B, and loss curves as PNG."""

from __future__ import annotations

import json
import math
from collections import deque
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pathup import storage
from pathup.errors import PathUpError

LOSSES = "losses.jsonl"


class GoneOffError(PathUpError):
    """A loss has jumped up and stays there. `lowest_at` is the step up to which it was well."""

    def __init__(self, message: str, lowest_at: int) -> None:
        super().__init__(message)
        self.lowest_at = lowest_at


class Watch:
    """Tells a loss that has jumped up and stays there from one that is noisy.

    It compares the mean of the newest `SPAN` values with the lowest such mean, once there are `LEAST` values.
    """

    SPAN = 20
    LEAST = 50
    FACTOR = 2.5
    """A run that went off rose to 4 times its loss within 20 steps. Of batches of 4, means of 20 vary by some 11 %."""

    def __init__(self) -> None:
        self._newest: deque[float] = deque(maxlen=self.SPAN)
        self._count, self.lowest, self.at = 0, math.inf, 0

    def add(self, step: int, value: float) -> bool:
        """Whether the loss has gone off with this value, logged at `step`."""
        self._newest.append(value)
        self._count += 1
        if len(self._newest) < self.SPAN:
            return False
        mean = sum(self._newest) / self.SPAN
        if mean < self.lowest:
            self.lowest, self.at = mean, step
        return self._count >= self.LEAST and mean > self.FACTOR * self.lowest


class Journal:
    """The record of one run, in its folder. Only the main process writes.

    Parameters
    ----------
    folder
        The run's folder.
    steps, first_step
        Steps in all, and the step that this process starts at: later lines of an interrupted run are dropped,
        so that losses.jsonl is that of an unbroken run.
    title
        What the progress bar says.
    wandb_project
        Log to Weights & Biases as well.
    active
        False in all but the main process.
    """

    def __init__(
        self,
        folder: Path,
        *,
        steps: int,
        first_step: int,
        title: str,
        wandb_project: str | None = None,
        active: bool = True,
    ) -> None:
        self._folder, self._active = folder, active
        self._writer: Any = None
        self._wandb: Any = None
        self._progress: Progress | None = None
        self._steps, self._first, self._title, self._project = steps, first_step, title, wandb_project
        self._watch = Watch()

    def __enter__(self) -> Self:
        if not self._active:
            return self
        self._drop_lines_from(self._first)
        from torch.utils.tensorboard import SummaryWriter

        with self._clear_disk_errors():
            self._writer = SummaryWriter(str(self._folder / "tensorboard"), purge_step=self._first or None)
        if self._project:
            try:
                import wandb
            except ImportError:
                raise PathUpError(
                    "--wandb needs the wandb package; install it with: pip install 'pathup[wandb]'"
                ) from None
            self._wandb = wandb.init(
                project=self._project, dir=str(self._folder), name=self._folder.name, resume="allow"
            )
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            speed_estimate_period=600,
        )
        self._progress.start()
        self._task = self._progress.add_task(self._title, total=self._steps, completed=self._first, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
        if self._writer is not None:
            with suppress(Exception) if error is not None else self._clear_disk_errors():  # the first error is told
                self._writer.close()
        if self._wandb is not None:
            self._wandb.finish()

    def advance(self) -> None:
        """One step is done."""
        if self._progress is not None:
            self._progress.advance(self._task)

    def say(self, text: str) -> None:
        """Print a line beside the progress bar."""
        if self._progress is not None:
            self._progress.console.print(text, markup=False, highlight=False)

    def record(self, step: int, values: dict[str, float]) -> None:
        """Log the values of a step (counted from 1 when it is done).

        Raises
        ------
        PathUpError
            A loss is not finite: training has diverged and stops here, with its last checkpoint intact.
        GoneOffError
            `L_r` has jumped up and stays there.
        """
        for name, value in values.items():
            if not math.isfinite(value):
                raise PathUpError(
                    f"{name} is {value} at step {step}: training has diverged; lower the learning rate or train in "
                    "fp32, and resume from the last checkpoint"
                )
        if "L_r" in values and self._watch.add(step, values["L_r"]):
            raise GoneOffError(
                f"L_r has risen to {values['L_r']:.3g} at step {step} from {self._watch.lowest:.3g} around step "
                f"{self._watch.at}: training has gone off; remove the checkpoints after step {self._watch.at} from "
                f"{self._folder / 'checkpoints'} and resume with a lower --learning-rate",
                self._watch.at,
            )
        if not self._active:
            return
        with (
            storage.clear_disk_errors(self._folder / LOSSES),
            (self._folder / LOSSES).open("a", encoding="utf-8") as file,
        ):
            file.write(json.dumps({"step": step, **values}) + "\n")
        with self._clear_disk_errors():
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(values, step=step)
        if self._progress is not None:
            self._progress.update(self._task, note="  ".join(f"{k} {v:.4g}" for k, v in list(values.items())[:3]))

    def draw_curves(self) -> None:
        """Write losses.png from losses.jsonl: one panel a value, with a running mean."""
        if self._active:
            draw_curves(self._folder / LOSSES, self._folder / "losses.png")

    def _clear_disk_errors(self) -> AbstractContextManager[None]:
        return storage.clear_disk_errors(self._folder / "tensorboard")

    def _drop_lines_from(self, step: int) -> None:
        path = self._folder / LOSSES
        if path.exists():
            kept = [line for line in _lines(path) if line["step"] <= step]
            for line in kept:
                if "L_r" in line:
                    self._watch.add(line["step"], line["L_r"])
            storage.write_text(path, "".join(json.dumps(line) + "\n" for line in kept))


def draw_curves(losses: Path, target: Path) -> None:
    """Plot every value of a losses.jsonl against the step."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    lines = _lines(losses) if losses.exists() else []
    names = list(dict.fromkeys(name for line in lines for name in line if name != "step"))
    if not names:
        return
    figure, axes = plt.subplots(len(names), 1, figsize=(8, 2.2 * len(names)), sharex=True, squeeze=False)
    for axis, name in zip(axes[:, 0], names, strict=True):
        points = [(line["step"], line[name]) for line in lines if name in line]
        steps, values = [p[0] for p in points], [p[1] for p in points]
        axis.plot(steps, values, color="0.75", linewidth=0.8)
        width = max(1, len(values) // 50)
        means = [sum(values[max(0, i - width + 1) : i + 1]) / min(i + 1, width) for i in range(len(values))]
        axis.plot(steps, means, color="C0", linewidth=1.5)
        axis.set_ylabel(name)
        axis.grid(alpha=0.3)
    axes[-1, 0].set_xlabel("step")
    figure.tight_layout()
    with storage.atomic_path(target) as temporary:
        figure.savefig(temporary, dpi=100)
    plt.close(figure)


def _lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:  # a line cut short by a kill is no record
            continue
    return lines
