"""Beam search over CTC outputs with a lexicon and an n-gram language model.

The search is flashlight's (Kahn et al., "Flashlight", ICML 2022), the language model KenLM's
(Heafield, "KenLM", WMT 2011): those of SUPERB's second number for `asr`.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from downstream_plugins.asr.corpus import WORD_BOUNDARY, spell
from s3prl_mtl.data import read_lines
from s3prl_mtl.errors import UserError, nearest, require_packages

logger = logging.getLogger(__name__)

EXTRA = "lm"
"""The extra of this package that installs flashlight with KenLM."""


@dataclass(frozen=True)
class DecoderSettings:
    """Settings of decoding with a language model. The defaults are SUPERB's.

    Args:
        lm: an n-gram model: an ARPA file, also compressed (`.gz`), or a binary of KenLM.
        lexicon: the words that are recognised, see :func:`read_lexicon`.
        beam: hypotheses that are kept after each frame.
        beam_threshold: and only those whose score is at most this much below the best one.
        beam_tokens: symbols that each hypothesis is continued with, the most likely ones of a
            frame; None for all.
        lm_weight: of the decadic logarithm of the language model's probability, relative to the
            natural logarithm of the probability of a frame's symbol.
        word_score: added for each word.
        splits: that are decoded; None for all that are evaluated. Training batches are decoded
            only where the training split is named.
    """

    lm: str
    lexicon: str
    beam: int = 5
    beam_threshold: float = 25.0
    beam_tokens: int | None = None
    lm_weight: float = 2.0
    word_score: float = -1.0
    splits: tuple[str, ...] | None = None

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], where: str) -> DecoderSettings | None:
        """The checked settings; None without a language model.

        Args:
            settings: arguments by name; those that are null, or left out, have their defaults.
            where: the path of the settings in the config, for errors.

        Raises:
            UserError: a key is unknown, or a value is missing, of the wrong type or out of range.
        """
        if not isinstance(settings, Mapping):
            raise _wrong(where, settings, "a mapping", "wrong-type")
        known = [field.name for field in fields(cls)]
        for key in settings:
            if key not in known:
                raise UserError(
                    f"Unknown key {key!r}.",
                    where=f"{where}.{key}",
                    fix=nearest(str(key), known),
                    code="unknown-key",
                )
        given = {key: value for key, value in settings.items() if value is not None}
        files = [key for key in ("lm", "lexicon") if key in given]
        if not files:
            return None
        if len(files) == 1:
            (missing,) = {"lm", "lexicon"} - set(files)
            raise UserError(
                "Decoding with a language model needs `lm` and `lexicon`.",
                where=f"{where}.{missing}",
                fix="Name both files, or neither to decode greedily.",
                code="missing-option",
            )
        for key, value in given.items():
            _check(key, value, f"{where}.{key}")
        if "splits" in given:
            given["splits"] = tuple(given["splits"])
        return cls(**given)

    def __str__(self) -> str:
        return (
            f"beam search with {Path(self.lm).name} (words of {Path(self.lexicon).name}, beam "
            f"{self.beam}, weight {self.lm_weight:g}, word score {self.word_score:g})"
        )


def _check(key: str, value: Any, where: str) -> None:
    if key in ("lm", "lexicon"):
        if not isinstance(value, str):
            raise _wrong(where, value, "the path of a file", "wrong-type")
    elif key in ("beam", "beam_tokens"):
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong(where, value, "an integer", "wrong-type")
        if value < 1:
            raise _wrong(where, value, "at least 1", "invalid-value")
    elif key == "splits":
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise _wrong(where, value, "a list of names", "wrong-type")
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(where, value, "a number", "wrong-type")
    elif not math.isfinite(value) or (key == "beam_threshold" and value < 0):
        expected = "finite and not negative" if key == "beam_threshold" else "finite"
        raise _wrong(where, value, expected, "invalid-value")


def _wrong(where: str, value: object, expected: str, code: str) -> UserError:
    return UserError(f"{value!r} must be {expected}.", where=where, code=code)


@dataclass(frozen=True)
class Hypothesis:
    """A transcript of an utterance.

    Args:
        words: in the spelling of the lexicon.
        score: `log_probability` + `lm_weight` · lg P(words) + `word_score` · number of words.
        log_probability: natural logarithm of the probability of the frames' symbols.
        frame_tokens: the symbol of each frame, indices (T,).
    """

    words: tuple[str, ...]
    score: float
    log_probability: float
    frame_tokens: tuple[int, ...]


class BeamSearch:
    """Finds the best transcripts of an utterance.

    The score of a transcript is that of its best alignment to the frames (Viterbi). A process reads
    a language model once, however many searches use it.

    Args:
        settings: files and weights.
        symbols: the vocabulary of the head by index. The first one is the blank.
        end: a symbol of the vocabulary that transcripts do not contain; counts as a blank.
        where: the path of the settings in the config, for errors.

    Raises:
        UserError: flashlight is not installed, or a file is missing or not of its format.
    """

    def __init__(
        self, settings: DecoderSettings, symbols: Sequence[str], end: str, where: str
    ) -> None:
        require_packages(["flashlight"], f"{where}.lm", EXTRA)
        from flashlight.lib.text.decoder import (
            CriterionType,
            LexiconDecoder,
            LexiconDecoderOptions,
        )

        self.settings, self.symbols, self.where = settings, tuple(symbols), where
        self.end = symbols.index(end)
        files = (settings.lm, settings.lexicon)
        self.words, lm, trie = _language_model(
            *files, self.symbols, where, tuple(map(_version, files))
        )
        options = LexiconDecoderOptions(
            beam_size=settings.beam,
            beam_size_token=min(settings.beam_tokens or len(symbols), len(symbols)),
            beam_threshold=settings.beam_threshold,
            lm_weight=settings.lm_weight,
            word_score=settings.word_score,
            unk_score=-math.inf,
            sil_score=0.0,
            log_add=False,
            criterion_type=CriterionType.CTC,
        )
        boundary, blank, no_unknown_word = symbols.index(WORD_BOUNDARY), 0, -1
        self.decoder = LexiconDecoder(
            options, trie, lm, boundary, blank, no_unknown_word, [], False
        )

    def __call__(self, log_probabilities: Tensor) -> list[Hypothesis]:
        """The hypotheses in the beam after the last frame, with different words, best first.

        Args:
            log_probabilities: of each frame's symbols, (T, V), on any device.
        """
        scores = log_probabilities.detach().float().cpu().numpy().copy()
        # The end symbol is removed from transcripts, as the blank is.
        scores[:, 0] = np.logaddexp(scores[:, 0], scores[:, self.end])
        scores[:, self.end] = -np.inf
        frames = len(scores)
        found: dict[tuple[str, ...], Hypothesis] = {}
        for result in self.decoder.decode(scores.ctypes.data, *scores.shape):
            words = tuple(self.words[word] for word in result.words if word >= 0)
            # The search puts a word boundary before the first and after the last frame.
            path = tuple(result.tokens[1 : frames + 1])
            acoustic = result.emittingModelScore
            found.setdefault(words, Hypothesis(words, result.score, acoustic, path))
        return list(found.values())

    def __reduce__(self) -> tuple[Any, ...]:
        # The objects of flashlight and KenLM cannot be pickled or copied.
        return BeamSearch, (self.settings, self.symbols, self.symbols[self.end], self.where)


@lru_cache(maxsize=1)
def _language_model(
    lm_path: str,
    lexicon_path: str,
    symbols: tuple[str, ...],
    where: str,
    versions: tuple[Any, ...],
) -> tuple[list[str], Any, Any]:
    """The words, the language model, and a trie of spellings; those that were read last are kept.

    LibriSpeech's 4-gram model takes gigabytes. Files of another version are read again.
    """
    from flashlight.lib.text.decoder import SmearingMode, Trie
    from flashlight.lib.text.decoder.kenlm import KenLM
    from flashlight.lib.text.dictionary import Dictionary

    lexicon = read_lexicon(Path(lexicon_path), symbols, f"{where}.lexicon")
    words = list(dict.fromkeys(word for word, _ in lexicon))
    dictionary = Dictionary()
    for word in words:
        dictionary.add_entry(word)
    path = Path(lm_path)
    if not path.is_file():
        raise UserError(
            f"The language model is {'not a file' if path.exists() else 'missing'}: {path}.",
            where=f"{where}.lm",
            fix="Name an ARPA file or a binary of KenLM; null decodes greedily.",
            code="file-unreadable" if path.exists() else "file-missing",
        )
    try:
        lm = KenLM(str(path), dictionary)
    except (RuntimeError, ValueError) as cause:
        raise UserError(
            f"KenLM cannot read the language model: {' '.join(str(cause).split())[-200:]}",
            where=f"{where}.lm, {path}",
            fix="Name an ARPA file, also compressed by gzip, or a binary that KenLM's "
            "`build_binary` wrote.",
            code="file-malformed",
        ) from cause
    numbers = {symbol: number for number, symbol in enumerate(symbols)}
    start = lm.start(False)
    probabilities = [lm.score(start, number)[1] for number in range(len(words))]
    word_numbers = {word: number for number, word in enumerate(words)}
    trie = Trie(len(symbols), numbers[WORD_BOUNDARY])
    for word, spelling in lexicon:
        number = word_numbers[word]
        trie.insert([numbers[symbol] for symbol in spelling], number, probabilities[number])
    # A partial word is scored as the most likely word that it may become.
    trie.smear(SmearingMode.MAX)
    logger.info("Decoding with the language model %s, %d words.", path, len(words))
    return words, lm, trie


def _version(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def read_lexicon(path: Path, symbols: Sequence[str], where: str) -> list[tuple[str, list[str]]]:
    """The words of a lexicon with their spellings, in the order of the file.

    A line is a word and its symbols, `HELLO  H E L L O |`, or the word alone, which is spelled by
    its letters in upper case. The `|` at the end may be left out. A word may have several lines.

    Args:
        path: the file, in UTF-8.
        symbols: the vocabulary of the head.
        where: the path of the setting in the config, for errors.

    Raises:
        UserError: the file cannot be read or has no word, or a spelling has a symbol that the
            vocabulary lacks, or a word boundary inside.
    """
    if not path.is_file():
        raise UserError(
            f"The lexicon is {'not a file' if path.exists() else 'missing'}: {path}.",
            where=where,
            fix="Name a file with a line `WORD  W O R D |` for each word.",
            code="file-unreadable" if path.exists() else "file-missing",
        )
    known = set(symbols)
    entries: dict[tuple[str, tuple[str, ...]], None] = {}
    unknown: dict[str, str] = {}
    words_with_unknown = set()
    for number, line in read_lines(path):
        word, *spelling = line.split()
        spelling = spelling or spell(word)
        if spelling[-1] != WORD_BOUNDARY:
            spelling.append(WORD_BOUNDARY)
        if WORD_BOUNDARY in spelling[:-1] or len(spelling) == 1:
            raise UserError(
                f"The spelling of {word!r} has a word boundary inside, or no letter.",
                where=f"{where}, {path}, line {number}",
                fix="Write `WORD  W O R D |`.",
                code="file-malformed",
            )
        for symbol in spelling:
            if symbol not in known:
                unknown.setdefault(symbol, f"{path}, line {number}")
                words_with_unknown.add(word)
        entries[word, tuple(spelling)] = None
    if not entries:
        raise UserError(
            "The lexicon has no words.",
            where=f"{where}, {path}",
            fix="Add a line `WORD  W O R D |` for each word that may be recognised.",
            code="file-malformed",
        )
    if unknown:
        listed = ", ".join(map(repr, list(unknown)[:10]))
        raise UserError(
            f"{len(words_with_unknown)} words of the lexicon have symbols that the head does not "
            f"output: {listed}.",
            where=f"{where}, {next(iter(unknown.values()))}",
            fix="Spell them with the head's symbols (letters in upper case), or leave them out.",
            code="label-unknown",
        )
    return [(word, list(spelling)) for word, spelling in entries]
