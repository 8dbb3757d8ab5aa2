"""A miniature of QUESST 2014 with the names, lists and formats of the original."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from qbe_task import QueryByExample
from qbe_task.corpus import Quesst14
from qbe_task.term_weighted_value import false_alarm_weight

from s3prl_mtl.errors import UserError

RATE = 8000
DOCUMENTS = {
    "quesst14_00001": "albanian",
    "quesst14_00007": "nnenglish",
    "quesst14_00012": "nnenglish",
    "quesst14_00031": "slovak",
    "quesst14_02410": "nnenglish",
    "quesst14_12492": "romanian",
}
QUERIES = {
    "dev": {
        "quesst14_dev_0002": "nnenglish",
        "quesst14_dev_0003": "slovak",
        "quesst14_dev_0101": "nnenglish",
        "quesst14_dev_0560": "nnenglish",
    },
    "eval": {"quesst14_eval_0001": "nnenglish", "quesst14_eval_0004": "basque"},
}
# The third English query of dev is in no document: MediaEval's program does not count it.
TRUTH = {
    "dev": [
        ("quesst14_00007", "quesst14_dev_0002"),
        ("quesst14_02410", "quesst14_dev_0002"),
        ("quesst14_00012", "quesst14_dev_0101"),
        ("quesst14_00031", "quesst14_dev_0003"),
    ],
    "eval": [("quesst14_00007", "quesst14_eval_0001")],
}
SCORING = {"target_prior": 0.0008, "miss_cost": 100.0, "false_alarm_cost": 1.0}


def write_audio(path: Path, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = torch.Generator().manual_seed(len(str(path)))
    noise = 0.1 * torch.randn(round(seconds * RATE), generator=draw)
    soundfile.write(path, noise.numpy(), RATE, subtype="PCM_16")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """`quesst14Database`, including files that only MediaEval's program reads."""
    root = tmp_path / "quesst14Database"
    scoring = root / "scoring"
    scoring.mkdir(parents=True)
    lists = {"utterances": ("Audio", DOCUMENTS)}
    lists |= {part: (f"{part}_queries", queries) for part, queries in QUERIES.items()}
    for part, (folder, languages) in lists.items():
        lines = []
        for name, language in languages.items():
            write_audio(root / folder / f"{name}.wav", 0.9 if part == "utterances" else 0.4)
            lines.append(f"quesst14Database/{folder}/{name}.wav {language}\n")
        (scoring / f"language_key_{part}.lst").write_text("".join(lines))
    for part, pairs in TRUTH.items():
        for kind in ("", "_T1", "_T2", "_T3"):
            folder = scoring / f"groundtruth_quesst14_{part}{kind}"
            folder.mkdir()
            lexemes = [f"LEXEME {d} 1 0.1 0.3 {q} <NA> <NA> <NA>\n" for d, q in pairs]
            speakers = [f"SPKR-INFO {d} 1 <NA> <NA> <NA> unknown {d} <NA>\n" for d in DOCUMENTS]
            rttm = folder / f"quesst14_{part}{kind}.rttm"
            rttm.write_text("".join([*speakers, *lexemes]) if not kind else "")
            (folder / "quesst14.ecf.xml").write_text("<ecf/>\n")
            (folder / f"quesst14_{part}{kind}.tlist.xml").write_text("<termlist/>\n")
    (scoring / "score-TWV-Cnxe.sh").write_text("#!/bin/bash -e\n")
    (scoring / "MediaEvalQUESST2014.jar").write_bytes(b"PK")
    return root


def test_the_original_layout_is_read(root: Path) -> None:
    corpus = Quesst14(root=root, language="nnenglish")
    assert corpus.problems() == []
    english = [name for name, language in DOCUMENTS.items() if language == "nnenglish"]
    assert [u.id for u in corpus.utterances("dev")] == english
    assert corpus.utterances("test") == corpus.utterances("dev")
    queries = [u.id for u in corpus.utterances("dev-queries")]
    assert queries == ["quesst14_dev_0002", "quesst14_dev_0101", "quesst14_dev_0560"]
    assert [u.id for u in corpus.utterances("test-queries")] == ["quesst14_eval_0001"]
    assert corpus.matches("dev") == {(query, document) for document, query in TRUTH["dev"]}
    assert corpus.all_documents() == list(DOCUMENTS)
    for split in ("dev", "dev-queries", "test-queries"):
        assert all(Path(u.path).is_file() for u in corpus.utterances(split))


def test_all_languages_are_read_if_none_is_named(root: Path) -> None:
    corpus = Quesst14(root=root, language=None)
    assert [u.id for u in corpus.utterances("dev")] == list(DOCUMENTS)
    assert [u.id for u in corpus.utterances("test-queries")] == list(QUERIES["eval"])


