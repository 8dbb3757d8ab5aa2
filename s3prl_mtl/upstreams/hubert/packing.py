"""Convert packed frames to padded groups of utterances of similar length, and back.

Frame-wise operations of the encoder work on packed frames ``(sum T, D)``. Operations across frames
(attention, the positional convolution) work on padded groups of utterances of similar length:

    packed   aaaaaaa bbbbbbb cccccc | dd dd
    groups   aaaaaaa                  dd
             bbbbbbb                  dd
             cccccc0
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class LengthGroup:
    """Consecutive utterances of the packed frames, to be padded to the longest.

    Args:
        lengths: frames of its utterances, in decreasing order.
        slots: index of each frame in the padded group flattened to ``(B * T_max,)``; None if all
            lengths are equal, so that padding and unpadding are views.
        mask: ``(B, T_max)``, True at frames; None if all lengths are equal.
    """

    lengths: list[int]
    slots: Tensor | None
    mask: Tensor | None

    @property
    def frames(self) -> int:
        return sum(self.lengths)

    def pad(self, rows: Tensor) -> Tensor:
        """``(frames, D)`` of this group -> ``(B, T_max, D)``, padded with zeros."""
        size = (len(self.lengths), self.lengths[0], rows.shape[1])
        if self.slots is None:
            return rows.view(size)
        padded = rows.new_zeros(size[0] * size[1], size[2])
        return padded.index_copy(0, self.slots, rows).view(size)

    def unpad(self, padded: Tensor) -> Tensor:
        """``(B, T_max, D)`` -> ``(frames, D)``, without padding."""
        rows = padded.reshape(-1, padded.shape[-1])
        return rows if self.slots is None else rows.index_select(0, self.slots)


def split_by_group(packed: Tensor, groups: list[LengthGroup]) -> Sequence[Tensor]:
    """``(sum T, D)`` of the whole batch -> ``(frames, D)`` of each group.

    A single split, because the gradient of each slice would be as large as the whole batch.
    """
    return [packed] if len(groups) == 1 else packed.split([group.frames for group in groups])


def group_by_length(
    lengths: list[int], max_padding: float, device: torch.device
) -> list[LengthGroup]:
    """Divide utterances, sorted longest first, into groups of similar length.

    Args:
        lengths: frames of each utterance in packed order, decreasing.
        max_padding: maximum padding of an utterance, as a fraction of the longest of its group.
        device: device of the index tensors.
    """
    groups: list[LengthGroup] = []
    first = 0
    while first < len(lengths):
        longest = lengths[first]
        after = first + 1
        while after < len(lengths) and lengths[after] >= longest * (1.0 - max_padding):
            after += 1
        group_lengths = lengths[first:after]
        slots = mask = None
        if group_lengths[-1] != longest:
            frame_counts = torch.tensor(group_lengths)
            mask = torch.arange(longest) < frame_counts[:, None]
            slots = mask.flatten().nonzero()[:, 0].to(device, non_blocking=True)
            mask = mask.to(device, non_blocking=True)
        groups.append(LengthGroup(group_lengths, slots, mask))
        first = after
    return groups
