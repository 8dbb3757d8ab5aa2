"""Decoding with a lexicon and a language model, and the times of words."""

from __future__ import annotations

import copy
import math
import pickle
from collections import defaultdict
from collections.abc import Callable, Mapping
from itertools import groupby, pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from downstream_plugins.asr import SpeechRecognition, words_of
from downstream_plugins.asr.beam_search import BeamSearch, DecoderSettings
from downstream_plugins.asr.corpus import build_symbols, spell
from s3prl_mtl.errors import UserError
from s3prl_mtl.metrics import collapse_ctc, token_error_rate
from tests.downstream_plugins.ngram import (
    END,
    START,
    UNKNOWN,
    count_bigrams,
    log_probability,
    write_arpa,
)
from tests.mistakes import user_error

SYMBOLS = ["<s>", "</s>", "|", "A", "B"]
BLANK, END_SYMBOL, BOUNDARY = 0, 1, 2
WORDS = {"A": "A |", "BB": "B B |", "AB": "A B |"}
UNIGRAMS = {
    UNKNOWN: (-2.0, 0.0),
    START: (-99.0, -0.31),
    END: (-0.83, 0.0),
    "A": (-0.52, -0.17),
    "BB": (-0.91, -0.23),
    "AB": (-0.74, -0.41),
}
BIGRAMS = {(START, "BB"): -0.37, ("A", "BB"): -0.29, ("BB", "A"): -0.48, ("AB", END): -0.33}
WIDE = {"beam": 100_000, "beam_threshold": 1e6}

Search = Callable[..., BeamSearch]


@pytest.fixture
def search(tmp_path: Path) -> Search:
    lm = write_arpa(tmp_path / "lm.arpa", UNIGRAMS, BIGRAMS)
    lexicon = tmp_path / "words.txt"
    lexicon.write_text("".join(f"{word}\t{letters}\n" for word, letters in WORDS.items()))

    def make(**settings: Any) -> BeamSearch:
        wanted = DecoderSettings(str(lm), str(lexicon), **settings)
        return BeamSearch(wanted, SYMBOLS, "</s>", "decoder")

    return make


def random_frames(frames: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(frames, len(SYMBOLS), generator=generator)).log_softmax(dim=-1)


def all_transcripts(
    frames: torch.Tensor, lm_weight: float, word_score: float
) -> dict[tuple[str, ...], float]:
    """The score of the best path of each transcript, from all paths through the frames."""
    probabilities = frames.double().exp().numpy()
    # Transcripts contain neither the blank nor the end symbol.
    probabilities[:, BLANK] += probabilities[:, END_SYMBOL]
    scores = np.log(probabilities)
    spelled = {letters.replace(" ", "").removesuffix("|"): word for word, letters in WORDS.items()}
    best: dict[tuple[str, ...], float] = {}
    for path in product([BLANK, *range(BOUNDARY, len(SYMBOLS))], repeat=len(frames)):
        text = "".join(SYMBOLS[k] for k, _ in groupby(path) if k != BLANK)
        *complete, rest = text.split("|")
        words = [word for word in complete if word]
        if rest or any(word not in spelled for word in words):
            continue
        key = tuple(spelled[word] for word in words)
        score = sum(scores[t, k] for t, k in enumerate(path))
        score += lm_weight * log_probability(key, UNIGRAMS, BIGRAMS) + word_score * len(key)
        best[key] = max(best.get(key, -math.inf), score)
    return best


@pytest.mark.parametrize(("lm_weight", "word_score"), [(2.0, -1.0), (0.0, 0.0), (0.7, 1.5)])
def test_the_search_finds_the_best_of_all_paths(
    search: Search, lm_weight: float, word_score: float
) -> None:
    beam_search = search(lm_weight=lm_weight, word_score=word_score, **WIDE)
    several_words = 0
    for seed in range(12):
        frames = random_frames(4 + seed % 4, seed)
        expected = all_transcripts(frames, lm_weight, word_score)
        found = beam_search(frames)
        assert {h.words: h.score for h in found} == pytest.approx(expected, abs=1e-3)
        assert found[0].words == max(expected, key=lambda words: expected[words])
        assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
        several_words += sum(len(words) > 1 for words in expected)
    assert several_words


