"""Time a training step of a recipe's U-Net with torch's own attention kernel and with the plain product, in turns.

``python benchmarks/attention.py --recipe atlas --batch 16 --precision bf16``. `pathup.model.attention` takes the plain
product where windows are small and the device is a CPU; a ratio above 1 says that it was right to.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from contextlib import nullcontext

import torch

from pathup.memory import keep_freed_memory
from pathup.model.attention import fast_attention, most_positions
from pathup.model.components import build_unet
from pathup.recipes import load_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--recipe", default="atlas")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int)
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    keep_freed_memory()  # as training does
    recipe, cpu = load_recipe(asked.recipe), torch.device("cpu")
    channels, width, side = 4, recipe.model.text_encoder.hidden_size, recipe.sampling.window_latent
    unet = build_unet(recipe, channels, width)
    latents, prompts = torch.randn(asked.batch, channels, side, side), torch.randn(asked.batch, 16, width)

    def step() -> float:
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=asked.precision == "bf16"):
            loss = unet(latents, 500, prompts).sample.float().square().mean()
        loss.backward()
        return time.perf_counter() - started

    seconds: dict[str, list[float]] = {"torch's own": [], "chosen": []}
    for turn in range(asked.repeats + 1):
        for name, kernel in (("torch's own", nullcontext()), ("chosen", fast_attention(unet, cpu))):
            with kernel:
                spent = step()
            if turn:  # the first call of each pays for allocations
                seconds[name].append(spent)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = medians["torch's own"] / medians["chosen"]
    print(json.dumps({"positions": most_positions(unet), "seconds a step": medians, "ratio": ratio}, indent=2))


if __name__ == "__main__":
    main()
