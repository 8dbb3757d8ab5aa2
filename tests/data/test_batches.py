"""Batches: order, shares, resumption, random choices, damaged files, workers and signals."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from collections import Counter
from itertools import pairwise

import pytest
import torch
from lhotse import CutSet, MonoCut

from s3prl_mtl.data import (
    UnreadableAudio,
    inverse_class_weights,
    item_generator,
    load_cuts,
    load_waveform,
    make_loader,
    random_crop,
)
from s3prl_mtl.data.sampling import plan_batches
from tests.mistakes import user_error


def cuts_of(count, seconds=lambda i: 1.0):
    return CutSet.from_cuts(
        MonoCut(id=f"u{i}", start=0, duration=seconds(i), channel=0) for i in range(count)
    )


def ids_and_numbers(cuts, generators):
    draws = [int(torch.randint(1 << 30, (), generator=g)) for g in generators]
    return [cut.id for cut in cuts], draws


def read_first_500(cuts, generators):
    pairs = zip(cuts, generators, strict=True)
    return [random_crop(load_waveform(cut), 500, g) for cut, g in pairs], [c.id for c in cuts]


def process_and_alarm(cuts, generators):
    """Ids of the utterances, process id, and seconds until the process exits by its alarm."""
    return [cut.id for cut in cuts], (os.getpid(), signal.getitimer(signal.ITIMER_REAL)[0])


def batches(cuts, **settings):
    return list(
        make_loader(cuts, ids_and_numbers, **{"batch_size": 4, "shuffle": True, **settings})
    )


def ids(found):
    return [identifier for batch, _ in found for identifier in batch]


def test_the_order_is_a_function_of_seed_and_epoch():
    cuts = cuts_of(30)
    torch.manual_seed(1)
    first = batches(cuts, seed=3, epoch=5)
    torch.manual_seed(2)
    assert batches(cuts, seed=3, epoch=5) == first
    assert ids(batches(cuts, seed=3, epoch=6)) != ids(first)
    assert ids(batches(cuts, seed=4, epoch=5)) != ids(first)


def test_loading_does_not_change_the_global_random_state():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    batches(cuts_of(30), weights=[1.0] * 30)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("settings", [{}, {"bucketed": True}])
def test_an_epoch_has_every_utterance_once_and_its_last_batch(settings):
    found = batches(cuts_of(30, lambda i: 0.5 + i / 20), **settings)
    assert sorted(ids(found)) == sorted(f"u{i}" for i in range(30))


def test_sliding_batches_move_on_by_one_utterance_in_the_order_of_falling_duration():
    seconds = (3, 1, 2, 5, 4)
    found = batches(cuts_of(5, lambda i: seconds[i]), batch_size=2, sliding=True)
    pairs = sorted(tuple(batch) for batch, _ in found)
    assert pairs == [("u0", "u2"), ("u2", "u1"), ("u2", "u1"), ("u3", "u4"), ("u4", "u0")]
    assert len({number for _, numbers in found for number in numbers}) == 10
    again = batches(cuts_of(5, lambda i: seconds[i]), batch_size=2, sliding=True, epoch=1)
    assert [batch for batch, _ in again] != [batch for batch, _ in found]


def test_sliding_batches_of_a_split_smaller_than_a_batch():
    found = batches(cuts_of(3), batch_size=4, sliding=True)
    assert [len(batch) for batch, _ in found] == [3, 3, 3]


def test_sliding_batches_are_divided_among_shares():
    cuts = cuts_of(10, lambda i: 1 + i / 10)
    whole = batches(cuts, batch_size=2, sliding=True)
    shares = [
        batches(cuts, batch_size=2, sliding=True, shares=[share], num_shares=2) for share in (0, 1)
    ]
    assert len(whole) == 10
    assert shares == [whole[::2], whole[1::2]]


def test_evaluation_keeps_the_order_and_the_last_partial_batch():
    found = batches(cuts_of(10), shuffle=False)
    assert ids(found) == [f"u{i}" for i in range(10)]
    assert [len(batch) for batch, _ in found] == [4, 4, 2]


@pytest.mark.parametrize("skip", [0, 1, 5, 8])
def test_skipping_batches_resumes_the_epoch_exactly(skip):
    cuts = cuts_of(30, lambda i: 0.5 + i / 20)
    whole = batches(cuts, bucketed=True, seed=1, epoch=2)
    rest = make_loader(
        cuts,
        ids_and_numbers,
        batch_size=4,
        shuffle=True,
        bucketed=True,
        seed=1,
        epoch=2,
        skip_batches=skip,
    )
    assert len(rest) == len(whole) - skip == 8 - skip
    assert list(rest) == whole[skip:]


def test_skipping_more_batches_than_there_are_is_an_error():
    with user_error("resume-conflict", where="batch 9 of 8, epoch 0"):
        batches(cuts_of(30), skip_batches=9)


@pytest.mark.parametrize("num_shares", [2, 3, 7])
@pytest.mark.parametrize("count", [28, 29, 31, 40, 57])
@pytest.mark.parametrize("bucketed", [False, True])
def test_training_shares_are_disjoint_and_of_equal_length(num_shares, count, bucketed):
    cuts = cuts_of(count, lambda i: 0.5 + i / 20)
    shares = [
        batches(cuts, shares=[share], num_shares=num_shares, bucketed=bucketed)
        for share in range(num_shares)
    ]
    assert len({len(share) for share in shares}) == 1
    seen = Counter(identifier for share in shares for identifier in ids(share))
    assert max(seen.values()) == 1
    # Fewer utterances than shares are dropped.
    assert count - len(seen) < num_shares


@pytest.mark.parametrize("count", [28, 31])
def test_several_training_shares_are_interleaved(count):
    cuts = cuts_of(count)
    zero, one, two = (batches(cuts, shares=[share], num_shares=3) for share in range(3))
    both = batches(cuts, shares=[2, 0], num_shares=3)
    assert both == [batch for pair in zip(two, zero, strict=True) for batch in pair]
    assert batches(cuts, shares=[2, 0], num_shares=3, skip_batches=3) == both[3:]
    every = [batch for turn in zip(zero, one, two, strict=True) for batch in turn]
    assert batches(cuts, shares=range(3), num_shares=3) == every


@pytest.mark.parametrize("num_shares", [2, 3, 7])
@pytest.mark.parametrize("count", [1, 5, 29])
def test_evaluation_shares_hold_every_utterance_exactly_once(num_shares, count):
    cuts = cuts_of(count)
    shares = [
        ids(batches(cuts, shuffle=False, shares=[share], num_shares=num_shares))
        for share in range(num_shares)
    ]
    assert sorted(i for share in shares for i in share) == sorted(f"u{i}" for i in range(count))


def test_several_evaluation_shares_keep_the_order_of_the_split():
    cuts = cuts_of(19)
    whole = batches(cuts, shuffle=False)
    found = batches(cuts, shuffle=False, shares=[2, 1], num_shares=3)
    assert found == [whole[1], whole[2], whole[4]]


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_loader_of_one_share_knows_how_many_batches_the_epoch_has(shuffle):
    settings = {"batch_size": 4, "shuffle": shuffle, "shares": [1], "num_shares": 3}
    loader = make_loader(cuts_of(19), ids_and_numbers, **settings)
    # 5 batches; in training the last two are redistributed as three.
    assert loader.epoch_batches == (6 if shuffle else 5)
    assert len(loader) == 2


@pytest.mark.parametrize("shares", [[3], [0, 0], [-1]])
def test_unknown_and_repeated_shares_are_errors(shares):
    with pytest.raises(ValueError, match=r"\b3\b"):
        batches(cuts_of(30), shares=shares, num_shares=3)


def test_fewer_utterances_than_shares_cannot_be_trained_on():
    with user_error("launch-invalid", where="3 utterances, 4 shares"):
        batches(cuts_of(3), shares=[0], num_shares=4)


def test_no_utterances_are_an_error():
    with user_error("corpus-empty"):
        batches(cuts_of(0))


def test_a_batch_size_below_one_is_an_error():
    with user_error("invalid-value", where="batch_size"):
        batches(cuts_of(4), batch_size=0)


@pytest.mark.parametrize("shuffle", [True, False])
def test_buckets_put_similar_durations_together(shuffle):
    durations = {f"u{i}": 1.0 + (i * 37 % 200) / 10 for i in range(200)}
    cuts = cuts_of(200, lambda i: durations[f"u{i}"])

    def spread(found):
        return sum(
            max(durations[i] for i in batch) - min(durations[i] for i in batch)
            for batch, _ in found
        )

    bucketed = batches(cuts, bucketed=True, shuffle=shuffle)
    assert spread(bucketed) < 0.2 * spread(batches(cuts))
    if shuffle:
        means = [sum(durations[i] for i in batch) for batch, _ in bucketed]
        assert any(a > b for a, b in pairwise(means)) and any(a < b for a, b in pairwise(means))


def test_inverse_class_weights_make_classes_equally_likely():
    labels = ["a"] * 80 + ["b"] * 15 + ["c"] * 5
    weights = inverse_class_weights(labels)
    assert weights[0] == 100 / 80 and weights[-1] == 100 / 5
    classes = {f"u{i}": label for i, label in enumerate(labels)}
    drawn = Counter()
    for epoch in range(60):
        drawn.update(classes[i] for i in ids(batches(cuts_of(100), weights=weights, epoch=epoch)))
    assert sum(drawn.values()) == 6000
    # Three equal chances: 2000 each, standard deviation 36.5.
    assert all(abs(drawn[label] - 2000) < 150 for label in "abc")


def test_repeated_draws_of_an_utterance_have_different_random_numbers():
    found = batches(cuts_of(20), weights=[1.0] + [1e-9] * 19)
    assert set(ids(found)) == {"u0"}
    numbers = [number for _, draws in found for number in draws]
    assert len(set(numbers)) == 20


def test_random_numbers_are_a_function_of_the_draw():
    def number(*draw):
        return int(torch.randint(1 << 30, (), generator=item_generator(*draw)))

    draws = [(0, 0, 0, "a"), (1, 0, 0, "a"), (0, 1, 0, "a"), (0, 0, 1, "a"), (0, 0, 0, "b")]
    assert len({number(*draw) for draw in draws}) == len(draws)
    assert [number(*draw) for draw in draws] == [number(*draw) for draw in draws]


def test_crops_do_not_depend_on_the_number_of_workers(listed_corpus, tmp_path):
    cuts = load_cuts(listed_corpus(9), "train", tmp_path / "cache")
    settings = {"batch_size": 2, "shuffle": True, "seed": 1}
    alone = list(make_loader(cuts, read_first_500, **settings))
    helped = list(make_loader(cuts, read_first_500, **settings, num_workers=2))
    assert [names for _, names in alone] == [names for _, names in helped]
    for (ours, _), (theirs, _) in zip(alone, helped, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_file_damaged_after_the_scan_is_dropped_from_its_batch(listed_corpus, tmp_path, caplog):
    corpus = listed_corpus(6)
    cuts = load_cuts(corpus, "train", tmp_path / "cache")
    (corpus.root / "u003.wav").write_bytes(b"not audio")
    found = []
    with (
        caplog.at_level(logging.WARNING),
        user_error("audio-unreadable", where="1 of 6 utterances"),
    ):
        for batch in make_loader(cuts, read_first_500, batch_size=3, shuffle=False):
            found.append(batch)
    assert [names for _, names in found] == [
        ["u000.wav", "u001.wav", "u002.wav"],
        ["u004.wav", "u005.wav"],
    ]
    (record,) = caplog.records
    assert record.name == "s3prl_mtl.data.batching"
    assert record.args[0].where == str(corpus.root / "u003.wav")


def test_a_training_batch_of_one_damaged_file_takes_another_utterance(listed_corpus, tmp_path):
    corpus = listed_corpus(4)
    cuts = load_cuts(corpus, "train", tmp_path / "cache")
    (corpus.root / "u002.wav").write_bytes(b"not audio")
    found = list(make_loader(cuts, read_first_500, batch_size=1, shuffle=True))
    names = sorted(name for _, batch in found for name in batch)
    assert names == ["u000.wav", "u001.wav", "u003.wav", "u003.wav"]


def test_an_evaluation_tolerates_one_damaged_file_of_a_hundred(listed_corpus, tmp_path):
    corpus = listed_corpus(100)
    cuts = load_cuts(corpus, "train", tmp_path / "cache")
    (corpus.root / "u002.wav").write_bytes(b"not audio")
    found = list(make_loader(cuts, read_first_500, batch_size=1, shuffle=False))
    assert len(found) == 99
    (corpus.root / "u003.wav").write_bytes(b"not audio")
    with user_error("audio-unreadable", where="2 of 100 utterances"):
        list(make_loader(cuts, read_first_500, batch_size=1, shuffle=False))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_user_error_in_a_worker_is_raised_unchanged(listed_corpus, tmp_path, num_workers):
    corpus = listed_corpus(1)
    cuts = load_cuts(corpus, "train", tmp_path / "cache")
    (corpus.root / "u000.wav").write_bytes(b"not audio")
    loader = make_loader(cuts, read_first_500, batch_size=1, shuffle=True, num_workers=num_workers)
    with user_error("audio-unreadable", where=r"u000\.wav") as caught:
        list(loader)
    assert isinstance(caught.value, UnreadableAudio)
    assert "Traceback" not in str(caught.value)
    assert caught.value.utterance_id == cuts[0].id


def test_workers_survive_the_stop_signals_of_a_scheduler():
    settings = {"batch_size": 1, "shuffle": False, "num_workers": 2}
    iterator = iter(make_loader(cuts_of(20), process_and_alarm, **settings))
    first = [next(iterator), next(iterator)]
    workers = {pid for _, (pid, _) in first}
    assert len(workers) == 2 and os.getpid() not in workers
    # Sent by a process that is not the workers' parent, like a scheduler.
    sender = multiprocessing.get_context("fork").Process(target=send_stop_signals, args=(workers,))
    sender.start()
    sender.join()
    rest = list(iterator)
    assert [names for names, _ in first + rest] == [[f"u{i}"] for i in range(20)]
    assert {pid for _, (pid, _) in rest} == workers
    assert {pid for _, (pid, left) in rest if 0 < left <= 30} == workers


def send_stop_signals(processes):
    for process in processes:
        for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
            os.kill(process, number)


def test_a_worker_terminated_by_its_parent_exits_at_once():
    before = set(multiprocessing.active_children())
    iterator = iter(
        make_loader(cuts_of(20), process_and_alarm, batch_size=1, shuffle=False, num_workers=1)
    )
    next(iterator)
    (worker,) = set(multiprocessing.active_children()) - before
    worker.terminate()
    worker.join(timeout=20)
    assert worker.exitcode == 0


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("bucketed", [True, False])
@pytest.mark.parametrize("size", [None, 5])
def test_batches_have_as_many_utterances_as_fit(shuffle: bool, bucketed: bool, size: int | None):
    durations = [0.5 + (i * 7 % 23) / 2 for i in range(200)] + [40.0]
    plan = plan_batches(
        durations, batch_seconds=20.0, batch_size=size, shuffle=shuffle, bucketed=bucketed, seed=1
    )
    found = [[index for _, index in batch] for batch in plan]
    drawn = [index for batch in found for index in batch]
    assert sorted(drawn) == list(range(201))
    if not shuffle and not bucketed:
        assert drawn == list(range(201))
    positions = sorted(position for batch in plan for position, _ in batch)
    assert positions == list(range(201))
    for batch in found:
        seconds = sum(durations[index] for index in batch)
        assert seconds <= 20 or len(batch) == 1
        assert size is None or len(batch) <= size
    in_order = sorted(plan, key=lambda batch: batch[0])
    for batch, following in pairwise(in_order):
        more = sum(durations[index] for _, index in [*batch, following[0]])
        assert more > 20 or len(batch) == size


def test_shares_of_batches_by_duration_are_equal_and_resume_anywhere():
    durations = [1.0 + i % 9 for i in range(120)]
    settings = {"batch_seconds": 30.0, "shuffle": True, "num_shares": 3, "epoch": 2}
    whole = plan_batches(durations, **settings)
    assert len(whole) % 3 == 0
    drawn = [index for batch in whole for _, index in batch]
    assert len(set(drawn)) == len(drawn) >= 118
    parts = [whole.select_shares([share], 3) for share in range(3)]
    assert [batch for round_ in zip(*parts, strict=True) for batch in round_] == list(whole)
    assert list(parts[1][4:]) == list(parts[1])[4:]


def test_a_limit_that_no_batch_can_have_is_refused():
    for settings in (
        {},
        {"batch_size": 0},
        {"batch_seconds": 0.0},
        {"batch_seconds": 9.0, "sliding": True},
    ):
        with user_error("invalid-value", where="batch_"):
            plan_batches([1.0, 2.0], shuffle=True, **settings)