def test_the_path_of_a_hypothesis_has_its_probability_and_its_words(search: Search) -> None:
    for seed in range(20):
        frames = random_frames(12, seed)
        for found in search(**WIDE)(frames):
            path = found.frame_tokens
            assert len(path) == len(frames) and END_SYMBOL not in path
            probabilities = frames.exp()
            probabilities[:, BLANK] += probabilities[:, END_SYMBOL]
            total = sum(probabilities[t, k].log().item() for t, k in enumerate(path))
            assert found.log_probability == pytest.approx(total, abs=1e-3)
            text = "".join(SYMBOLS[k] for k, _ in groupby(path) if k != BLANK)
            letters = [WORDS[word].replace(" ", "").removesuffix("|") for word in found.words]
            assert [word for word in text.split("|") if word] == letters


def test_a_smaller_beam_is_never_better(search: Search) -> None:
    wide, narrow = search(**WIDE), search(beam=2)
    worse = 0
    for seed in range(20):
        frames = random_frames(9, seed)
        best, (found, *_) = wide(frames)[0].score, narrow(frames)
        if found.frame_tokens[-1] in (BLANK, BOUNDARY):  # Not within a word, whose score is open.
            assert best >= found.score - 1e-4
            worse += best > found.score + 1e-2
    assert worse


def test_the_language_model_changes_the_words(search: Search) -> None:
    """The frames fit `A` a little better than `AB`, which is 2.8 times as likely a sentence."""
    heard = [("A", "A"), ("A", "<s>"), ("A", "B"), ("|", "|")]
    frames = torch.full((len(heard), len(SYMBOLS)), 1e-6)
    for row, (first, second) in zip(frames, heard, strict=True):
        row[SYMBOLS.index(first)] += 0.51
        row[SYMBOLS.index(second)] += 0.49
    frames = frames.log().log_softmax(dim=-1)
    (without, *_), (with_lm, *_) = search(lm_weight=0.0, **WIDE)(frames), search(**WIDE)(frames)
    assert (without.words, with_lm.words) == (("A",), ("AB",))