def test_audio_is_resampled_to_16_khz(root: Path, tmp_path: Path) -> None:
    expert = expert_of(root, tmp_path)
    expert.prepare("dev-queries")
    wavs, names, kinds = next(iter(expert.get_dataloader("dev")))
    assert set(kinds) == {"query"} and names[0] in QUERIES["dev"]
    assert {len(wav) for wav in wavs} == {round(0.4 * 16_000)}


def test_a_line_of_the_ground_truth_without_a_query_is_named(root: Path) -> None:
    rttm = root / "scoring" / "groundtruth_quesst14_dev" / "quesst14_dev.rttm"
    rttm.write_text("LEXEME quesst14_00007 1 0.1 0.3\n")
    with pytest.raises(UserError) as caught:
        Quesst14(root=root).matches("dev")
    assert caught.value.code == "corpus-malformed"
    assert caught.value.where == f"{rttm}, line 1"


def expert_of(root: Path, expdir: Path, **scoring: float | None) -> QueryByExample:
    settings = {
        "datarc": {
            "root": str(root),
            "language": "nnenglish",
            "statistics_documents": 200,
            "num_workers": 0,
            "eval_batch_size": 8,
        },
        "search": {
            "layer": None,
            "distance": "cosine_exp",
            "normalise_features": True,
            "normalise_distances": True,
            "shortest_query_frames": 5,
        },
        "scoring": {"unsearched_score": -10.0, **SCORING, **scoring},
    }
    return QueryByExample(
        upstream_dim=4, upstream_rate=320, downstream_expert=settings, expdir=str(expdir)
    )


@pytest.mark.parametrize("unsearched", [-10.0, None])
def test_the_value_equals_a_count_of_all_trials(
    root: Path, tmp_path: Path, unsearched: float | None
) -> None:
    """As in MediaEval's program: queries with a match, and a default score for missing trials."""
    expert = expert_of(root, tmp_path, unsearched_score=unsearched)
    queries = [name for name, language in QUERIES["dev"].items() if language == "nnenglish"]
    documents = [name for name, language in DOCUMENTS.items() if language == "nnenglish"]
    draw = random.Random(3)
    found = set()
    for _ in range(20):
        raw = {(q, d): draw.gauss(0.0, 1.0) for q in queries for d in documents}
        records = {
            "query": queries,
            "document": documents,
            "layer": [5],
            "scores": [torch.tensor([[raw[q, d]] for q in queries]) for d in documents],
        }
        value = expert.measure("dev", records)["mtwv"]
        assert value == pytest.approx(counted(raw, queries, documents, unsearched), abs=1e-6)
        found.add(round(value, 4))
    assert len(found) > 2


def counted(
    raw: dict[tuple[str, str], float],
    queries: list[str],
    documents: list[str],
    unsearched: float | None,
) -> float:
    """The best TWV over all thresholds, trial by trial."""
    trials = {}
    for q in queries:
        row = [raw[q, d] for d in documents]
        mean = sum(row) / len(row)
        deviation = math.sqrt(sum((score - mean) ** 2 for score in row) / len(row))
        trials |= {(q, d): (raw[q, d] - mean) / deviation for d in documents}
    wanted = {(query, document) for document, query in TRUTH["dev"]}
    asked, searched = {q for q, _ in wanted}, list(DOCUMENTS)
    if unsearched is None:
        asked, searched = asked & set(queries), documents
    weight = false_alarm_weight(**SCORING)
    best = 0.0
    for threshold in [*trials.values(), -11.0, 0.5]:
        lost = 0.0
        for q in asked:
            said = {d for d in searched if trials.get((q, d), unsearched) >= threshold - 1e-9}
            true = {d for d in searched if (q, d) in wanted}
            lost += len(true - said) / len(true)
            lost += weight * len(said - true) / (len(searched) - len(true))
        best = max(best, 1 - lost / len(asked))
    return best


def test_queries_in_other_languages_are_missed_as_in_superb(root: Path, tmp_path: Path) -> None:
    """All English trials are correct: two of the three queries with a match are found."""
    documents = [name for name, language in DOCUMENTS.items() if language == "nnenglish"]
    queries = [name for name, language in QUERIES["dev"].items() if language == "nnenglish"]
    wanted = {(query, document) for document, query in TRUTH["dev"]}
    scores = [torch.tensor([[float((q, d) in wanted)] for q in queries]) for d in documents]
    records = {"query": queries, "document": documents, "layer": [0], "scores": scores}
    for unsearched, value in ((-10.0, 2 / 3), (None, 1.0)):
        expert = expert_of(root, tmp_path, unsearched_score=unsearched)
        assert expert.measure("dev", records)["mtwv"] == pytest.approx(value)


def test_a_folder_without_a_mini_corpus_is_an_error_and_nothing_is_written(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    words = [sys.executable, "-m", "qbe_task.mini_corpus"]
    done = subprocess.run([*words, str(nowhere)], capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"{nowhere} is not the folder of the mini corpus: it has no LibriSpeech." in done.stderr
    assert not nowhere.exists()
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: python -m qbe_task.mini_corpus")
