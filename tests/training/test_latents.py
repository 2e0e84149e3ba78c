"""The latent cache: what it holds, that it goes on after a stop, and that it refuses another model's latents."""

from __future__ import annotations

import contextlib
import copy
import threading

import numpy as np
import pytest
import torch

from pathup.errors import PathUpError
from pathup.model.components import load_autoencoder
from pathup.processes import Processes
from pathup.tiles.dataset import TileFolder
from pathup.training import latents
from pathup.training.crops import oriented
from pathup.training.latents import LatentCache, orientations_of

CPU = torch.device("cpu")


@pytest.fixture
def parts(tiny_tiles, tiny_autoencoder, recipe):
    return TileFolder.load(tiny_tiles, "train", recipe), load_autoencoder(tiny_autoencoder)


def test_it_holds_each_orientations_latent(tmp_path, parts):
    tiles, vae = parts
    cache = LatentCache(tmp_path, tiles, vae, orientations=3, seed=1)
    cache.fill(4, CPU, lambda done, total: None)
    turn = orientations_of(5, 3, 1)[2]
    pixels = oriented(tiles.pixels(5), turn)[None].float() / 127.5 - 1
    with torch.no_grad():
        expected = vae.encode(pixels).latent_dist.mode()[0]
    assert torch.allclose(cache[5, 2], expected, atol=2e-3)  # half precision: 11 bits of values up to about 2


def test_bfloat16_latents_are_close_and_of_a_cache_of_their_own(tmp_path, parts):
    tiles, vae = parts
    whole = LatentCache(tmp_path / "whole", tiles, vae, orientations=1, seed=0)
    fast = LatentCache(tmp_path / "fast", tiles, vae, orientations=1, seed=0, bfloat16=True)
    for cache in (whole, fast):
        cache.fill(4, CPU, lambda done, total: None)
    difference = torch.stack([fast[i, 0] - whole[i, 0] for i in range(len(tiles))])
    assert 0 < difference.square().mean().sqrt() < 0.05  # 8 bits a product; the latents' deviation is about 1
    with pytest.raises(PathUpError, match="were made from other tiles, another encoder"):
        LatentCache(tmp_path / "whole", tiles, vae, orientations=1, seed=0, bfloat16=True).fill(4, CPU, print)


def test_an_interrupted_encoding_goes_on_and_ends_the_same(tmp_path, parts, monkeypatch):
    tiles, vae = parts
    monkeypatch.setattr(latents, "BLOCK", 4)
    whole = LatentCache(tmp_path / "whole", tiles, vae, orientations=1, seed=0)
    whole.fill(4, CPU, lambda done, total: None)

    class Killed(BaseException):
        pass

    def stop(done, total):
        if done >= 20:
            raise Killed

    broken = LatentCache(tmp_path / "broken", tiles, vae, orientations=1, seed=0)
    with pytest.raises(Killed):
        broken.fill(4, CPU, stop)
    assert not (tmp_path / "broken/latents.npy").exists()
    seen = []
    broken.fill(4, CPU, lambda done, total: seen.append(done))
    assert seen[0] == 24  # went on behind the 20 that were noted
    one, other = (np.load(tmp_path / name / "latents.npy") for name in ("whole", "broken"))
    assert np.array_equal(one, other)


class Two(Processes):
    """One of two processes of a run, which meet at barriers as threads do."""

    count = 2
    meeting = threading.Barrier(2, timeout=60)

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def wait(self) -> None:
        self.meeting.wait()


