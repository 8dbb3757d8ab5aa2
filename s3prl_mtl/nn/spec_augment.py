"""SpecAugment on features: time warping, time masks and channel masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from s3prl_mtl.errors import UserError
from s3prl_mtl.nn.transfer import to_device


def _draw(low: int, high: int, generator: Generator | None) -> int:
    """A random integer from low to high - 1."""
    return int(torch.randint(low, max(high, low + 1), (), generator=generator))


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
        warped: list[Tensor] = []
        masks: list[Tensor] = []
        for utterance in features:
            frames, channels = utterance.shape
            if self.apply_time_warp and frames > 2 * self.time_warp_window > 0:
                utterance = self._warp(utterance, generator)
            warped.append(utterance)
            number = self.num_freq_mask if self.apply_freq_mask else 0
            masks.append(self._spans(channels, number, *self.freq_mask_width_range, generator))
            number = self.num_time_mask if self.apply_time_mask else 0
            masks.append(self._spans(frames, number, *self.time_mask_width_range, generator))
        # A single copy to the GPU.
        hidden = to_device(torch.cat(masks), features[0].device).split([*map(len, masks)])
        parts = zip(warped, hidden[::2], hidden[1::2], strict=True)
        return [own.masked_fill(freq | time.unsqueeze(1), 0.0) for own, freq, time in parts]

    def _warp(self, utterance: Tensor, generator: Generator | None) -> Tensor:
        """Stretch the part before a random frame and squeeze the rest, or the reverse."""
        frames, channels = utterance.shape
        window = self.time_warp_window
        center = _draw(window, frames - window, generator)
        warped = _draw(center - window, center + window, generator) + 1
        parts = []
        for part, length in ((utterance[:center], warped), (utterance[center:], frames - warped)):
            image = part[None, None]
            resized = F.interpolate(
                image, (length, channels), mode=self.time_warp_mode, align_corners=False
            )
            parts.append(resized[0, 0])
        return torch.cat(parts)

    @staticmethod
    def _spans(size: int, number: int, low: int, high: int, generator: Generator | None) -> Tensor:
        """True inside `number` random spans of positions: (size,), bool."""
        inside = torch.zeros(size, dtype=torch.bool)
        for _ in range(number):
            width = min(_draw(low, high, generator), size)
            start = _draw(0, size - width, generator)
            inside[start : start + width] = True
        return inside
