"""How attention is computed: on a CPU, the plain product is faster for the short rows of small windows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

SHORT = 256
"""Positions up to which the plain product is taken: beyond, its (positions, positions) matrices cost memory and time.

In bf16 a training step of 16 windows was 1.1 to 1.2 times as fast as with torch 2.14's own kernel on one core, and in
float32 a forward of 48 windows 1.05 times on two (benchmarks/attention.py).
"""


def most_positions(unet: Any) -> int:
    """The most latent positions that one attention of a U-Net relates, for windows of its own `sample_size`."""
    config = unet.config
    side = config.sample_size if isinstance(config.sample_size, int) else max(config.sample_size)
    sides = [side >> depth for depth, kind in enumerate(config.down_block_types) if "Attn" in kind]
    middle = side >> (len(config.down_block_types) - 1)
    return int(max([*sides, middle]) ** 2)


class PlainProduct:
    """Attention as softmax(Q K^T / sqrt(d)) V, written out (Vaswani et al. 2017); a processor for diffusers.

    `torch.nn.functional.scaled_dot_product_attention` has a path for this too, which looks through every row for one
    that is masked as a whole.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The attention's output, (B, N, C), for hidden_states (B, N, C) and what they attend to, (B, L, D)."""
        if attention_mask is not None:
            return AttnProcessor2_0()(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        told = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        (batch, positions, _), length, heads = hidden_states.shape, told.shape[1], attn.heads
        query, key, value = attn.to_q(hidden_states), attn.to_k(told), attn.to_v(told)
        width = query.shape[-1] // heads
        query = query.view(batch, positions, heads, width).transpose(1, 2).reshape(-1, positions, width)
        key = key.view(batch, length, heads, width).permute(0, 2, 3, 1).reshape(-1, width, length)
        value = value.view(batch, length, heads, width).transpose(1, 2).reshape(-1, length, width)
        scores = torch.baddbmm(query.new_empty(1, 1, 1), query, key, beta=0, alpha=attn.scale)
        seen = torch.bmm(scores.softmax(dim=-1), value).view(batch, heads, positions, width)
        dense, dropout = attn.to_out
        result: torch.Tensor = dropout(dense(seen.transpose(1, 2).reshape(batch, positions, -1)))
        return result


_PLAIN = PlainProduct()  # always this one: to torch.compile another is another function


@contextmanager
def fast_attention(unet: Any, device: torch.device) -> Iterator[None]:
    """Within it, attention is computed in the way that suits this U-Net on this device.

    A GPU, or a U-Net of longer rows (Stable Diffusion's 64 x 64), keeps diffusers' choice, and so does an attention
    with a processor of its own (of an adapter, say), or with more to it than product, softmax and projection.
    """
    changed = []
    if device.type == "cpu" and most_positions(unet) <= SHORT:
        changed = [part for part in unet.modules() if isinstance(part, Attention) and _is_plain(part)]
    kept = [part.processor for part in changed]
    for part in changed:
        part.processor = _PLAIN
    try:
        yield
    finally:
        for part, processor in zip(changed, kept, strict=True):
            part.processor = processor


def _is_plain(part: Attention) -> bool:
    more = ("group_norm", "spatial_norm", "norm_cross", "norm_q", "norm_k", "add_k_proj", "residual_connection")
    return type(part.processor) is AttnProcessor2_0 and not any(getattr(part, name, None) for name in more) and (
        part.rescale_output_factor == 1
    )  # fmt: skip
