"""A training step on each layout and variant of the corpora that `docs/data.md` lists."""

from __future__ import annotations

import csv
import math
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from s3prl_mtl import TaskExpert, load_task
from s3prl_mtl.config import build_config, resolve
from s3prl_mtl.fileio.atomic import replace_text

WIDTH = 8
SMALL_HEADS = Path(__file__).parents[2] / "run_scripts" / "demo.yaml"
FOLDERS = {
    "asr": ["LibriSpeech"],
    "pr": ["LibriSpeech"],
    "sf": ["SNIPS"],
    "ks": ["speech_commands_v0.01", "speech_commands_test_set_v0.01"],
    "ic": ["fluent_speech_commands_dataset"],
    "sid": ["VoxCeleb1"],
    "er": ["IEMOCAP_full_release"],
    "sv": ["VoxCeleb1"],
    "sd": ["Libri2Mix"],
}


def rewrite(paths: list[Path], change: Callable[[str], str]) -> None:
    assert paths
    for path in paths:
        replace_text(path, change(path.read_text()))


def flac(root: Path) -> None:
    """Every file in the other lossless format; lists keep their names."""
    for path in sorted(p for p in root.rglob("*") if p.suffix in (".wav", ".flac")):
        other = {".wav": ".flac", ".flac": ".wav"}[path.suffix]
        soundfile.write(path.with_suffix(other), *soundfile.read(path))
        path.unlink()


def windows_line_ends(root: Path) -> None:
    texts = [p for p in root.rglob("*") if p.is_file() and p.suffix not in (".wav", ".flac")]
    for path in texts:
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


def flat_voxceleb(root: Path) -> None:
    (root / "VoxCeleb1" / "wav").mkdir()
    for part in ("dev", "test"):
        for folder in sorted((root / "VoxCeleb1" / part / "wav").iterdir()):
            shutil.move(folder, root / "VoxCeleb1" / "wav")
        shutil.rmtree(root / "VoxCeleb1" / part)


def archives_of_voxceleb(root: Path) -> None:
    for part in ("dev", "test"):
        (root / "VoxCeleb1" / part).rename(root / "VoxCeleb1" / f"vox1_{part}_wav")


def linked_voxceleb(root: Path) -> None:
    flat_voxceleb(root)
    for part in ("dev", "test"):
        (root / "VoxCeleb1" / part).mkdir()
        (root / "VoxCeleb1" / part / "wav").symlink_to(root / "VoxCeleb1" / "wav")


def nested_speech_commands(root: Path) -> None:
    for name in FOLDERS["ks"]:
        (root / name).rename(root / "moved")
        (root / name).mkdir()
        (root / "moved").rename(root / name / name)


def blanks_in_iemocap(root: Path) -> None:
    rewrite(
        list(root.glob("IEMOCAP*/Session*/dialog/EmoEvaluation/*.txt")),
        lambda text: text.replace("\t", "  "),
    )


def moved_fluent(root: Path) -> None:
    rewrite(
        list(root.glob("fluent*/data/*.csv")),
        lambda text: text.replace("wavs/speakers/", "/home/me/fluent/wavs/speakers/").replace(
            ",none", ","
        ),
    )


def moved_libri2mix(root: Path) -> None:
    for split in ("train", "dev", "test"):
        path = root / "Libri2Mix" / split / "wav.scp"
        moved = [line.split(None, 1) for line in path.read_text().splitlines()]
        path.write_text("".join(f"{r} /scratch/mix/{split}/{w}\n" for r, w in moved))
        (root / "Libri2Mix" / split / "utt2spk").unlink()


def voxceleb_lists_of_another_machine(root: Path) -> None:
    lists = [root / "VoxCeleb1" / name for name in ("iden_split.txt", "veri_test2.txt")]
    rewrite(lists, lambda text: text.replace(" id1", " /data/vox1/wav/id1"))


def speakers_in_the_names_only(root: Path) -> None:
    for path in [*root.glob("Libri2Mix/*/utt2spk"), *root.glob("Libri2Mix/*/spk2utt")]:
        path.unlink()


def cmudict(root: Path) -> None:
    path = root / "LibriSpeech" / "librispeech-lexicon.txt"
    lines = path.read_text().splitlines()
    more = [f"{line.split()[0]}(1) AH0" for line in lines]
    text = "\n".join(
        ["## CMUdict 0.6", "# comment", ";;; CAF\u00c9", *lines, *more, "CAF\u00c9  K AE0 F EY1"]
    )
    path.write_bytes(text.encode("latin-1"))


def probabilities(root: Path) -> None:
    path = root / "LibriSpeech" / "librispeech-lexicon.txt"
    entries = [line.split() for line in path.read_text().splitlines()]
    path.write_text("".join(f"{word}\t0.5 {' '.join(phones)}\n" for word, *phones in entries))


def silence_probabilities(root: Path) -> None:
    path = root / "LibriSpeech" / "librispeech-lexicon.txt"
    entries = [line.split() for line in path.read_text().splitlines()]
    numbers = "1.0 0.2 1.5 0.9"
    path.write_text("".join(f"{word} {numbers} {' '.join(phones)}\n" for word, *phones in entries))


def second_lexicon(root: Path) -> None:
    """Half of the words in a file of grapheme-to-phoneme output."""
    path = root / "LibriSpeech" / "librispeech-lexicon.txt"
    entries = [line.split() for line in path.read_text().splitlines()]
    half = len(entries) // 2
    for name, some in ((path.name, entries[:half]), ("g2p.txt", entries[half:])):
        lines = [f"{word}\t{' '.join(phones)}\n" for word, *phones in some]
        path.with_name(name).write_text("".join(lines))


