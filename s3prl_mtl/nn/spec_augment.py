"""SpecAugment on features: time warping, time masks and channel masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from s3prl_mtl.errors import UserError
from s3prl_mtl.nn.transfer import to_device


def _integers(draws: Tensor, low: Tensor | int, high: Tensor | int) -> Tensor:
    """Integers from low to high - 1, at least low, for draws from [0, 1)."""
    return low + (draws * torch.as_tensor(high - low).clamp(min=1)).long()


def _width_range(width: int | Sequence[int], key: str) -> tuple[int, int]:
    """Smallest width, and exclusive upper bound."""
    bounds = (0, width) if isinstance(width, int) else tuple(width)
    if len(bounds) != 2 or not 0 <= bounds[0] < bounds[1]:
        raise UserError(
            f"{key} is {width!r}, which is not a range of widths.",
            where=f"specaug.{key}",
            fix="Give two integers, the second greater than the first, such as [0, 40].",
            code="invalid-value",
        )
    return bounds[0], bounds[1]


TIME_WARP_MODES = ("bicubic", "bilinear")


class SpecAugment(nn.Module):
    """Mask and warp features in training mode; return them unchanged in evaluation mode.

    Each utterance is augmented independently: time warp, then channel masks, then time masks,
    both filled with zeros. Random numbers come from a CPU generator on every device.

    Defaults are those of the multi-task branch; names are those of s3prl's `specaug` block.

    Args:
        apply_time_warp: whether to warp time.
        time_warp_window: largest shift of the warp, in frames; utterances of at most twice this
            length are not warped.
        time_warp_mode: `bicubic` or `bilinear` interpolation.
        apply_freq_mask: whether to mask channels.
        freq_mask_width_range: smallest width (inclusive) and bound (exclusive), in channels.
        num_freq_mask: channel masks per utterance.
        apply_time_mask: whether to mask frames.
        time_mask_width_range: smallest width (inclusive) and bound (exclusive), in frames.
        num_time_mask: time masks per utterance.

    Raises:
        UserError: invalid range of widths, count or interpolation.

    Reference: Park et al., "SpecAugment", Interspeech 2019.
    """

    def __init__(
        self,
        apply_time_warp: bool = True,
        time_warp_window: int = 5,
        time_warp_mode: str = "bicubic",
        apply_freq_mask: bool = True,
        freq_mask_width_range: int | Sequence[int] = (0, 50),
        num_freq_mask: int = 4,
        apply_time_mask: bool = True,
        time_mask_width_range: int | Sequence[int] = (0, 40),
        num_time_mask: int = 2,
    ) -> None:
        super().__init__()
        if time_warp_mode not in TIME_WARP_MODES:
            raise UserError(
                f"time_warp_mode is {time_warp_mode!r}.",
                where="specaug.time_warp_mode",
                fix="Use 'bicubic' or 'bilinear'.",
                code="invalid-value",
            )
        counts = {
            "time_warp_window": time_warp_window,
            "num_freq_mask": num_freq_mask,
            "num_time_mask": num_time_mask,
        }
        for key, count in counts.items():
            if count < 0:
                raise UserError(
                    f"{key} is {count}.",
                    where=f"specaug.{key}",
                    fix="Set 0 or more.",
                    code="invalid-value",
                )
        self.apply_time_warp = apply_time_warp
        self.time_warp_window = time_warp_window
        self.time_warp_mode = time_warp_mode
        self.apply_freq_mask = apply_freq_mask
        self.freq_mask_width_range = _width_range(freq_mask_width_range, "freq_mask_width_range")
        self.num_freq_mask = num_freq_mask
        self.apply_time_mask = apply_time_mask
        self.time_mask_width_range = _width_range(time_mask_width_range, "time_mask_width_range")
        self.num_time_mask = num_time_mask

    def forward(
        self, features: Sequence[Tensor], generator: Generator | None = None
    ) -> list[Tensor]:
        """New features of the same shapes; the arguments are not modified.

        Args:
            features: B tensors (T_i, D).
            generator: CPU generator of random numbers; default: torch's global one.
        """
        if not self.training or not features:
            return list(features)
        sizes = [len(utterance) for utterance in features]
        # All utterances at once: the operations on each would keep a GPU waiting for the CPU.
        joined = torch.cat(list(features))
        device, channels = joined.device, joined.shape[1]
        lengths = torch.tensor(sizes)
        owner = torch.arange(len(sizes)).repeat_interleave(lengths)
        time = torch.arange(len(joined)) - (lengths.cumsum(0) - lengths)[owner]
        if self.apply_time_warp:
            rows, weights = self._warp(lengths, owner, time, generator)
            pairs = zip(
                to_device(rows, device), to_device(weights.to(joined.dtype), device), strict=True
            )
            unchanged, joined = joined, torch.zeros_like(joined)
            for row, weight in pairs:
                joined = torch.addcmul(joined, unchanged.index_select(0, row), weight[:, None])
        number = self.num_freq_mask if self.apply_freq_mask else 0
        size = torch.full_like(lengths, channels)
        starts, ends = self._spans(size, number, *self.freq_mask_width_range, generator)
        in_channels = _inside(torch.arange(channels), starts[:, None], ends[:, None])
        number = self.num_time_mask if self.apply_time_mask else 0
        starts, ends = self._spans(lengths, number, *self.time_mask_width_range, generator)
        in_time = _inside(time, starts[owner], ends[owner])
        hidden = to_device(in_channels, device).index_select(0, to_device(owner, device))
        hidden = hidden | to_device(in_time, device)[:, None]
        return list(joined.masked_fill(hidden, 0.0).split(sizes))

    def _warp(
        self, lengths: Tensor, owner: Tensor, time: Tensor, generator: Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Stretch the part before a random frame and squeeze the rest, or the reverse.

        Args:
            lengths: of the utterances (B,).
            owner: the utterance of each frame of the joined utterances (N,).
            time: the position of each frame in its utterance (N,).
            generator: of random numbers.

        Returns:
            frames of the joined utterances to sum (K, N), and their weights (K, N).
        """
        draws = torch.rand(2, len(lengths), generator=generator, dtype=torch.float64)
        window = self.time_warp_window
        center = _integers(draws[0], window, lengths - window)
        moved = _integers(draws[1], center - window, center + window) + 1
        is_warped = (lengths > 2 * window) & (window > 0)
        center, moved = torch.where(is_warped, torch.stack([center, moved]), lengths)
        is_rest = time >= moved[owner]
        begin = torch.where(is_rest, center[owner], 0)
        size = torch.where(is_rest, lengths[owner], center[owner]) - begin
        new_begin = torch.where(is_rest, moved[owner], 0)
        new_size = torch.where(is_rest, lengths[owner], moved[owner]) - new_begin
        # Positions are those of the middles of frames.
        source = (time - new_begin + 0.5) * (size / new_size.double()) - 0.5
        interpolate = _cubic if self.time_warp_mode == "bicubic" else _linear
        steps, weights = interpolate(source)
        rows = steps.minimum(size - 1).clamp(min=0)
        first = torch.arange(len(time)) - time
        return first + begin + rows, weights

    @staticmethod
    def _spans(
        sizes: Tensor, number: int, low: int, high: int, generator: Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Starts and ends of `number` random spans of positions below each size (B, number)."""
        draws = torch.rand(2, len(sizes), number, generator=generator, dtype=torch.float64)
        widths = _integers(draws[0], low, high).minimum(sizes[:, None])
        starts = _integers(draws[1], 0, sizes[:, None] - widths)
        return starts, starts + widths


def _inside(positions: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    """Whether positions (..., P) are inside any of the spans (..., P or 1, spans)."""
    at = positions[..., None]
    return ((at >= starts) & (at < ends)).any(dim=-1)


def _linear(source: Tensor) -> tuple[Tensor, Tensor]:
    """Neighbours of positions between frames (N,), and their weights: (2, N)."""
    source = source.clamp(min=0)
    before = source.floor()
    after = source - before
    return torch.stack([before, before + 1]).long(), torch.stack([1 - after, after])


def _cubic(source: Tensor) -> tuple[Tensor, Tensor]:
    """Neighbours of positions between frames (N,), and their weights: (4, N).

    Keys, "Cubic convolution interpolation for digital image processing", 1981, with a = -0.75 as
    torch's bicubic interpolation.
    """
    a = -0.75
    before = source.floor()
    steps = torch.arange(-1, 3)[:, None]
    x = (source - before - steps).abs()
    inner = ((a + 2) * x - (a + 3)) * x * x + 1
    outer = a * (((x - 5) * x + 8) * x - 4)
    return before.long() + steps, torch.where(x <= 1, inner, outer)
