"""Read VoxCeleb1's folders, for `sid` and `sv`.

::

    dev/wav/<speaker>/<video>/<number>.wav     1211 speakers
    test/wav/<speaker>/<video>/<number>.wav      40 speakers

The speakers' folders may also lie elsewhere below the root, such as all in `wav`, or in
`vox1_dev_wav/wav` and `vox1_test_wav/wav` (the names of the archives): they are found by their
names, `id10001` to `id11251`. Audio may be converted to another format.

Utterances are named like in the lists: `id10001/1zcIwhmdeo4/00001.wav`. Lists may have further
folders before, such as those of another machine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from s3prl_mtl.data import (
    AudioIndex,
    Corpus,
    Finding,
    audio_stem,
    list_folders,
    note_read,
    read_lines,
    walk_files,
)
from s3prl_mtl.errors import UserError

SPEAKER = re.compile(r"id1\d{4}")
SPEAKER_FORM = "VoxCeleb1's speakers are named id10001 to id11251"
NEWER_LISTS = (
    f"{SPEAKER_FORM}. Names of celebrities are those of the first release: take the lists of the "
    "current one, and rename the folders by its vox1_meta.csv."
)

_UTTERANCE = re.compile(r"[^/]+/[^/]+/\d+\.\w+")
"""The files that the corpus has: `<speaker>/<video>/<number>.wav`."""
IDENTIFICATION_SPLITS = ("iden_split.txt", "veri_test_class.txt")
"""Names of the file that lists every utterance of VoxCeleb1."""
_DEPTH = 3  # folders between the root and the speakers' folders
_TEST_PART = re.compile(r"(^|[^a-z])test([^a-z]|$)", re.IGNORECASE)


@dataclass
class Place:
    """A folder that holds folders of speakers.

    Args:
        folder: the folder.
        name: its path below the root.
        speakers: names of the speakers' folders.
        index: their files, by `<speaker>/<video>/<number>`.
        test: whether it is the part of the test speakers.
    """

    folder: Path
    name: str
    speakers: list[str]
    index: AudioIndex
    test: bool


@dataclass
class VoxCelebFiles:
    """The audio of VoxCeleb1 in any layout.

    Args:
        places: the folders with speakers; dev before test.
        others: folders beside those of the speakers, without speakers in them.
        copies: files that two places have.
    """

    places: list[Place] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    copies: list[Path] = field(default_factory=list)

    def find(self, name: str) -> Path | None:
        """The file of an utterance of a list, or None."""
        located = (place.index.find(name) for place in self.places)
        return next((path for path in located if path is not None), None)

    def training(self) -> dict[str, Path]:
        """The utterances outside of the test part, by name, sorted.

        Without files of other names than the corpus has, such as augmented copies beside them.
        """
        located: dict[str, Path] = {}
        for place in self.places:
            if not place.test:
                for name in filter(_UTTERANCE.fullmatch, place.index.files()):
                    located.setdefault(f"{audio_stem(name)}.wav", place.folder / name)
        return dict(sorted(located.items()))

    def notes(self) -> list[str]:
        """A line with the number of files and speakers in each folder."""
        counts = [
            f"{len(place.index)} files of {len(place.speakers)} speakers in {place.folder}"
            for place in self.places
        ]
        return [", ".join(counts)] if counts else []


def find_files(root: Path) -> VoxCelebFiles:
    """Find the speakers' folders below a root, and list their audio.

    Listing folders is faster than 150 000 look-ups. Links to folders are followed; a folder that is
    reached twice (`dev/wav` and `test/wav` may be links to one) is read once.

    Raises:
        UserError: a folder cannot be listed.
    """
    found = VoxCelebFiles()
    seen: set[Path] = set()
    stems: set[str] = set()
    for folder, speakers, others in _speaker_folders(root):
        found.others += others
        if not speakers or folder.resolve() in seen:
            continue
        seen.add(folder.resolve())
        files = [f"{s}/{name}" for s in speakers for name in walk_files(folder / s)]
        index = AudioIndex(folder, files=files)
        name = folder.relative_to(root).as_posix()
        found.copies += [folder / file for file in index.files() if audio_stem(file) in stems]
        stems |= set(index)
        found.places.append(Place(folder, name, speakers, index, bool(_TEST_PART.search(name))))
    found.places.sort(key=lambda place: (place.test, place.name))
    return found


def _speaker_folders(root: Path) -> list[tuple[Path, list[str], list[Path]]]:
    """(folder, names of the speakers in it, other folders in it) for each folder of speakers."""
    found: list[tuple[Path, list[str], list[Path]]] = []

    def below(folder: Path, depth: int) -> bool:
        try:
            names = list_folders(folder)
        except UserError:
            if depth == 0:
                raise
            return False  # not readable, and probably not of the corpus
        speakers = [name for name in names if SPEAKER.fullmatch(name)]
        others = [folder / name for name in names if not SPEAKER.fullmatch(name)]
        place = len(found)
        if depth < _DEPTH:
            # Beside speakers, a folder without speakers in it is not part of the corpus.
            others = [other for other in others if not below(other, depth + 1)]
        if speakers:
            found.insert(place, (folder, speakers, others))
        return len(found) > place

    below(root, 0)
    return found


def check_speakers(task: str, names: list[str], where: str) -> None:
    """Check that a line of a list names utterances of VoxCeleb1's speakers.

    Raises:
        UserError: another form of name.
    """
    for name in names:
        if not SPEAKER.fullmatch(speaker_of(name)):
            raise UserError(
                f"{task}: {speaker_of(name)!r} is not a speaker of VoxCeleb1.",
                where=where,
                fix=NEWER_LISTS,
                code="corpus-malformed",
            )


def missing_audio_path(files: VoxCelebFiles, root: Path, name: str) -> Path:
    """The path to report for a listed utterance without a file."""
    speaker = speaker_of(name)
    for place in files.places:
        if speaker in place.speakers:
            return place.folder / name
    return (files.places[0].folder if files.places else root / "dev" / "wav") / name


def layout_problems(corpus: Corpus, root: Path) -> list[str]:
    """Problems with the folders."""
    missing = corpus.missing_folder(root, f"the unpacked {corpus.title}", "file_path")
    if missing or _speaker_folders(root):
        return missing
    expected = "folders <speaker>/<video>/ in dev/wav and test/wav, or in another folder"
    parts = ("dev/wav", "test/wav", "wav", ".")
    folders = [root / part for part in parts if _has_folder(root, part)]
    what = f"has no folder of a speaker ({SPEAKER_FORM})"
    names = list_folders(folders[0]) if folders else []
    if names:
        what += f"; {folders[0]} has {len(names)} folders such as {names[0]}"
    return [corpus.problem(root, what, expected, "file_path")]


def layout_findings(corpus: Corpus, files: VoxCelebFiles) -> list[Finding]:
    """Folders and files of VoxCeleb1 that are not used."""
    findings = []
    if files.others:
        findings.append(
            Finding(
                f"{len(files.others)} folders beside those of the speakers are ignored: "
                f"{SPEAKER_FORM}.",
                where=str(files.others[0]),
                code="corpus-malformed",
            )
        )
    if files.copies:
        findings.append(
            Finding(
                f"{len(files.copies)} utterances are in two folders; one of them is used.",
                where=str(files.copies[0]),
                fix="Keep one of the folders.",
                code="corpus-duplicates",
            )
        )
    for place in files.places:
        findings += corpus.doubles(place.index, str(place.folder))
        unlike = [name for name in place.index.files() if not _UTTERANCE.fullmatch(name)]
        if unlike:
            findings.append(
                Finding(
                    f"{len(unlike)} of {len(place.index)} audio files are not named "
                    "<speaker>/<video>/<number>: they are used only where a list names them.",
                    where=str(place.folder / unlike[0]),
                    fix="Remove files that are not of the corpus.",
                    code="corpus-malformed",
                )
            )
    return findings


def every_utterance(root: Path) -> tuple[Path, set[str]] | None:
    """The identification split in a folder and the utterances that it lists, without suffix."""
    for path in (root / name for name in IDENTIFICATION_SPLITS):
        note_read(path)
        if path.is_file():
            names = (listed_name(line.split()[-1]) for _, line in read_lines(path))
            return path, {audio_stem(name) for name in names}
    return None


def listed_name(path: str) -> str:
    """The utterance that a list names: the last three parts, `<speaker>/<video>/<number>.wav`."""
    return "/".join(path.replace("\\", "/").split("/")[-3:])


def speaker_of(name: str) -> str:
    """The speaker of an utterance."""
    return name.split("/", 1)[0]


def _has_folder(root: Path, part: str) -> bool:
    return (root / part).is_dir() and bool(list_folders(root / part))