def test_two_processes_share_the_work_and_one_goes_on_with_what_two_began(tmp_path, parts, monkeypatch):
    tiles, vae = parts
    monkeypatch.setattr(latents, "BLOCK", 4)
    caches = [LatentCache(tmp_path / name, tiles, vae, orientations=2, seed=0) for name in ("one", "two", "begun")]
    caches[0].fill(4, CPU, lambda *done: None)
    whole = np.load(tmp_path / "one/latents.npy")
    encoded = {0: 0, 1: 0}

    def of_two(cache: LatentCache, rank: int, stop: int | None) -> None:
        real = cache._encode
        cache = copy.copy(cache)

        def counted(pixels, device):
            encoded[rank] += len(pixels)
            return real(pixels, device)

        cache._encode = counted

        def progress(done, total):
            if stop is not None and done >= stop:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt, threading.BrokenBarrierError):
            cache.fill(4, CPU, progress, Two(rank))
        if stop is not None:
            Two.meeting.abort()

    def both(cache: LatentCache, stop: int | None = None) -> None:
        Two.meeting.reset()
        threads = [threading.Thread(target=of_two, args=(cache, rank, stop)) for rank in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    both(caches[1])
    assert np.array_equal(np.load(tmp_path / "two/latents.npy"), whole)
    assert sum(encoded.values()) == len(whole) * 2 and abs(encoded[0] - encoded[1]) <= 4
    both(caches[2], stop=40)
    assert not (tmp_path / "begun/latents.npy").exists()
    marked = len(list((tmp_path / "begun/latents.done").iterdir()))
    assert marked
    seen = []
    caches[2].fill(4, CPU, lambda done, total: seen.append(done))
    assert seen[0] == 4 * marked + 4
    assert np.array_equal(np.load(tmp_path / "begun/latents.npy"), whole)
    left = sorted(path.name for path in (tmp_path / "begun").iterdir())
    assert left == ["latents.json", "latents.lock", "latents.npy"]


def test_a_finished_cache_whose_file_was_lost_is_made_again_even_if_that_is_killed(tmp_path, parts):
    tiles, vae = parts

    class Killed(BaseException):
        pass

    def stop(done, total):
        raise Killed

    cache = LatentCache(tmp_path, tiles, vae, orientations=1, seed=0)
    cache.fill(4, CPU, lambda done, total: None)
    whole = np.load(tmp_path / "latents.npy")
    (tmp_path / "latents.npy").unlink()
    with pytest.raises(Killed):
        cache.fill(4, CPU, stop)
    cache.fill(4, CPU, lambda done, total: None)
    assert np.array_equal(np.load(tmp_path / "latents.npy"), whole)


def test_with_one_orientation_the_seed_does_not_matter_and_with_more_it_does(tmp_path, parts):
    tiles, vae = parts
    for orientations, folder in ((1, "one"), (2, "two")):
        LatentCache(tmp_path / folder, tiles, vae, orientations=orientations, seed=0).fill(4, CPU, lambda *done: None)
    LatentCache(tmp_path / "one", tiles, vae, orientations=1, seed=5).fill(4, CPU, lambda *done: None)
    with pytest.raises(PathUpError, match="made from other tiles"):
        LatentCache(tmp_path / "two", tiles, vae, orientations=2, seed=5).fill(4, CPU, lambda *done: None)


def test_latents_of_another_encoder_are_refused_and_another_decoder_is_welcome(tmp_path, parts):
    tiles, vae = parts
    LatentCache(tmp_path, tiles, vae, orientations=1, seed=0).fill(4, CPU, lambda done, total: None)
    with torch.no_grad():
        next(vae.decoder.parameters()).add_(1)
    LatentCache(tmp_path, tiles, vae, orientations=1, seed=0).fill(4, CPU, lambda done, total: None)
    with torch.no_grad():
        next(vae.encoder.parameters()).add_(1)
    with pytest.raises(PathUpError, match="made from other tiles, another encoder"):
        LatentCache(tmp_path, tiles, vae, orientations=1, seed=0).fill(4, CPU, lambda done, total: None)


def test_every_tile_keeps_itself_and_draws_others_without_repeats():
    for index in range(20):
        turns = orientations_of(index, 8, 3)
        assert turns[0] == 0
        assert sorted(turns) == list(range(8))
