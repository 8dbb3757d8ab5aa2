"""Make a corpus in QUESST's layout from words and sentences of the mini corpus.

    s3prl-mtl make-corpus corpora --size tiny
    python -m qbe_task.mini_corpus corpora

Queries are files of Speech Commands (dev: its validation list, test: its testing list), documents
are sentences of LibriSpeech; a query is in a document if its word is in the transcript.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import soundfile

from qbe_task.corpus import PARTS
from s3prl_mtl.data import SAMPLE_RATE, read_audio, read_lines
from s3prl_mtl.errors import UserError

LANGUAGE = "nnenglish"
LISTS = {"dev": "validation_list.txt", "test": "testing_list.txt"}
DOCUMENT_FOLDERS = ("dev-clean", "dev-other", "test-clean", "test-other")


def make_corpus(corpora: Path, target: Path) -> None:
    """Write the corpus.

    Args:
        corpora: the folder of the mini corpus.
        target: folder to write, for `datarc.root`.

    Raises:
        UserError: the mini corpus does not exist.
    """
    for needed in ("LibriSpeech", "speech_commands_v0.01"):
        if not (corpora / needed).is_dir():
            raise UserError(
                f"{corpora} is not the folder of the mini corpus: it has no {needed}.",
                fix=f"Make it first: s3prl-mtl make-corpus {corpora} --size tiny.",
                code="file-missing",
            )
    words: dict[str, set[str]] = {}
    documents = []
    for folder in DOCUMENT_FOLDERS:
        for transcript in sorted((corpora / "LibriSpeech" / folder).rglob("*.trans.txt")):
            for _, line in read_lines(transcript):
                name, _, text = line.partition(" ")
                document = f"quesst14_{len(documents) + 1:05d}"
                words[document] = set(text.lower().split())
                documents.append(
                    _write(target, transcript.parent / f"{name}.flac", f"Audio/{document}")
                )
    _write_list(target, "utterances", documents)
    spoken = set().union(*words.values())
    commands = corpora / "speech_commands_v0.01"
    for split, listed in LISTS.items():
        part = PARTS[split]
        queries, truth = [], []
        for _, line in read_lines(commands / listed):
            word = line.partition("/")[0]
            if word not in spoken:
                continue
            query = f"quesst14_{part}_{len(queries) + 1:04d}"
            queries.append(_write(target, commands / line, f"{part}_queries/{query}"))
            truth += [
                f"LEXEME {document} 1 0.00 1.00 {query} lex <NA> <NA>"
                for document, said in words.items()
                if word in said
            ]
        _write_list(target, part, queries)
        folder = target / "scoring" / f"groundtruth_quesst14_{part}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"quesst14_{part}.rttm").write_text("\n".join(truth) + "\n", encoding="utf-8")


def _write(target: Path, source: Path, name: str) -> str:
    """Convert audio to a file of QUESST; return its path as in the lists."""
    path = target / f"{name}.wav"
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, read_audio(source).numpy(), SAMPLE_RATE)
    return f"{target.name}/{name}.wav"


def _write_list(target: Path, part: str, files: list[str]) -> None:
    path = target / "scoring" / f"language_key_{part}.lst"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{file} {LANGUAGE}\n" for file in files), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m qbe_task.mini_corpus")
    parser.add_argument("corpora", type=Path, help="the folder of the mini corpus")
    corpora = parser.parse_args().corpora
    try:
        make_corpus(corpora, corpora / "quesst14Database")
    except UserError as mistake:
        parser.error(str(mistake))
    except OSError as error:
        parser.error(f"{error.filename or corpora}: {error.strerror or error}.")


if __name__ == "__main__":
    main()
