"""Error rates of transcripts: edits over the length of the references."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from s3prl_mtl.errors import UserError

try:
    from editdistance import eval as edit_distance
except ImportError:  # Python 3.13, for which it has no wheel
    from rapidfuzz.distance.Levenshtein import distance as edit_distance


def token_error_rate(
    references: Sequence[Sequence[Hashable]], hypotheses: Sequence[Sequence[Hashable]]
) -> float:
    """All edits over all reference tokens, a fraction: UER, PER, or WER of lists of words.

    Edits are substitutions, insertions and deletions, the fewest that make a reference of its
    hypothesis. Can exceed 1.

    Args:
        references: a sequence of tokens for each utterance.
        hypotheses: the same, in the same order.

    Raises:
        ValueError: the two differ in number.
        UserError: the references hold no token.

    Source: Levenshtein distance; SUPERB's scoring.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references, but {len(hypotheses)} hypotheses")
    total = sum(len(reference) for reference in references)
    if total == 0:
        raise UserError(
            "The error rate is undefined: all references are empty.",
            fix="Check the transcripts of the split that is scored.",
            code="undefined-metric",
        )
    pairs = zip(references, hypotheses, strict=True)
    return sum(edit_distance(reference, hypothesis) for reference, hypothesis in pairs) / total


def word_error_rate(
    references: Sequence[str], hypotheses: Sequence[str], *, separator: str | None = None
) -> float:
    """`token_error_rate` of the words of each string.

    Args:
        references: one string for each utterance.
        hypotheses: the same, in the same order.
        separator: what parts words, as in `str.split`. The default takes any run of white space;
            `" "` takes every single space, so that two in a row hold an empty word between them,
            which is how SUPERB scores slot filling and phone recognition.

    Raises:
        ValueError: the two differ in number.
        UserError: the references hold no word.
    """
    return token_error_rate(
        [reference.split(separator) for reference in references],
        [hypothesis.split(separator) for hypothesis in hypotheses],
    )


def character_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """`token_error_rate` of the characters of each string, spaces included.

    Raises:
        ValueError: the two differ in number.
        UserError: the references hold no character.
    """
    return token_error_rate(references, hypotheses)
