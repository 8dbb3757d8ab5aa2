"""Manifests: exact rows, columns without cuts, and what a process makes of one."""

from __future__ import annotations

import multiprocessing
import pickle

import numpy as np
import pytest
from lhotse import Recording
from lhotse.audio import AudioSource
from lhotse.cut import MonoCut, MultiCut

from s3prl_mtl.data import Manifest, make_loader
from s3prl_mtl.data import manifest as manifest_module
from s3prl_mtl.data.manifest import write_manifest

ODD_LABELS = [
    {"class": "c0"},
    {"text": 'quotes " and \\ and "\n', "empty": "", "none": None, "true": True},
    {"float": 0.1 + 0.2, "large": 2**70, "tiny": 5e-324, "list": [1, [2.5, "x"], {}], "": {"a": 1}},
    {"Grüße": "日本語 \U0001f600", "half": "\ud83d", "int": 1, "as_float": 1.0},
]


def cut_of(number, labels=None, channels=1, seconds=1.0, digest=-(2**63)):
    path = f"/corpus/a b/u{number}.x.wav"
    recording = Recording(
        id=f"u{number}.x",
        sources=[AudioSource(type="file", channels=list(range(channels)), source=path)],
        sampling_rate=44_100,
        num_samples=100_001,
        duration=100_001 / 44_100,
        channel_ids=list(range(channels)),
    )
    kind, channel = (MonoCut, 0) if channels == 1 else (MultiCut, list(range(channels)))
    return kind(
        id=f"u{number}",
        start=number / 7,
        duration=seconds,
        channel=channel,
        recording=recording,
        custom={"labels": labels or {"class": f"c{number % 2}"}, "digest": digest},
    )


@pytest.fixture
def written(tmp_path):
    """The manifest of some cuts."""

    def write(cuts):
        write_manifest(tmp_path / "split.arrow", cuts)
        return Manifest(tmp_path / "split.arrow")

    return write


@pytest.fixture
def drawn(monkeypatch):
    """The ids of the cuts that are made."""
    ids = []
    real = manifest_module._make_cut

    def counted(row):
        ids.append(row["id"])
        return real(row)

    monkeypatch.setattr(manifest_module, "_make_cut", counted)
    return ids


def test_cuts_and_labels_come_back_exactly(written):
    cuts = [cut_of(number, labels, 1 + number % 3) for number, labels in enumerate(ODD_LABELS)]
    cuts.append(cut_of(9, digest=None))
    manifest = written(cuts)
    assert [cut.to_dict() for cut in manifest] == [cut.to_dict() for cut in cuts]
    assert [manifest[number].to_dict() for number in range(5)] == [cut.to_dict() for cut in cuts]
    assert list(manifest.labels())[:4] == ODD_LABELS
    assert [type(value) for value in manifest[3].custom["labels"].values()][2:] == [int, float]


def test_a_manifest_may_have_more_rows_than_a_batch(written, monkeypatch):
    monkeypatch.setattr(manifest_module, "_BATCH_ROWS", 3)
    monkeypatch.setattr(manifest_module, "_CHUNK_ROWS", 4)
    manifest = written([cut_of(number) for number in range(10)])
    assert [cut.id for cut in manifest] == list(manifest.ids()) == [f"u{i}" for i in range(10)]
    assert [manifest[number].id for number in (0, 3, 9, -1)] == ["u0", "u3", "u9", "u9"]
    assert len(manifest) == 10
    with pytest.raises(IndexError):
        manifest[10]


def test_columns_are_read_without_making_cuts(written, drawn):
    manifest = written([cut_of(number, seconds=1 + number) for number in range(4)])
    assert manifest.durations.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert list(manifest.labels()) == [{"class": f"c{number % 2}"} for number in range(4)]
    assert list(manifest.distinct_labels()) == [{"class": "c0"}, {"class": "c1"}]
    assert drawn == []


def test_parts_of_a_manifest_keep_its_order(written):
    manifest = written([cut_of(number, seconds=1 + number) for number in range(6)])
    even = manifest.filter(lambda cut: cut.custom["labels"]["class"] == "c0")
    assert [cut.id for cut in even] == list(even.ids()) == ["u0", "u2", "u4"]
    assert even.durations.tolist() == [1.0, 3.0, 5.0]
    assert [cut.id for cut in even[1:]] == ["u2", "u4"]
    assert even.select(np.array([2, 0]))[0].id == "u4"
    assert len(even) == 3 and even[-1].id == "u4"


def test_a_process_gets_the_path_instead_of_the_rows(written):
    manifest = written([cut_of(number) for number in range(1000)])
    parts = [manifest, manifest[1:3]]
    for part in parts:
        sent = pickle.dumps(part)
        assert len(sent) < 500
        assert list(pickle.loads(sent).ids()) == list(part.ids())
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(ids_of, parts) == [list(part.ids()) for part in parts]


def ids_of(manifest):
    return list(manifest.ids())


def test_only_the_utterances_of_the_batches_that_are_read_are_made(written, drawn):
    manifest = written([cut_of(number, seconds=1 + number / 10) for number in range(40)])

    def read(**settings):
        loader = make_loader(
            manifest,
            lambda cuts, _: ([None] * len(cuts), [cut.id for cut in cuts]),
            batch_size=4,
            shuffle=True,
            bucketed=True,
            **settings,
        )
        return [ids for _, ids in loader]

    whole = read()
    drawn.clear()
    assert read(skip_batches=8) == whole[8:]
    assert drawn == [name for ids in whole[8:] for name in ids]
