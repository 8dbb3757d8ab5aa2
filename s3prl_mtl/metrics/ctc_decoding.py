"""Greedy CTC decoding."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from torch import Tensor


def collapse_ctc(frame_tokens: Tensor | Iterable[int], blank: int = 0) -> list[int]:
    """Greedy CTC decoding: merge runs of equal tokens, then remove blanks.

    Args:
        frame_tokens: the most likely token of each frame (T,).
        blank: index of the blank.

    Reference: Graves et al., "Connectionist temporal classification", ICML 2006, section 3.2.
    """
    tokens = frame_tokens.tolist() if isinstance(frame_tokens, Tensor) else frame_tokens
    return [token for token, _ in groupby(tokens) if token != blank]
