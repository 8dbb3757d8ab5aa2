"""Greedy CTC decoding, and the frames of decoded tokens."""

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
    return [token for token, _, _ in align_ctc(frame_tokens, blank)]


def align_ctc(frame_tokens: Tensor | Iterable[int], blank: int = 0) -> list[tuple[int, int, int]]:
    """The frames of each decoded token.

    The most likely path through the frames is also the most likely alignment of the tokens that it
    decodes to: any other alignment of them is a path, too.

    Args:
        frame_tokens: the token of each frame on a path (T,).
        blank: index of the blank.

    Returns:
        (token, start, end) for each token of :func:`collapse_ctc`: its first frame, and the one
        after its last.
    """
    tokens = frame_tokens.tolist() if isinstance(frame_tokens, Tensor) else frame_tokens
    found = []
    end = 0
    for token, run in groupby(tokens):
        start, end = end, end + sum(1 for _ in run)
        if token != blank:
            found.append((token, start, end))
    return found
