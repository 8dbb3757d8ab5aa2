"""Long recordings: with a local encoder and head, chunks give what the whole recording gives."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from downstream_plugins.ic import IntentClassification
from downstream_plugins.pr import PhonemeRecognition
from downstream_plugins.sd import SpeakerDiarization, segments
from downstream_plugins.sv import SpeakerVerification
from s3prl_mtl import Chunk, Featurizer, HiddenStates, TrainedRun, Upstream
from s3prl_mtl.data import SAMPLE_RATE
from s3prl_mtl.inference.chunking import Chunking, cut
from s3prl_mtl.inference.long_audio import LongRecording
from s3prl_mtl.upstreams.shared_encoder import SharedEncoder
from tests.mistakes import user_error

WIDTH = 16
UTTERANCE = {"select": "UtteranceLevel", "UtteranceLevel": {"pooling": "MeanPooling"}}


class LocalUpstream(Upstream):
    """A frame is a fixed projection of its own 400 samples."""

    hidden_size = WIDTH
    num_hidden_states = 1
    downsample_rate = 320

    def __init__(self) -> None:
        super().__init__()
        self.window = torch.randn(400, WIDTH, generator=torch.Generator().manual_seed(0))

    def forward(self, wavs: list[Tensor], masks: Any = None) -> HiddenStates:
        frames = [torch.tanh(wav.unfold(0, 400, 320) @ self.window) for wav in wavs]
        return HiddenStates(torch.cat(frames)[None], [len(frame) for frame in frames])


class PlainHead:
    """A head of another package with nothing but `predict`."""

    def predict(self, features: list[Tensor], lengths_samples: list[int]) -> list[dict[str, Any]]:
        return [{"frames": len(feature)} for feature in features]

    def eval(self) -> None: ...


class OtherAnswers(IntentClassification):
    """A head that answers other than the class that joins its chunks."""

    def predict(self, features: list[Tensor], lengths_samples: list[int]) -> list[dict[str, Any]]:
        return [{"other": 1} for _ in features]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    folder = tmp_path_factory.mktemp("expdir")
    torch.manual_seed(0)
    phones = {"vocabulary": ["<blank>", "<eos>", "<unk>", *"ABCDEF"]}
    pr = {"project_dim": 8, "zero_infinity": True, "select": "FrameLevel", "FrameLevel": {}}
    sd = {"datarc": {"frame_shift": 160}, "modelrc": {"rnn_layers": 0, "hidden_size": 4}}
    ic = {"modelrc": {"projector_dim": 8, **UTTERANCE}}
    intents = {"action": ["a", "b"], "object": ["c", "d", "e"], "location": ["f", "g"]}
    experts: dict[str, Any] = {
        "pr": PhonemeRecognition(WIDTH, 320, {"model": pr}, folder, labels=phones),
        "sd": SpeakerDiarization(WIDTH, 320, sd, folder, labels={"speakers_per_recording": 2}),
        "ic": IntentClassification(WIDTH, 320, ic, folder, labels=intents),
        "other": OtherAnswers(WIDTH, 320, ic, folder, labels=intents),
        "plain": PlainHead(),
    }
    upstream = LocalUpstream()
    featurizer = Featurizer(upstream, "last_hidden_state")
    encoder = SharedEncoder(upstream, featurizer, torch.device("cpu"), freeze=True, bf16=False)
    tasks = {name: SimpleNamespace(expert=expert) for name, expert in experts.items()}
    return TrainedRun(encoder, tasks, 1, dict.fromkeys(experts), {})  # type: ignore[arg-type]


def sound(seconds: float, seed: int = 0) -> Tensor:
    """Noise whose level changes, so that speech activity does."""
    generator = torch.Generator().manual_seed(seed)
    samples = round(seconds * SAMPLE_RATE)
    level = torch.rand(samples // 3000 + 1, generator=generator).repeat_interleave(3000)[:samples]
    return 0.3 * level * torch.randn(samples, generator=generator).clamp(-3, 3)


def in_parts(wave: Tensor, seed: int) -> Iterator[Tensor]:
    source = random.Random(seed)
    while len(wave):
        size = source.randint(1, 50_000)
        yield wave[:size]
        wave = wave[size:]


@pytest.mark.parametrize("seconds", [0.1, 9.99, 10, 10.01, 12, 17.003, 47.3])
@pytest.mark.parametrize(("length", "overlap"), [(10, 2), (10, 3), (6, 3)])
def test_own_parts_follow_each_other_and_chunks_are_their_samples(
    seconds: float, length: int, overlap: int
) -> None:
    wave = sound(seconds)
    chunks = list(cut(in_parts(wave, 1), Chunking(length, overlap)))
    assert chunks[0][0].own_start == 0
    for (one, _), (two, _) in pairwise(chunks):
        assert one.own_end == two.own_start
        assert one.end - two.start == overlap
        assert one.end - one.own_end == two.own_start - two.start == overlap / 2
    for chunk, samples in chunks:
        first = round(chunk.start * SAMPLE_RATE)
        assert torch.equal(samples, wave[first : first + len(samples)])
        assert len(samples) <= length * SAMPLE_RATE and not chunk.is_silent
    last = chunks[-1][0]
    assert last.own_end == last.end == pytest.approx(len(wave) / SAMPLE_RATE)
    assert (len(chunks) == 1) == (len(wave) <= length * SAMPLE_RATE)


@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("seconds", [10, 10.03, 31, 47.311])
def test_frames_decoded_at_once_are_those_of_the_whole_recording(
    run: TrainedRun, seconds: float, together: int
) -> None:
    wave = sound(seconds)
    (whole,) = run.predict([wave], ["pr", "sd"])
    recording = LongRecording(run, ["pr", "sd"])
    numbers = list(recording.add_all(in_parts(wave, 2), Chunking(10, 2), together))
    joined = recording.answers()
    assert len(whole["pr"]["phones"]) > 5 * seconds and len(whole["sd"]["segments"]) > seconds
    assert joined["pr"]["phones"] == whole["pr"]["phones"]
    assert joined["pr"]["confidence"] == pytest.approx(whole["pr"]["confidence"], rel=1e-5)
    # The last frame of a chunk repeats the one before it: inside, the next chunk replaces it.
    assert joined["sd"] == whole["sd"]
    assert recording.seconds == pytest.approx(seconds) and not recording.is_silent
    parts = [recording.part(number) for number in numbers]
    assert [part.start for part in parts[1:]] == [part.end for part in parts[:-1]]
    for part in parts:
        for segment in part.answers["sd"]["segments"]:
            assert part.start <= segment["start"] <= segment["end"] <= part.end + 0.01


def test_classes_are_those_of_the_mean_over_time(run: TrainedRun) -> None:
    wave = sound(23)
    answer = run.predict_long([wave], ["ic"], 10, 2)["ic"]
    chunks = [(0, 10, 9), (8, 18, 8), (16, 23, 6)]
    expert = run._tasks["ic"].expert
    means = [0.0, 0.0, 0.0]
    for (start, end, own), chunk in zip(chunks, answer["chunks"], strict=True):
        (alone,) = run.predict([wave[start * SAMPLE_RATE : end * SAMPLE_RATE]], ["ic"])
        probability = chunk.pop("probability")
        assert probability == pytest.approx(alone["ic"].pop("probability"), abs=1e-6)
        assert chunk == {"start": start, "end": end, **alone["ic"]}
        features = run.features([wave[start * SAMPLE_RATE : end * SAMPLE_RATE]])
        with torch.no_grad():
            scores = [score.softmax(-1)[0] for score in expert._scores(features)]
        means = [mean + own / 23 * score for mean, score in zip(means, scores, strict=True)]
    expected = [
        list(known)[int(mean.argmax())]
        for known, mean in zip(expert.answers.values(), means, strict=True)
    ]
    assert [answer[name] for name in expert.answers] == expected
    product = np.prod([float(mean.max()) for mean in means])
    assert answer["probability"] == pytest.approx(product, abs=1e-6)
    assert "chunks" not in run.predict_long([sound(3)], ["ic"], 10, 2)["ic"]


def test_tasks_that_do_not_join_have_a_prediction_for_each_chunk(run: TrainedRun) -> None:
    answers = run.predict_long([sound(15)], ["plain", "other"], 10, 2)
    frames = [(10 * SAMPLE_RATE - 400) // 320 + 1, (7 * SAMPLE_RATE - 400) // 320 + 1]
    assert answers["plain"]["chunks"] == [
        {"start": 0, "end": 10, "frames": frames[0]},
        {"start": 8, "end": 15, "frames": frames[1]},
    ]
    # Its class overrides `predict` of the class that joins.
    assert [chunk["other"] for chunk in answers["other"]["chunks"]] == [1, 1]
    assert run.predict_long([sound(2)], ["plain"], 10, 2) == {"plain": {"frames": 99}}


@pytest.mark.parametrize("speakers", [2, 3])
def test_speakers_are_followed_through_chunks_that_number_them_anew(
    tmp_path: Path, speakers: int
) -> None:
    settings = {"datarc": {"frame_shift": 160}, "modelrc": {"rnn_layers": 0, "hidden_size": 4}}
    labels = {"speakers_per_recording": speakers}
    expert = SpeakerDiarization(WIDTH, 320, settings, tmp_path, labels=labels)
    source = np.random.default_rng(0)
    seconds = 120
    # Turns of 0.3 s: every speaker speaks in every overlap.
    active = source.random((seconds * 10 // 3, speakers)).repeat(30, axis=0)[: seconds * 100] > 0.5
    noisy = np.clip(active + 0.2 * source.standard_normal(active.shape), 0, 1).astype(np.float32)
    chunks: list[Chunk] = []
    for empty, _ in cut([torch.zeros(seconds * SAMPLE_RATE)], Chunking(20, 4)):
        order = np.arange(speakers) if not chunks else source.permutation(speakers)
        own = noisy[round(empty.start * 100) : round(empty.end * 100), order]
        chunk = Chunk(empty.start, empty.end, empty.own_start, empty.own_end, torch.tensor(own))
        if chunks:
            output = expert.align_chunk(chunks[-1], chunk)
            chunk = Chunk(chunk.start, chunk.end, chunk.own_start, chunk.own_end, output)
        chunks.append(chunk)
    assert len(chunks) > 5
    found = expert.join_chunks(chunks)["segments"]
    assert found == expert._segments(torch.tensor(noisy))
    assert segments(active, 0.01)


def test_embeddings_are_averaged_without_silent_chunks(tmp_path: Path) -> None:
    outputs = [[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]
    times = [(0.0, 9.0), (9.0, 17.0), (17.0, 20.0)]
    chunks = [
        Chunk(start, end, start, end, {"embedding": output}, is_silent=number == 1)
        for number, (output, (start, end)) in enumerate(zip(outputs, times, strict=True))
    ]
    joined = SpeakerVerification.join_chunks(None, chunks)["embedding"]  # type: ignore[arg-type]
    mean = np.array([9 + 3 * 0.6, 3 * 0.8])
    np.testing.assert_allclose(joined, mean / np.linalg.norm(mean), rtol=1e-6)


@pytest.mark.parametrize(("seconds", "overlap"), [(10, 0), (10, 6), (0, 0), (1, 1), (-4, -2)])
def test_impossible_chunks_are_refused(seconds: int, overlap: int) -> None:
    with user_error("invalid-value", where="--chunk_seconds"):
        Chunking(seconds, overlap)


@pytest.mark.parametrize("rate", [50, 12.5, 100 / 3])
def test_own_frames_of_many_chunks_are_as_many_as_those_of_the_recording(rate: float) -> None:
    """At 12.5 frames a second, half a frame too many in each chunk would be seconds in an hour."""
    frames = 0
    for number in range(200):
        start, end = 39.0 * number, 39.0 * number + 40
        chunk = Chunk(start, end, start + 0.5 if number else 0.0, end - 0.5)
        frames += len(chunk.own(torch.zeros(int(40 * rate)), rate))
    assert frames == pytest.approx((39.0 * 199 + 39.5) * rate, abs=1)


@pytest.mark.parametrize("samples", [0, 1, 399])
def test_a_recording_shorter_than_a_frame_is_refused(run: TrainedRun, samples: int) -> None:
    with user_error("audio-too-short"):
        run.predict_long([torch.zeros(samples)])
