"""Positions of the utterances of a batch in its packed frames, for operations across frames.

Frame-wise operations of the encoder work on packed frames ``(sum T, D)`` independent of
utterances. Attention works on padded groups of utterances of similar length on a CPU, and on
offsets on a GPU; the positional convolution works on one signal with zeros between utterances:

    packed   aaaaaaa bbbbbbb cccccc | dd dd
    groups   aaaaaaa                  dd
             bbbbbbb                  dd
             cccccc0
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from s3prl_mtl.nn.transfer import to_device

# Maximum padding in a group of utterances in attention, as a fraction of the longest. On a CPU, 0.1
# takes 0.87 of the time of 0 (hubert_tiny, 66 utterances of 1 to 3 s).
MAX_PADDING = 0.1


def on_gpu(x: Tensor) -> bool:
    """Whether the kernels of a GPU are used: few and large, since it waits for Python."""
    return x.device.type == "cuda"


def rounded_length(length: int, per_octave: int) -> int:
    """The next multiple of a fraction of the largest power of 2 that is not above the length.

    Libraries choose or plan a kernel for each shape that they meet: few should occur.

    Args:
        length: any.
        per_octave: lengths between two powers of 2.
    """
    step = max(1, 2 ** (length.bit_length() - 1) // per_octave)
    return -(-length // step) * step


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


class Segments:
    """The utterances of packed frames.

    Args:
        lengths: frames of each utterance, longest first.
        device: of the index tensors.
        unused: further frames, which belong to no utterance.

    Attributes:
        lengths: the unused frames are utterances too, not longer than the longest one.
    """

    def __init__(self, lengths: list[int], device: torch.device, unused: int = 0) -> None:
        # A symbolic length of an export cannot divide.
        whole, rest = divmod(unused, lengths[0]) if unused else (0, 0)
        self.lengths = [*lengths, *[lengths[0]] * whole, *([rest] if rest else [])]
        self.device = device

    @cached_property
    def on_device(self) -> Tensor:
        """The lengths on the device, ``(utterances,)``, int64."""
        return to_device(torch.tensor(self.lengths), self.device)

    @cached_property
    def offsets(self) -> Tensor:
        """``(utterances + 1,)``, int32: the first frame of each utterance, and the number of
        frames.
        """
        return F.pad(self.on_device.cumsum(0, dtype=torch.int32), (1, 0))

    @cached_property
    def groups(self) -> list[LengthGroup]:
        """The utterances in groups of similar length."""
        groups: list[LengthGroup] = []
        first = 0
        while first < len(self.lengths):
            longest = self.lengths[first]
            after = first + 1
            while after < len(self.lengths) and self.lengths[after] >= longest * (
                1.0 - MAX_PADDING
            ):
                after += 1
            lengths = self.lengths[first:after]
            slots = mask = None
            if lengths[-1] != longest:
                mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
                slots = to_device(mask.flatten().nonzero()[:, 0], self.device)
                mask = to_device(mask, self.device)
            groups.append(LengthGroup(lengths, slots, mask))
            first = after
        return groups

    def split(self, packed: Tensor) -> Sequence[Tensor]:
        """``(sum T, D)`` of the whole batch -> ``(frames, D)`` of each group.

        A single split, because the gradient of each slice would be as large as the whole batch.
        """
        groups = self.groups
        return [packed] if len(groups) == 1 else packed.split([group.frames for group in groups])

    def spaced(self, gap: int) -> tuple[Tensor, int]:
        """Positions of the frames in a signal with zeros before each utterance and at its end.

        Args:
            gap: number of zeros.

        Returns:
            the position of each packed frame, ``(sum T,)``; the length of the signal.
        """
        starts = torch.arange(1, len(self.lengths) + 1, device=self.device) * gap
        total = sum(self.lengths)
        # The size is given, so that no one waits for the GPU to count.
        shift = torch.repeat_interleave(starts, self.on_device, output_size=total)
        positions = torch.arange(total, device=self.device) + shift
        return positions, total + gap * (len(self.lengths) + 1)
