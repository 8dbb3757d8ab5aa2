"""Cached listings: an unchanged corpus is not listed again, and every change is noticed."""

from __future__ import annotations

import importlib.util
import os
import sys
import time

import pytest

from s3prl_mtl.data import (
    Corpus,
    Utterance,
    corpus_cache,
    list_audio,
    listed_once,
    load_cuts,
    note_read,
    read_lines,
)
from s3prl_mtl.data.corpus_cache import cached, forget_listings
from s3prl_mtl.data.folders import record_reads


class CountedCorpus(Corpus):
    """`<root>/audio/*.wav` with the labels of `<root>/labels.txt`; counts its listings."""

    title = "Counted"
    task = "counted"
    splits = ("train",)
    cacheable = True

    def __init__(self, root):
        super().__init__({"root": root})
        self.root = root
        self.listings = 0

    def problems(self):
        return []

    def utterances(self, split):
        self.listings += 1
        labels = dict(line.split() for _, line in read_lines(self.root / "labels.txt"))
        folder = self.root / "audio"
        return [
            Utterance(name, folder / name, {"class": labels.get(name, "none")})
            for name in list_audio(folder)
        ]

    def label_space(self):
        return {"classes": []}


def backdate(root):
    """Set the times of all files to an hour ago: later ones are not relied on."""
    earlier = time.time() - 3600
    for path in [*root.rglob("*"), root, root.parent]:
        os.utime(path, (earlier, earlier))


@pytest.fixture
def corpus(tmp_path, write_audio):
    root = tmp_path / "data" / "corpus"
    for number in range(3):
        write_audio(root / "audio" / f"{number}.wav", seconds=0.1, seed=number)
    (root / "labels.txt").write_text("0.wav a\n1.wav b\n2.wav c\n")
    backdate(root)
    return CountedCorpus(root)


@pytest.fixture
def load(corpus, tmp_path):
    """The labels of the split by id, and the number of listings for that."""

    def load():
        start = CountedCorpus(corpus.root)
        cuts = load_cuts(start, "train", tmp_path / "cache")
        return {cut.id: cut.custom["labels"]["class"] for cut in cuts}, start.listings

    return load


def test_an_unchanged_corpus_is_listed_once(load):
    labels = {"0.wav": "a", "1.wav": "b", "2.wav": "c"}
    assert [load(), load(), load()] == [(labels, 1), (labels, 0), (labels, 0)]


def test_a_corpus_that_is_not_cacheable_is_listed_at_every_start(load, monkeypatch):
    monkeypatch.setattr(CountedCorpus, "cacheable", False)
    assert [load()[1], load()[1]] == [1, 1]


def test_added_and_removed_audio_is_noticed(load, corpus, write_audio):
    load()
    write_audio(corpus.root / "audio" / "3.wav", seconds=0.1, seed=9)
    assert load() == ({"0.wav": "a", "1.wav": "b", "2.wav": "c", "3.wav": "none"}, 1)
    (corpus.root / "audio" / "0.wav").unlink()
    assert load() == ({"1.wav": "b", "2.wav": "c", "3.wav": "none"}, 1)


def test_changed_labels_are_noticed_even_with_the_old_size_and_time(load, corpus):
    load()
    path = corpus.root / "labels.txt"
    status = os.stat(path)
    path.write_text("0.wav x\n1.wav b\n2.wav c\n")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert load() == ({"0.wav": "x", "1.wav": "b", "2.wav": "c"}, 1)


def test_other_files_beside_a_metadata_file_do_not_matter(tmp_path):
    lists, audio = tmp_path / "runs", tmp_path / "audio"
    for folder in (lists, audio):
        folder.mkdir()
    (lists / "labels.txt").write_text("a\n")
    with record_reads() as reads:
        read_lines(lists / "labels.txt")
        list_audio(audio)
        note_read(lists / "other.txt")
    assert reads.keys() == {
        str(path) for path in (lists / "labels.txt", audio, tmp_path, lists / "other.txt")
    }
    assert reads[str(lists / "other.txt")] is None


def test_audio_that_is_overwritten_is_noticed(load, corpus, tmp_path, write_audio):
    load()
    write_audio(corpus.root / "audio" / "1.wav", seconds=0.7)
    assert load()[1] == 1
    cuts = load_cuts(corpus, "train", tmp_path / "cache")
    assert cuts.durations.tolist() == pytest.approx([0.1, 0.7, 0.1])


def test_recent_changes_are_not_relied_on(load, corpus):
    os.utime(corpus.root / "labels.txt")
    assert [load()[1], load()[1]] == [1, 1]
    backdate(corpus.root)
    assert [load()[1], load()[1]] == [1, 0]


def test_forgotten_listings_are_made_again(load, tmp_path):
    load()
    forget_listings(tmp_path / "cache")
    assert [load()[1], load()[1]] == [1, 0]


@pytest.mark.parametrize(
    "damage", [b"", b"{}", b'{"reads": 3', b"[]", b'{"reads": [], "values": 1}']
)
def test_a_damaged_listing_is_made_again(load, tmp_path, damage):
    load()
    (path,) = (tmp_path / "cache").glob("manifests/*/listing.json")
    path.write_bytes(damage)
    assert [load()[1], load()[1]] == [1, 0]


def test_a_listing_that_cannot_be_written_is_no_error(load, monkeypatch):
    def refuse(path, text):
        raise PermissionError(path)

    with monkeypatch.context() as patch:
        patch.setattr(corpus_cache, "replace_text", refuse)
        assert [load()[1], load()[1]] == [1, 1]
    assert [load()[1], load()[1]] == [1, 0]


def test_other_source_code_of_a_corpus_is_noticed(tmp_path):
    def labels(code, package="package"):
        package = tmp_path / package
        package.mkdir(exist_ok=True)
        path = package / "languages.py"
        path.write_text(code)
        backdate(package)
        spec = importlib.util.spec_from_file_location("languages", path)
        module = sys.modules["languages"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        corpus = module.Languages({"root": "x"})
        return cached(corpus, tmp_path / "cache", "labels", corpus.label_space)

    code = (
        "from s3prl_mtl.data import Corpus\n"
        "class Languages(Corpus):\n"
        "    title = task = 'languages'\n"
        "    splits = ()\n"
        "    cacheable = True\n"
        "    def problems(self): return []\n"
        "    def utterances(self, split): return []\n"
        "    def label_space(self): return {'classes': ['de']}\n"
    )
    assert labels(code) == {"classes": ["de"]}
    changed = code.replace("['de']", "['de', 'fr']")
    assert labels(changed) == {"classes": ["de", "fr"]}
    # Of another package: its corpus has the same name and settings.
    assert labels(code, "other") == {"classes": ["de"]}
    assert labels(changed) == {"classes": ["de", "fr"]}
    del sys.modules["languages"]


def test_a_folder_that_is_listed_once_counts_as_read_at_every_use(corpus):
    listings = []

    class Once(CountedCorpus):
        @listed_once
        def names(self):
            listings.append(self)
            return list_audio(self.root / "audio")

    once = Once(corpus.root)
    for _ in range(2):
        with record_reads() as reads:
            assert once.names == ["0.wav", "1.wav", "2.wav"]
        assert str(corpus.root / "audio") in reads
    assert listings == [once]