def audio_in_one_folder(root: Path) -> None:
    for folder in sorted((root / "LibriSpeech").iterdir()):
        for path in sorted(folder.rglob("*.flac")):
            path.rename(folder / path.name)


def tabs_in_transcripts(root: Path) -> None:
    texts = list(root.glob("LibriSpeech/*/*/*/*.trans.txt"))
    rewrite(texts, lambda text: re.sub(r"(?m)^(\S+) ", r"\1\t", text))


def mp3_beside_wav(root: Path) -> None:
    for path in sorted((root / "SNIPS").rglob("*.wav")):
        soundfile.write(path.with_suffix(".mp3"), *soundfile.read(path))


def snips_in_folders_of_speakers(root: Path) -> None:
    for path in sorted((root / "SNIPS").rglob("*.wav")):
        folder = path.parent / path.name.split("-")[0]
        folder.mkdir(exist_ok=True)
        path.rename(folder / path.name)


def speech_commands_in_the_parent(root: Path) -> None:
    for folder in sorted((root / FOLDERS["ks"][0]).iterdir()):
        folder.rename(root / folder.name)
    (root / FOLDERS["ks"][0]).rmdir()


def rewritten_by_pandas(root: Path) -> None:
    for path in root.glob("fluent*/data/*_data.csv"):
        table = list(csv.DictReader(path.read_text().splitlines()))
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, sorted(table[0], reverse=True))
            writer.writeheader()
            writer.writerows(
                {key: value.replace("none", "None") for key, value in row.items()} for row in table
            )


def opus(root: Path) -> None:
    """Lossy audio; lists keep their names."""
    for path in sorted(root.rglob("*.wav")):
        soundfile.write(path.with_suffix(".ogg"), *soundfile.read(path), subtype="OPUS")
        path.with_suffix(".ogg").rename(path.with_suffix(".opus"))
        path.unlink()


VARIANTS = [
    *[(task, flac) for task in FOLDERS],
    *[(task, windows_line_ends) for task in FOLDERS if task != "ks"],
    *[(task, flat_voxceleb) for task in ("sid", "sv")],
    *[(task, archives_of_voxceleb) for task in ("sid", "sv")],
    *[(task, linked_voxceleb) for task in ("sid", "sv")],
    *[(task, voxceleb_lists_of_another_machine) for task in ("sid", "sv")],
    ("ks", nested_speech_commands),
    ("er", blanks_in_iemocap),
    ("ic", moved_fluent),
    ("sd", moved_libri2mix),
    ("sd", speakers_in_the_names_only),
    ("pr", cmudict),
    ("pr", probabilities),
    ("pr", silence_probabilities),
    ("pr", second_lexicon),
    *[(task, audio_in_one_folder) for task in ("asr", "pr")],
    *[(task, tabs_in_transcripts) for task in ("asr", "pr")],
    ("sf", mp3_beside_wav),
    ("sf", snips_in_folders_of_speakers),
    ("ks", speech_commands_in_the_parent),
    ("ic", rewritten_by_pandas),
    *[(task, opus) for task in ("sf", "ic", "sid", "er", "sd")],
]


def expert_of(task: str, data: Path, cache: Path, folder: Path, **datarc: Any) -> TaskExpert:
    flags = {
        "downstream": [task],
        "data": str(data),
        f"{task}.downstream_expert.datarc": {"num_workers": 0, **datarc},
    }
    settings = resolve(build_config(files=[SMALL_HEADS], flags=flags)).tasks[task].downstream_expert
    assert load_task(task).problems(settings) == []
    expert = load_task(task)(WIDTH, 320, settings, folder, seed=5, cache_dir=cache)
    assert isinstance(expert, TaskExpert)
    return expert


def parameters() -> Iterator[object]:
    """The variants; encoding a whole corpus as Opus takes long."""
    for task, change in VARIANTS:
        marks = [pytest.mark.slow] if change is opus and task != "sd" else []
        yield pytest.param(task, change, marks=marks, id=f"{task}-{change.__name__}")


@pytest.mark.parametrize(("task", "change"), list(parameters()))
def test_a_variant_gives_the_same_utterances_and_a_step(
    task: str, change: Callable[[Path], None], tiny_corpus: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    for name in FOLDERS[task]:
        shutil.copytree(tiny_corpus / name, data / name)
    expert = expert_of(task, data, tmp_path / "before", tmp_path)
    splits = [expert.train_split, *expert.corpus.splits[1:]]
    before = {s: [(u.id, u.labels) for u in expert.corpus.utterances(s)] for s in splits}

    change(data)

    files = ["librispeech-lexicon.txt", "g2p.txt"] if change is second_lexicon else []
    datarc = {"lexicon": [str(data / "LibriSpeech" / name) for name in files]} if files else {}
    expert = expert_of(task, data, tmp_path / "after", tmp_path, **datarc)
    found = {s: [(u.id, u.labels) for u in expert.corpus.utterances(s)] for s in splits}
    assert found == before
    report = expert.report(splits)
    assert report is not None and report.mistakes() == []
    wavs, *others = next(iter(expert.get_dataloader(expert.train_split)))
    features = [torch.randn((len(wav) - 80) // 320, WIDTH) for wav in wavs]
    loss = expert(expert.train_split, features, *others, records=defaultdict(list))
    loss.backward()
    assert math.isfinite(loss.item())