def test_a_search_can_be_copied_and_sent_to_a_process(search: Search) -> None:
    frames = random_frames(8, 0)
    original = search()
    for other in (copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        assert other(frames) == original(frames)


def test_a_word_without_a_spelling_is_spelled_by_its_letters(
    search: Search, tmp_path: Path
) -> None:
    spelled = search()(random_frames(10, 3))
    (tmp_path / "words.txt").write_text("A\n\nbb  B B\nAB\n")
    assert [h.words for h in search()(random_frames(10, 3))] != [] and spelled
    (tmp_path / "words.txt").write_text("A\nBB\nAB\n")
    assert search()(random_frames(10, 3)) == spelled


def test_a_compressed_model_is_read(search: Search, tmp_path: Path) -> None:
    import gzip

    plain = search()(random_frames(10, 1))
    content = (tmp_path / "lm.arpa").read_bytes()
    (tmp_path / "lm.arpa").write_bytes(gzip.compress(content))
    assert search()(random_frames(10, 1)) == plain


@pytest.mark.parametrize(
    ("file", "content", "code", "where"),
    [
        ("words.txt", None, "file-missing", r"decoder\.lexicon"),
        ("words.txt", "", "file-malformed", r"words\.txt"),
        ("words.txt", "\n \n", "file-malformed", r"words\.txt"),
        ("words.txt", "A A |\nAC  A C |\n", "label-unknown", r"words\.txt, line 2"),
        ("words.txt", "A A | B |\n", "file-malformed", r"words\.txt, line 1"),
        ("words.txt", "A |\n", "file-malformed", r"words\.txt, line 1"),
        ("words.txt", b"\xff\xfe\x00", "file-malformed", r"words\.txt"),
        ("lm.arpa", None, "file-missing", r"decoder\.lm"),
        ("lm.arpa", "", "file-malformed", r"lm\.arpa"),
        ("lm.arpa", "These are words.\n", "file-malformed", r"lm\.arpa"),
        ("lm.arpa", "\\data\\\nngram 1=4\n\n\\1-grams:\n-1.0\tA\n", "file-malformed", "lm"),
    ],
)
def test_unusable_files_are_named(
    search: Search, tmp_path: Path, file: str, content: Any, code: str, where: str
) -> None:
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(content.encode() if isinstance(content, str) else content)
    with user_error(code, where):
        search()


@pytest.mark.parametrize("file", ["lm", "lexicon"])
def test_a_folder_is_not_a_file(search: Search, tmp_path: Path, file: str) -> None:
    path = {"lm": tmp_path / "lm.arpa", "lexicon": tmp_path / "words.txt"}[file]
    path.unlink()
    path.mkdir()
    with user_error("file-unreadable", rf"decoder\.{file}"):
        search()


FILES = {"lm": "a.arpa", "lexicon": "a.txt"}


@pytest.mark.parametrize(
    ("settings", "code", "where"),
    [
        ({"lm": "a.arpa"}, "missing-option", "lexicon"),
        ({"lexicon": "a.txt"}, "missing-option", "lm"),
        ({**FILES, "bean": 3}, "unknown-key", "bean"),
        ({**FILES, "beam": 0}, "invalid-value", "beam"),
        ({**FILES, "beam": 2.5}, "wrong-type", "beam"),
        ({**FILES, "beam": True}, "wrong-type", "beam"),
        ({**FILES, "beam_tokens": -1}, "invalid-value", "beam_tokens"),
        ({**FILES, "lm_weight": "2"}, "wrong-type", "lm_weight"),
        ({**FILES, "word_score": math.inf}, "invalid-value", "word_score"),
        ({**FILES, "beam_threshold": -1.0}, "invalid-value", "beam_threshold"),
        ({**FILES, "splits": "test-clean"}, "wrong-type", "splits"),
        ({**FILES, "lm": 3}, "wrong-type", "lm"),
        ("a.arpa", "wrong-type", "decoder"),
    ],
)
def test_wrong_settings_are_named(settings: Any, code: str, where: str) -> None:
    with user_error(code, where):
        DecoderSettings.from_settings(settings, "decoder")


def test_nothing_is_decoded_without_files() -> None:
    for settings in ({}, {"lm": None, "lexicon": None, "beam": 7}):
        assert DecoderSettings.from_settings(settings, "decoder") is None


def test_a_missing_package_is_named(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with user_error("missing-package", r"decoder\.lm", r"\[lm\]"):
        search()


# ------------------------------------------------------------------------------ the task


class FixedLogits(torch.nn.Module):
    """A head whose logits are the features."""

    subsampling = 1

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> Any:
        return features, lengths


@pytest.fixture
def expert(golden: Any, tmp_path: Path, search: Search) -> Callable[..., SpeechRecognition]:
    def make(**decoder: Any) -> SpeechRecognition:
        settings = copy.deepcopy(golden("asr")["downstream_expert"])
        settings["modelrc"]["scoring"] = "reference"
        if decoder:
            files = {"lm": str(tmp_path / "lm.arpa"), "lexicon": str(tmp_path / "words.txt")}
            settings["decoder"] = {**files, **decoder}
        labels = {"symbols": ["<s>", "<pad>", "</s>", "<unk>", "|", "A", "B", "C"]}
        made = SpeechRecognition(8, 320, settings, tmp_path, labels=labels)
        made.projector = torch.nn.Identity()
        made._logits = lambda features: FixedLogits()(*padded(features))  # type: ignore[method-assign]
        return made.eval()

    return make


def padded(features: Any) -> Any:
    from s3prl_mtl.nn import pad_features

    return pad_features(features)


def utterances(expert: SpeechRecognition, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(n, len(expert.vocabulary), generator=generator) for n in (9, 14, 6)]


def evaluate(expert: SpeechRecognition, split: str, scalars: Any) -> Mapping[str, float]:
    features = utterances(expert)
    targets = [expert.target({"text": text}) for text in ("A BB", "AB A", "A")]
    records: dict[str, list[Any]] = defaultdict(list)
    with torch.no_grad():
        expert(split, features, targets, records=records)
    expert.log_records(split, records, scalars, 1)
    return dict(scalars.scalars)


def test_both_error_rates_are_reported_side_by_side(
    expert: Callable[..., SpeechRecognition], scalars: Any
) -> None:
    plain = evaluate(expert(), "test-clean", scalars)
    scalars.scalars.clear()
    decoded = expert(beam=50)
    both = evaluate(decoded, "test-clean", scalars)
    assert set(both) - set(plain) == {"asr/test-clean-wer_lm"}
    assert plain.items() <= both.items()
    texts = [answer["text"] for answer in decoded.predict(utterances(decoded), [0] * 3)]
    errors = [
        edits(r.split(), h.split()) for r, h in zip(("A BB", "AB A", "A"), texts, strict=True)
    ]
    assert both["asr/test-clean-wer_lm"] == pytest.approx(sum(errors) / 5)


def edits(reference: list[str], hypothesis: list[str]) -> int:
    """Levenshtein's distance by its recursive definition."""
    if not reference or not hypothesis:
        return len(reference) + len(hypothesis)
    if reference[-1] == hypothesis[-1]:
        return edits(reference[:-1], hypothesis[:-1])
    return 1 + min(
        edits(reference[:-1], hypothesis),
        edits(reference, hypothesis[:-1]),
        edits(reference[:-1], hypothesis[:-1]),
    )


@pytest.mark.parametrize(
    ("splits", "training", "split", "decoded"),
    [
        (None, False, "dev-clean", True),
        (None, True, "train", False),
        (["test-clean"], False, "dev-clean", False),
        (["test-clean"], False, "test-clean", True),
        (["train"], True, "train", True),
    ],
)
def test_training_batches_are_decoded_only_where_asked_for(
    expert: Callable[..., SpeechRecognition],
    scalars: Any,
    splits: Any,
    training: bool,
    split: str,
    decoded: bool,
) -> None:
    found = evaluate(expert(beam=5, splits=splits).train(training), split, scalars)
    assert (f"asr/{split}-wer_lm" in found) == decoded


def test_n_best_transcripts_differ_and_the_first_is_the_text(
    expert: Callable[..., SpeechRecognition],
) -> None:
    decoded = expert(beam=200)
    decoded.nbest = 4
    for answer in decoded.predict(utterances(decoded), [0] * 3):
        texts = [entry["text"] for entry in answer["nbest"]]
        scores = [entry["score"] for entry in answer["nbest"]]
        assert len(set(texts)) == len(texts) == 4
        assert texts[0] == answer["text"] and scores == sorted(scores, reverse=True)
        assert 0 < answer["confidence"] <= 1


def test_words_of_a_lexicon_are_scored_in_upper_case(
    expert: Callable[..., SpeechRecognition], tmp_path: Path
) -> None:
    upper = [
        a["text"] for a in expert(beam=50, lm_weight=0.0).predict(utterances(expert()), [0] * 3)
    ]
    (tmp_path / "words.txt").write_text("a A |\nbb B B |\nab A B |\n")
    lower = [
        a["text"] for a in expert(beam=50, lm_weight=0.0).predict(utterances(expert()), [0] * 3)
    ]
    assert lower == upper and any(upper)


def test_the_state_of_the_head_does_not_contain_the_decoder(
    expert: Callable[..., SpeechRecognition],
) -> None:
    assert expert(beam=7).state_dict().keys() == expert().state_dict().keys()


def test_conditions_say_which_number_is_with_a_language_model(tmp_path: Path) -> None:
    without = SpeechRecognition.conditions({"modelrc": {"scoring": "reference"}})
    files = {"lm": "/x/4-gram.arpa", "lexicon": "/x/words.txt"}
    settings = {"modelrc": {"scoring": "reference"}, "decoder": {**files, "beam": 50}}
    both = SpeechRecognition.conditions(settings)
    (title,) = (metric.title for metric in SpeechRecognition.metrics if metric.name == "wer_lm")
    assert "4-gram.arpa" in both and "50" in both and title in both
    assert "4-gram" not in without


# ------------------------------------------------------------------------------ times


def best_alignments(frames: torch.Tensor, tokens: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All most likely paths through the frames that decode to the tokens."""
    best, found = -math.inf, []
    for path in product(range(frames.shape[1]), repeat=len(frames)):
        if tuple(k for k, _ in groupby(path) if k != BLANK) != tokens:
            continue
        score = sum(frames[t, k].item() for t, k in enumerate(path))
        if score > best + 1e-9:
            best, found = score, []
        if score > best - 1e-9:
            found.append(path)
    return found


def test_greedy_times_are_those_of_the_best_alignment(
    expert: Callable[..., SpeechRecognition],
) -> None:
    greedy = expert()
    greedy.timestamps = True
    used = [0, 4, 5, 6]  # blank, word boundary, A, B
    repeated = 0
    for seed in range(25):
        generator = torch.Generator().manual_seed(seed)
        small = 3 * torch.randn(6, len(used), generator=generator)
        logits = torch.full((6, 8), -50.0)
        logits[:, used] = small
        (answer,) = greedy.predict([logits], [0])
        tokens = tuple(k for k, _ in groupby(small.argmax(-1).tolist()) if k != BLANK)
        (path,) = best_alignments(small.log_softmax(-1).double(), tokens)
        repeated += any(a == b for a, b in pairwise(tokens))
        words, start = [], 0
        for symbol, run in groupby(path):
            end = start + len(list(run))
            if symbol != BLANK:
                words.append((" |AB"[symbol], start, end))
            start = end
        expected = []
        for is_boundary, group in groupby(words, key=lambda entry: entry[0] == "|"):
            if not is_boundary:
                letters = list(group)
                word = "".join(letter for letter, _, _ in letters)
                expected.append((word, letters[0][1] * 0.02, letters[-1][2] * 0.02))
        found = [(entry["word"], entry["start"], entry["end"]) for entry in answer["times"]]
        assert [word for word, _, _ in found] == answer["text"].split()
        assert found == [(w, pytest.approx(a), pytest.approx(b)) for w, a, b in expected]
    assert repeated


def test_times_with_a_language_model_are_those_of_the_best_alignment(search: Search) -> None:
    beam_search = search(**WIDE)
    for seed in range(10):
        frames = random_frames(6, seed)
        merged = frames.double().exp()
        merged[:, BLANK] += merged[:, END_SYMBOL]
        merged[:, END_SYMBOL] = 0
        for found in beam_search(frames)[:3]:
            tokens = tuple(k for k, _ in groupby(found.frame_tokens) if k != BLANK)
            assert best_alignments(merged.log(), tokens) == [found.frame_tokens]


def test_an_empty_transcript_has_no_times(expert: Callable[..., SpeechRecognition]) -> None:
    silence = torch.full((5, 8), -20.0)
    silence[:, BLANK] = 20.0
    for decoder in ({}, {"beam": 5}):
        made = expert(**decoder)
        made.timestamps = True
        (answer,) = made.predict([silence], [0])
        assert answer["text"] == "" and answer["times"] == []


def test_counted_bigrams_are_probabilities() -> None:
    unigrams, bigrams = count_bigrams(["A B", "A C A", "B"])
    words = [word for word in unigrams if word != START]
    for first in (START, "A", "B", "C"):
        total = sum(
            10 ** (bigrams.get((first, w), unigrams[first][1] + unigrams[w][0])) for w in words
        )
        assert total == pytest.approx(1.0, abs=1e-6)


def test_decoder_settings_are_checked_by_the_task(
    expert: Callable[..., SpeechRecognition],
) -> None:
    with pytest.raises(UserError) as caught:
        expert(beam="wide")
    assert caught.value.where == "asr.downstream_expert.decoder.beam"


def test_words_of_the_mini_corpus_are_recognised_better(tiny_corpus: Path, tmp_path: Path) -> None:
    """Letters with noise, in the texts of its test set; the model is of its training set."""
    corpus = tiny_corpus / "LibriSpeech"
    training, test = (transcripts(corpus / name) for name in ("train-clean-100", "test-clean"))
    lm = write_arpa(tmp_path / "lm.arpa", *count_bigrams(training))
    lexicon = tmp_path / "words.txt"
    lexicon.write_text("\n".join(sorted({word for text in training for word in text.split()})))
    symbols = build_symbols(training)
    settings = DecoderSettings(str(lm), str(lexicon), beam=50, word_score=0.0)
    beam_search = BeamSearch(settings, symbols, "</s>", "decoder")
    generator = torch.Generator().manual_seed(0)
    greedy, with_lm = [], []
    for text in test:
        # Two frames of each letter, and a blank.
        path = [k for s in spell(text) for k in (symbols.index(s), symbols.index(s), BLANK)]
        logits = 1.5 * torch.randn(len(path), len(symbols), generator=generator)
        logits[torch.arange(len(path)), path] += 5.0
        frames = logits.log_softmax(dim=-1)
        tokens = collapse_ctc(frames.argmax(dim=-1), BLANK)
        greedy.append(words_of(" ".join(symbols[k] for k in tokens)))
        with_lm.append(list(beam_search(frames)[0].words))
    references = [text.split() for text in test]
    before, after = (token_error_rate(references, found) for found in (greedy, with_lm))
    assert before > 0.2 and after < before / 2


def transcripts(folder: Path) -> list[str]:
    files = sorted(folder.rglob("*.trans.txt"))
    return [line.split(" ", 1)[1] for file in files for line in file.read_text().splitlines()]


def test_an_unknown_split_of_the_decoder_is_a_problem(tiny_corpus: Path) -> None:
    settings = {"datarc": {"libri_root": str(tiny_corpus / "LibriSpeech")}}
    named = {**settings, "decoder": {"splits": ["test-clean", "test"]}}
    assert SpeechRecognition.problems(settings) == []
    (problem,) = SpeechRecognition.problems(named)
    assert "decoder.splits" in problem and "'test'" in problem and "test-clean" in problem
