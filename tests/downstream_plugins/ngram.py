"""Bigram language models for tests: from probabilities, or counted in texts."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path

START, END, UNKNOWN = "<s>", "</s>", "<unk>"

Unigrams = Mapping[str, tuple[float, float]]
"""Decadic logarithms of the probability and of the back-off weight of each word."""
Bigrams = Mapping[tuple[str, str], float]


def write_arpa(path: Path, unigrams: Unigrams, bigrams: Bigrams) -> Path:
    """Write a bigram model in the ARPA format."""
    lines = ["\\data\\", f"ngram 1={len(unigrams)}", f"ngram 2={len(bigrams)}", "", "\\1-grams:"]
    lines += [f"{p:.6f}\t{word}\t{backoff:.6f}" for word, (p, backoff) in unigrams.items()]
    lines += ["", "\\2-grams:"]
    lines += [f"{p:.6f}\t{' '.join(pair)}" for pair, p in bigrams.items()]
    path.write_text("\n".join([*lines, "", "\\end\\", ""]))
    return path


def log_probability(words: Iterable[str], unigrams: Unigrams, bigrams: Bigrams) -> float:
    """The decadic logarithm of the probability of a sentence, by backing off."""
    total = 0.0
    for pair in pairwise([START, *words, END]):
        if pair in bigrams:
            total += bigrams[pair]
        else:
            total += unigrams[pair[0]][1] + unigrams[pair[1]][0]
    return total


def count_bigrams(texts: Iterable[str]) -> tuple[Unigrams, Bigrams]:
    """A bigram model by Witten-Bell smoothing (Chen and Goodman, 1999, equation 17)."""
    sentences = [[START, *text.split(), END] for text in texts]
    counts = Counter(word for sentence in sentences for word in sentence[1:])
    total, types = sum(counts.values()), len(counts)
    one = {w: (counts[w] + 1 / (types + 1)) / (total + 1) for w in [*counts, UNKNOWN]}
    followers: dict[str, Counter[str]] = defaultdict(Counter)
    for sentence in sentences:
        for first, second in pairwise(sentence):
            followers[first][second] += 1
    # Probabilities of bigrams are interpolated; the weight of the unigram is the back-off weight.
    weight = {w: len(f) / (len(f) + f.total()) for w, f in followers.items()}
    unigrams = {w: (math.log10(p), math.log10(weight.get(w, 1.0))) for w, p in one.items()}
    unigrams[START] = (-99.0, math.log10(weight[START]))
    bigrams = {
        (w, v): math.log10(n / (len(f) + f.total()) + weight[w] * one[v])
        for w, f in followers.items()
        for v, n in f.items()
    }
    return unigrams, bigrams
