"""Random spans of masked positions, drawn as in fairseq's pre-training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from s3prl_mtl.errors import UserError

Selection = Literal["static", "uniform", "normal", "poisson"]


@dataclass(frozen=True)
class SpanMasking:
    """Number and length of masked spans, with the names and meanings of fairseq.

    Spans may overlap unless `no_overlap`, and end at the end of the sequence: the masked share is
    below `prob`.

    Args:
        prob: sum of the lengths of all spans, as a share of the length of the sequence; rounded to
            whole spans at random.
        length: of a span.
        selection: "static": all spans have `length`; "uniform": from `other` to twice `length`;
            "normal": with mean `length` and standard deviation `other`; "poisson": with mean
            `length`.
        other: see `selection`.
        no_overlap: whether spans never overlap; spans without room are left out.
        min_space: unmasked positions between spans that do not overlap, at least.
        min_spans: fewest spans of a sequence.

    Raises:
        UserError: a value out of range.
    """

    prob: float
    length: int = 10
    selection: str = "static"
    other: float = 0.0
    no_overlap: bool = False
    min_space: int = 1
    min_spans: int = 0

    def __post_init__(self) -> None:
        valid = {
            "prob": self.prob >= 0,
            "length": self.length >= 1,
            "selection": self.selection in get_args(Selection),
            "other": self.other >= 0,
            "min_space": self.min_space >= 0,
        }
        for name, is_valid in valid.items():
            if not is_valid:
                raise UserError(
                    f"The {name} of masked spans is {getattr(self, name)!r}.",
                    where=name,
                    fix="Spans have 0 <= prob, 1 <= length, 0 <= other, 0 <= min_space; selection "
                    f"is one of {', '.join(get_args(Selection))}.",
                    code="invalid-value",
                )

    def draw(self, size: int, generator: np.random.RandomState) -> Tensor:
        """The masked positions of a sequence, bool (size,).

        With fairseq's settings and the state of numpy's generator there, it is the mask that
        fairseq 0.12.2 draws for a batch of one without padding (`compute_mask_indices`). In a
        larger batch fairseq unmasks positions until all sequences have equally many; here a mask
        does not depend on the batch.

        Args:
            size: positions of the sequence, at least 1.
            generator: its stream is the same in every version of numpy.
        """
        count = int(self.prob * size / self.length + generator.rand())
        lengths = self._lengths(max(self.min_spans, count), generator)
        mask = torch.zeros(size, dtype=torch.bool)
        if not lengths:
            return mask
        if not any(lengths):
            lengths[0] = min(self.length, size - 1)
        place = self._apart if self.no_overlap else self._anywhere
        for start, length in place(size, lengths, generator):
            mask[start : start + length] = True
        return mask

    def _lengths(self, count: int, generator: np.random.RandomState) -> list[int]:
        if self.selection == "static":
            return [self.length] * count
        if self.selection == "uniform":
            return list(generator.randint(int(self.other), 2 * self.length + 1, size=count))
        if self.selection == "normal":
            drawn = generator.normal(self.length, self.other, size=count)
            return [max(1, round(float(length))) for length in drawn]
        return list(generator.poisson(self.length, size=count))

    def _anywhere(
        self, size: int, lengths: Sequence[int], generator: np.random.RandomState
    ) -> list[tuple[int, int]]:
        """Start and length of each span; the starts differ."""
        last = min(lengths)
        if size - last <= len(lengths):
            last = size - len(lengths) - 1
        starts = generator.choice(size - last, len(lengths), replace=False)
        return list(zip(starts.tolist(), lengths, strict=True))

    def _apart(
        self, size: int, lengths: Sequence[int], generator: np.random.RandomState
    ) -> list[tuple[int, int]]:
        """Start and length of each span, the longest first, in what earlier ones leave free."""
        shortest = min(lengths)
        free = [(0, size)]
        spans = []
        for length in sorted(lengths, reverse=True):
            # A span never ends at the end of a free part: fairseq draws its start below that.
            needed = max(length + self.min_space, length + 1)
            room = np.array([end - start if end - start >= needed else 0 for start, end in free])
            if not room.any():
                break
            chosen = generator.choice(len(free), p=room / room.sum())
            start, end = free.pop(chosen)
            first = int(generator.randint(start, end - length))
            spans.append((first, length))
            if first - start - self.min_space >= shortest:
                free.append((start, first - self.min_space + 1))
            if end - first - length - self.min_space > shortest:
                free.append((first + length + self.min_space, end))
        return spans
