from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pathup.errors import PathUpError
from pathup.model.compiling import compile_blocks
from pathup.model.pipeline import PathUpPipeline
from pathup.sampling import batching, runs
from pathup.sampling.batching import BATCH_FILE, TilesEstimate, batches_of, best_batch
from pathup.sampling.runs import GenerateRequest, estimate, generate


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=4), st.integers(1, 20), st.none() | st.integers(1, 50)
)  # fmt: skip
def test_batches_hold_every_tile_once_and_shards_whole_batches(
    counts: list[int], at_once: int, shard_size: int | None
) -> None:
    spans = {f"label {i}": range(count) for i, count in enumerate(counts)}
    batches = batches_of(spans, at_once, shard_size)
    assert [(b.label, i) for b in batches for i in b.indices] == [(label, i) for label in spans for i in spans[label]]
    # `--index` draws a tile's batch again from its index alone
    assert all(b.indices.start % at_once == 0 and 0 < len(b.indices) <= at_once for b in batches)
    if shard_size is None:
        assert all(batch.shard is None for batch in batches)
        return
    numbers = [batch.shard for batch in batches]
    assert numbers == sorted(numbers) and set(numbers) == set(range(len(set(numbers))))  # in order, none left out
    for number in set(numbers):
        held = [len(batch.indices) for batch in batches if batch.shard == number]
        assert sum(held) <= shard_size or len(held) == 1


@pytest.mark.parametrize(
    ("seconds", "wanted", "tried"),
    [
        ({8: 1.0, 16: 0.6, 32: 0.5, 64: 0.49}, 32, {8, 16, 32, 64}),  # a GPU: larger is better until it is full
        ({8: 1.0, 16: 0.99, 4: 0.8, 2: 0.9}, 4, {8, 16, 4, 2}),  # a small cache: smaller is better
        ({8: 1.0, 16: 0.97, 4: 0.97}, 8, {8, 16, 4}),  # a gain within the clock's noise is none
        ({8: 1.0, 16: 0.6, 32: None}, 16, {8, 16}),  # the memory ends
    ],
)
def test_the_probe_takes_the_quickest(seconds: dict[int, float | None], wanted: int, tried: set[int]) -> None:
    def probed(size: int) -> float:
        spent = seconds[size]
        if spent is None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return spent

    found, told = best_batch(probed, 8)
    assert found == wanted and set(told) == tried


def test_the_probe_does_not_go_beyond_the_run() -> None:
    assert best_batch(lambda size: 1 / size, 8, most=20)[0] == 16


def test_a_long_run_is_probed_and_keeps_to_what_was_found(
    pipeline: PathUpPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = tmp_path / "model", tmp_path / "tiles"
    pipeline.save_pretrained(model)
    request: dict[str, Any] = {
        "model": model, "label": "A", "level": "patch", "steps": 2, "seed": 3, "device": "cpu", "threads": 1,
    }  # fmt: skip
    generate(GenerateRequest(**request, out=tmp_path / "short", count=3))
    assert json.loads((tmp_path / "short" / BATCH_FILE).read_text()) == {"tiles_at_once": 4}  # the recipe's

    monkeypatch.setattr(batching, "PROBE_SHARE", 1e9)  # every run is long
    monkeypatch.setattr(batching, "GAIN", 0.0)  # nothing is better than the model's own
    generate(GenerateRequest(**request, out=out, count=3))
    told = json.loads((out / BATCH_FILE).read_text())
    assert told["tiles_at_once"] == 4 and told["probed_seconds_a_tile"]["4"] > 0

    (out / BATCH_FILE).write_text(json.dumps({"tiles_at_once": 2}))
    monkeypatch.setattr(batching, "best_batch", lambda *_, **__: pytest.fail("a resumed run was probed again"))
    report = generate(GenerateRequest(**request, out=out, count=7, resume=True))
    # 3 are there; tile 3 is drawn with its batch of 2 and 3, then 4 with 5, then 6
    assert report.kept == 3 and report.forwards == 2 * 2 * 5
    generate(GenerateRequest(**request, out=out, count=7, window_batch=6, resume=True))
    assert json.loads((out / BATCH_FILE).read_text()) == {"tiles_at_once": 6}


def test_the_estimate_of_tiles_counts_what_the_run_takes_and_writes_nothing(
    pipeline: PathUpPipeline, tmp_path: Path
) -> None:
    pipeline.save_pretrained(tmp_path / "model")
    request = GenerateRequest(
        model=tmp_path / "model", out=tmp_path / "out", label="all", level="patch", count=3, steps=2, device="cpu",
        threads=1,
    )  # fmt: skip
    cost = estimate(request)
    assert isinstance(cost, TilesEstimate) and not (tmp_path / "out").exists()
    assert cost.images == 6 and cost.seconds > 0 and cost.file_bytes > 0
    assert cost.forwards == generate(request).forwards


def test_compiled_batches_are_all_of_one_shape_and_the_tiles_are_the_same(
    pipeline: PathUpPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a C++ compiler: graphs are traced as for the usual backend, and run by PyTorch's own operations."""
    pipeline.save_pretrained(tmp_path / "model")
    request: dict[str, Any] = {
        "model": tmp_path / "model", "label": "A", "level": "patch", "count": 5, "window_batch": 3, "steps": 2,
        "device": "cpu", "threads": 1, "seed": 1,
    }  # fmt: skip
    generate(GenerateRequest(**request, out=tmp_path / "plain"))
    shapes: list[int] = []

    def compiled(unet: Any) -> None:
        unet.register_forward_pre_hook(lambda _, inputs: shapes.append(len(inputs[0])))
        compile_blocks(unet, backend="aot_eager")

    monkeypatch.setattr(runs, "compile_blocks", compiled)
    report = generate(GenerateRequest(**request, out=tmp_path / "compiled", compiled=True))
    assert len(set(shapes)) == 1 and report.forwards == 2 * 2 * 6  # two batches of three, two steps, guided
    for path in sorted((tmp_path / "plain").glob("*.png")):
        one, other = (np.asarray(Image.open(tmp_path / name / path.name)).astype(int) for name in ("plain", "compiled"))
        assert np.abs(one - other).max() <= 1  # the same sums in another order
    with pytest.raises(PathUpError, match="compiled"):  # so a folder keeps to one of them
        generate(GenerateRequest(**request, out=tmp_path / "compiled", resume=True))
    with pytest.raises(PathUpError, match="--level was needed"):
        GenerateRequest(**{**request, "level": None}, out=tmp_path / "large", compiled=True)
