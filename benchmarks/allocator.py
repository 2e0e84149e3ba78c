"""Time a recipe's U-Net or autoencoder on the CPU with malloc as it is and with freed memory kept, in turns.

``python benchmarks/allocator.py --part encoder`` encodes tiles as the latent cache does, and
``--part unet --batch 16`` takes training steps. malloc cannot be set back, so each turn is a process of its own; a
ratio above 1 says that `pathup.memory.keep_freed_memory` is worth its call.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

import torch


def timed(asked: argparse.Namespace) -> float:
    from pathup.memory import keep_freed_memory
    from pathup.model.attention import fast_attention
    from pathup.model.components import build_autoencoder, build_unet
    from pathup.recipes import load_recipe

    if asked.child == "kept":
        keep_freed_memory()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    recipe = load_recipe(asked.recipe)
    channels, width, side = 4, recipe.model.text_encoder.hidden_size, recipe.sampling.window_latent
    if asked.part == "unet":
        unet = build_unet(recipe, channels, width)
        latents, prompts = torch.randn(asked.batch, channels, side, side), torch.randn(asked.batch, 16, width)

        def work() -> None:
            with fast_attention(unet, torch.device("cpu")), torch.autocast("cpu", torch.bfloat16):
                loss = unet(latents, 500, prompts).sample.float().square().mean()
            loss.backward()

    else:
        vae = build_autoencoder(recipe.autoencoder).to(memory_format=torch.channels_last)
        pixels = torch.randn(asked.batch, 3, recipe.tiles.tile_px, recipe.tiles.tile_px)
        pixels = pixels.to(memory_format=torch.channels_last)

        @torch.no_grad()
        def work() -> None:
            with torch.autocast("cpu", torch.bfloat16):
                vae.encode(pixels)

    seconds = []
    for _ in range(asked.steps + 1):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--recipe", default="atlas")
    parser.add_argument("--part", choices=["encoder", "unet"], default="encoder")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5, help="a turn [5]")
    parser.add_argument("--repeats", type=int, default=2, help="turns of each [2]")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--child", choices=["as it is", "kept"], help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        print(timed(asked))
        return
    seconds: dict[str, list[float]] = {"as it is": [], "kept": []}
    for _ in range(asked.repeats):
        for name, spent in seconds.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--child", name]
            spent.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    best = {name: min(spent) for name, spent in seconds.items()}
    print(json.dumps({"seconds a step": best, "ratio": best["as it is"] / best["kept"]}, indent=2))


if __name__ == "__main__":
    main()
