"""Multi-head attention within each utterance, on packed frames."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_mtl.upstreams.hubert.config import HubertConfig
from s3prl_mtl.upstreams.hubert.dropout import dropout
from s3prl_mtl.upstreams.hubert.layers import Pair, make_linear
from s3prl_mtl.upstreams.hubert.segments import LengthGroup, Segments, on_gpu


class SelfAttention(nn.Module):
    """Multi-head attention; parameter names are fairseq's ``self_attn``."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        width = config.encoder_embed_dim
        self.heads = config.encoder_attention_heads
        self.dropout = config.attention_dropout
        self.k_proj = make_linear(width, width)
        self.v_proj = make_linear(width, width)
        self.q_proj = make_linear(width, width)
        self.out_proj = make_linear(width, width)

    def projections(self) -> list[nn.Linear]:
        """The projections of queries, keys, values and outputs."""
        return [self.q_proj, self.k_proj, self.v_proj, self.out_proj]

    def forward(self, x: Tensor, segments: Segments, projections: Sequence[Pair]) -> Tensor:
        """Packed frames ``(sum T, D)`` -> ``(sum T, D)``.

        Args:
            x: the frames.
            segments: the utterances.
            projections: weight and bias of each of :meth:`projections`, in the precision of `x`.
        """
        *inputs, output = projections
        if on_gpu(x):
            weight, bias = (torch.cat(part) for part in zip(*inputs, strict=True))
            rows = F.linear(x, weight, bias).chunk(3, dim=1)
            attend = attend_by_offsets
        else:
            rows = tuple(F.linear(x, *projection) for projection in inputs)
            attend = attend_in_groups
        query, key, value = (part.unflatten(1, (self.heads, -1)) for part in rows)
        probability = self.dropout if self.training else 0.0
        return F.linear(attend(query, key, value, segments, probability).flatten(1), *output)


def attend_by_offsets(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, probability: float
) -> Tensor:
    """Attention by one kernel of a GPU over all utterances.

    torch's public functions for packed sequences either have no dropout (``varlen_attn``) or take
    nested tensors, whose Python code takes longer than the kernels. These are the operators that
    nested tensors call.

    Args:
        query: ``(sum T, H, d)``, like key and value.
        key: of the frames.
        value: of the frames.
        segments: the utterances.
        probability: of dropping an attention weight. In half precision the kernel compares 8
            random bits, so the probability is rounded to a multiple of 1 / 256.

    Returns:
        ``(sum T, H, d)``.
    """
    offsets, longest, width = segments.offsets, segments.lengths[0], query.shape[-1]
    scale = 1 / math.sqrt(width)
    # Rows of both kernels are multiples of 16 bytes.
    rows = [F.pad(x, (0, -width % 8)) if width % 8 else x for x in (query, key, value)]
    if has_flash_attention(query):
        attended, *_ = torch.ops.aten._flash_attention_forward(
            *(*rows, offsets, offsets, longest, longest),
            dropout_p=rounded_probability(probability),
            is_causal=False,
            return_debug_mask=False,
            scale=scale,
        )
    else:
        # This kernel has no bfloat16 on the GPUs that lack the other one.
        rows = [x.float() if x.dtype == torch.bfloat16 else x for x in rows]
        attended, *_ = torch.ops.aten._efficient_attention_forward(
            *(x[None] for x in rows),
            *(None, offsets, offsets, longest, longest),
            dropout_p=probability,
            custom_mask_type=0,
            compute_log_sumexp=torch.is_grad_enabled(),
            scale=scale,
        )
        attended = attended[0].to(query.dtype)
    return attended[..., :width]


def has_flash_attention(rows: Tensor) -> bool:
    """Whether the GPU has torch's fastest kernel for this precision (Ampere and later)."""
    half = rows.dtype in (torch.bfloat16, torch.float16)
    return half and torch.cuda.get_device_capability(rows.device) >= (8, 0)


def rounded_probability(probability: float) -> float:
    """The multiple of 1 / 256 with which flash attention drops weights without a bias.

    The kernel keeps a weight if 8 random bits are at most ``floor((1 - probability) * 255)``, but
    divides by ``1 - probability``: with 0.1 the mean of its outputs would be 0.2 % too small.
    """
    return 1 - round((1 - probability) * 256) / 256


def attend_in_groups(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, probability: float
) -> Tensor:
    """Attention over padded groups of utterances of similar length; see `attend_by_offsets`."""
    heads = query.shape[1]
    outputs = []
    parts = zip(*(segments.split(rows.flatten(1)) for rows in (query, key, value)), strict=True)
    for group, part in zip(segments.groups, parts, strict=True):
        query, key, value = (
            group.pad(rows).unflatten(2, (heads, -1)).transpose(1, 2) for rows in part
        )
        attended = _attend(query, key, value, group, probability)
        outputs.append(group.unpad(attended.transpose(1, 2).flatten(2)))
    return torch.cat(outputs).unflatten(1, (heads, -1))


def _attend(
    query: Tensor, key: Tensor, value: Tensor, group: LengthGroup, probability: float
) -> Tensor:
    """``(B, H, T, d)`` each -> ``(B, H, T, d)``."""
    mask = None if group.mask is None else group.mask[:, None, None, :]
    if probability == 0:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    # On a CPU torch's own attention with dropout does the same, with slower random numbers.
    weights = (query / math.sqrt(query.shape[-1])) @ key.transpose(2, 3)
    if mask is not None:
        weights = weights.masked_fill(~mask, -math.inf)
    return dropout(weights.softmax(-1), probability, training=True) @ value
