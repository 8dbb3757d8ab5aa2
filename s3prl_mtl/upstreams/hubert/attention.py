"""Multi-head attention within each utterance, on packed frames."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_mtl.upstreams.hubert.config import HubertConfig
from s3prl_mtl.upstreams.hubert.dropout import dropout
from s3prl_mtl.upstreams.hubert.layers import linear, make_linear
from s3prl_mtl.upstreams.hubert.segments import LengthGroup, Segments


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

    def forward(self, x: Tensor, segments: Segments) -> Tensor:
        """Packed frames ``(sum T, D)`` -> ``(sum T, D)``."""
        query, key, value = (
            linear(x, projection).unflatten(1, (self.heads, -1))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attend = attend_in_groups if x.device.type == "cpu" else attend_by_offsets
        probability = self.dropout if self.training else 0.0
        return linear(attend(query, key, value, segments, probability).flatten(1), self.out_proj)


def attend_by_offsets(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, probability: float
) -> Tensor:
    """Attention by one kernel over all utterances (a GPU's flash attention, which drops weights).

    Args:
        query: ``(sum T, H, d)``, like key and value.
        key: of the frames.
        value: of the frames.
        segments: the utterances.
        probability: of dropping an attention weight.

    Returns:
        ``(sum T, H, d)``.
    """
    longest, shortest = segments.lengths[0], segments.lengths[-1]

    def nested(rows: Tensor) -> Tensor:
        """``(utterances, H, T, d)``, T ragged."""
        by_utterance = torch.nested.nested_tensor_from_jagged(
            rows, segments.offsets, min_seqlen=shortest, max_seqlen=longest
        )
        return by_utterance.transpose(1, 2)

    attended = F.scaled_dot_product_attention(
        nested(query), nested(key), nested(value), dropout_p=probability
    )
    return attended.transpose(1, 2).values()


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
