"""Self-attention in the middle of an autoencoder, over a whole canvas that is computed tile by tile.

Attention (Vaswani et al. 2017) of a position with features x is ``softmax(q(x) K^T / sqrt(D)) V``. Queries are of one
position each, so a tile can bring its own; keys K and values V are of all positions. Here K and V are computed
once for the canvas, tile by tile, from the convolutions before them, and then held fixed: each tile attends to
the canvas as the whole would, and tiles agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from diffusers.models.attention_processor import Attention
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from pathup.sampling.norms import Forward, NormStatistics, Pair, fixed_norms, replaced_forwards

__all__ = ["KeyTile", "attend", "fixed_attention", "fixed_statistics", "keys_and_values", "measured_attention"]

KeyTile = tuple[torch.Tensor, int, int, int, int]
"""A network's input (1, C, H, W), and the part of it whose keys count: top, left, bottom and right as latent positions
within the tile."""


def keys_and_values(layer: Attention, x_BCHW: torch.Tensor) -> Pair:
    """Keys and values of all positions, (heads, B * H * W, D) each, from an attention's input."""
    flat = _positions(layer.group_norm(x_BCHW))
    return _heads(layer, layer.to_k(flat)), _heads(layer, layer.to_v(flat))


def attend(layer: Attention, x_BCHW: torch.Tensor, keys_HND: torch.Tensor, values_HND: torch.Tensor) -> torch.Tensor:
    """A `diffusers` attention block with the given keys and values: as its own forward, (B, C, H, W).

    Memory grows with the positions of x alone: `scaled_dot_product_attention` never holds all their products.
    """
    batch, channels, height, width = x_BCHW.shape
    queries = _heads(layer, layer.to_q(_positions(layer.group_norm(x_BCHW))))
    found = scaled_dot_product_attention(queries[None], keys_HND[None], values_HND[None])[0]
    found = layer.to_out[0](found.transpose(0, 1).flatten(1))
    found = found.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
    if layer.residual_connection:
        found = found + x_BCHW
    return found / layer.rescale_output_factor


@contextmanager
def fixed_attention(module: nn.Module, statistics: NormStatistics) -> Iterator[None]:
    """Within the context every measured attention of `module` uses the canvas's keys and values."""

    def fixed(name: str, layer: Attention) -> Forward | None:
        if name not in statistics.attention:
            return None
        weight = layer.to_k.weight
        keys, values = (tensor.to(weight.device, weight.dtype) for tensor in statistics.attention[name])
        return lambda x, *_, **__: attend(layer, x, keys.to(x.device), values.to(x.device))

    with replaced_forwards(module, Attention, fixed):
        yield


@contextmanager
def fixed_statistics(module: nn.Module, statistics: NormStatistics) -> Iterator[None]:
    """Within the context `module` takes both normalisation and attention from the canvas."""
    with fixed_norms(module, statistics), fixed_attention(module, statistics):
        yield


@contextmanager
def measured_attention(
    module: nn.Module,
    statistics: NormStatistics,
    run: Callable[[torch.Tensor], object],
    tiles: Callable[[], Iterable[KeyTile]] | None,
) -> Iterator[None]:
    """Within the context each attention in the middle of `module`, when first reached, records the canvas's keys.

    To be used around a run of `measure_norms`, which has then measured the layers before the attention; the layers
    after it are measured with the canvas's attention in place.

    Parameters
    ----------
    module
        The autoencoder.
    statistics
        Has the statistics of the layers before; the keys and values are put in.
    run
        Takes a tile through the network.
    tiles
        The tiles whose keys are wanted. None: what `measure_norms` is given is the whole canvas.
    """

    def recording(name: str, layer: Attention) -> Forward | None:
        if ".mid_block." not in f".{name}":
            return None

        def forward(x: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
            if tiles is None:
                pair = keys_and_values(layer, x)
            else:
                layer.group_norm(x)  # measured by this, as part of the population
                parts = [_keys_of_tile(module, layer, statistics, run, tile) for tile in tiles()]
                pair = torch.cat([keys for keys, _ in parts], 1), torch.cat([values for _, values in parts], 1)
            statistics.attention[name] = pair
            return attend(layer, x, *pair)

        return forward

    with replaced_forwards(module, Attention, recording):
        yield


class _Reached(Exception):  # noqa: N818  no error: it ends a forward where nothing after it is wanted
    def __init__(self, x: torch.Tensor) -> None:
        self.x = x


def _keys_of_tile(
    module: nn.Module,
    layer: Attention,
    statistics: NormStatistics,
    run: Callable[[torch.Tensor], object],
    tile: KeyTile,
) -> Pair:
    def stop(_: str, candidate: Attention) -> Forward | None:
        if candidate is not layer:
            return None

        def forward(x: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
            raise _Reached(x)

        return forward

    pixels_or_latents, top, left, bottom, right = tile
    with fixed_statistics(module, statistics), replaced_forwards(module, Attention, stop):
        try:
            run(pixels_or_latents)
        except _Reached as reached:
            return keys_and_values(layer, reached.x[..., top:bottom, left:right])
    raise AssertionError("a network that has reached its attention once reaches it again")


def _positions(x_BCHW: torch.Tensor) -> torch.Tensor:
    """(B * H * W, C)."""
    return x_BCHW.permute(0, 2, 3, 1).flatten(0, 2)


def _heads(layer: Attention, x_NC: torch.Tensor) -> torch.Tensor:
    """(heads, N, D)."""
    return x_NC.unflatten(1, (layer.heads, -1)).transpose(0, 1)
