"""Query by example: warping and metric against their definitions; contract and corpus."""

from __future__ import annotations

import itertools
import random
from functools import cache
from pathlib import Path

import pytest
import torch
from qbe_task.corpus import Quesst14
from qbe_task.mini_corpus import make_corpus as make_quesst
from qbe_task.term_weighted_value import false_alarm_weight, maximum_term_weighted_value
from qbe_task.warping import frame_distances, rescale, subsequence_cost

from s3prl_mtl.authoring import check_task
from s3prl_mtl.data.mini_corpus import make_corpus
from s3prl_mtl.errors import UserError


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpora") / "tiny"
    make_corpus(folder, "tiny")
    make_quesst(folder, folder / "quesst14Database")
    return folder


def test_the_cost_is_the_minimum_over_all_paths() -> None:
    draw = torch.Generator().manual_seed(0)
    for query_frames, document_frames in ((1, 4), (3, 2), (4, 6)):
        distances = torch.rand(1, 1, query_frames, document_frames, generator=draw)
        table = distances[0, 0].tolist()
        costs = [
            sum(table[i][j] for i, j in enumerate(path))
            for path in itertools.product(range(document_frames), repeat=query_frames)
            if all(0 <= later - sooner <= 2 for sooner, later in itertools.pairwise(path))
        ]
        valid = torch.ones(1, document_frames, dtype=torch.bool)
        found = subsequence_cost(distances, valid).item()
        assert found == pytest.approx(min(costs) / query_frames)


def test_scores_do_not_depend_on_the_batch_of_documents() -> None:
    draw = torch.Generator().manual_seed(1)
    query = torch.nn.functional.normalize(torch.randn(2, 5, 3, generator=draw), dim=-1)
    documents = [torch.randn(2, frames, 3, generator=draw) for frames in (4, 9)]
    documents = [torch.nn.functional.normalize(document, dim=-1) for document in documents]
    padded = torch.zeros(2, 2, 9, 3)
    valid = torch.zeros(2, 9, dtype=torch.bool)
    for place, document in enumerate(documents):
        padded[:, place, : document.shape[1]] = document
        valid[place, : document.shape[1]] = True
    together = subsequence_cost(rescale(frame_distances(query, padded), valid), valid)
    for place, document in enumerate(documents):
        own = torch.ones(1, document.shape[1], dtype=torch.bool)
        distances = rescale(frame_distances(query, document[:, None]), own)
        alone = subsequence_cost(distances, own)
        torch.testing.assert_close(together[:, place], alone[:, 0])


def test_the_cost_of_a_segment_of_the_document_is_zero() -> None:
    document = torch.nn.functional.normalize(
        torch.randn(1, 1, 12, 4, generator=torch.Generator().manual_seed(2)), dim=-1
    )
    distances = frame_distances(document[0, :, 3:8], document)
    assert distances.min() > -1e-6
    cost = subsequence_cost(distances, torch.ones(1, 12, dtype=torch.bool))
    assert cost.item() == pytest.approx(0.0, abs=1e-6)


def test_the_value_is_the_maximum_over_all_thresholds() -> None:
    draw = random.Random(0)
    for _ in range(20):
        scores = torch.tensor([[draw.randrange(6) for _ in range(7)] for _ in range(4)]).float()
        targets = torch.tensor([[draw.random() < 0.4 for _ in range(7)] for _ in range(4)])
        if not targets.any():
            continue
        weight = draw.choice([0.3, 1.0, 12.49])

        @cache
        def value(threshold: float, scores=scores, targets=targets, weight=weight) -> float:
            costs = []
            for row, wanted in zip(scores.tolist(), targets.tolist(), strict=True):
                if any(wanted):
                    hit = [s > threshold for s, w in zip(row, wanted, strict=True) if w]
                    false = [s > threshold for s, w in zip(row, wanted, strict=True) if not w]
                    alarms = sum(false) / len(false) if false else 0.0
                    costs.append(1 - sum(hit) / len(hit) + weight * alarms)
            return 1 - sum(costs) / len(costs)

        best = max(value(threshold) for threshold in (-1.0, *range(7)))
        assert maximum_term_weighted_value(scores, targets, weight) == pytest.approx(best)


def test_the_weight_is_that_of_quesst() -> None:
    assert false_alarm_weight(0.0008, 100.0, 1.0) == pytest.approx(12.49)


def test_the_task_satisfies_the_contract(corpora: Path, tmp_path: Path) -> None:
    findings = check_task("qbe", data=corpora, overrides=f"cache_dir={tmp_path}")
    assert not [str(finding) for finding in findings if finding.holds is False]


def test_matches_name_queries_and_documents_of_the_corpus(corpora: Path) -> None:
    corpus = Quesst14(root=corpora / "quesst14Database", language="nnenglish")
    assert corpus.problems() == []
    queries = {utterance.id for utterance in corpus.utterances("dev-queries")}
    documents = {utterance.id for utterance in corpus.utterances("dev")}
    assert queries and documents
    for query, document in corpus.matches("dev"):
        assert query in queries and document in documents
    assert corpus.utterances("dev") == corpus.utterances("test")


def test_an_absent_language_is_an_error(corpora: Path) -> None:
    corpus = Quesst14(root=corpora / "quesst14Database", language="basque")
    with pytest.raises(UserError) as caught:
        corpus.utterances("dev")
    assert caught.value.code == "corpus-empty"
