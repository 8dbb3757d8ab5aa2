"""Scan each split into a manifest once, and again if its audio or labels change."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from filelock import FileLock

from s3prl_mtl.data.corpus import Corpus
from s3prl_mtl.data.corpus_cache import cached, corpus_folder, note_audio
from s3prl_mtl.data.manifest import Manifest, write_manifest
from s3prl_mtl.data.scanning import MISSING, UNDECODABLE, Scan, scan
from s3prl_mtl.data.utterance import Utterance
from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.atomic import atomic_path, replace_text

logger = logging.getLogger(__name__)

MAXIMUM_SKIPPED = 0.01
"""Largest fraction of unusable utterances of a split; more is an error."""

_FORMAT = 4  # increment when the format changes: older caches are then rebuilt
_LISTED = 10  # paths in an error


def load_cuts(
    corpus: Corpus,
    split: str,
    cache_dir: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
) -> Manifest:
    """The usable utterances of a split as lhotse cuts.

    The first call opens every audio file (:func:`scan`) and writes
    `<cache_dir>/manifests/<corpus>-<hash of its settings>/<split>-<fingerprint>.arrow`; later calls
    map this file until :meth:`Corpus.fingerprint` changes. `source.json` beside it records the
    folder of the corpus and the skipped files. The folder of a cacheable corpus is not listed again
    if it has not changed (:func:`cached`). The cache may be deleted when no run uses it. If several
    processes call this at once, the first scans and the others wait.

    Args:
        corpus: the corpus.
        split: one of `corpus.splits`.
        cache_dir: default: :func:`default_cache_dir`.
        jobs: threads of the scan; default: the number of cores.

    Returns:
        Cuts in the order of the corpus, with the utterance's id in `cut.id` and its labels in
        `cut.custom["labels"]`. Files that are missing, unreadable, empty or too short for the
        encoder are skipped with a warning.

    Raises:
        UserError: the corpus is unusable, more than 1 % of the split is unusable, or the cache
            cannot be written.
    """
    corpus.check_split(split)
    listed: list[Utterance] = []

    def fingerprint_of_listing() -> str:
        listed.extend(_list(corpus, split))
        return corpus.fingerprint(split, listed)

    fingerprint = f"{_FORMAT}-{cached(corpus, cache_dir, split, fingerprint_of_listing)}"
    folder = corpus_folder(corpus, cache_dir)
    path = folder / f"{split}-{fingerprint[:18]}.arrow"
    manifest = _open(path)
    try:
        if manifest is None:  # no lock file otherwise: a valid cache may be read-only
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(str(folder / ".lock")):
                manifest = _open(path)
                if manifest is None:
                    _build(corpus, split, listed or _list(corpus, split), path, jobs)
                    return Manifest(path)
    except OSError as error:
        raise UserError(
            f"The manifests of {corpus.title} cannot be written: {error.strerror or error}.",
            where=str(folder),
            fix="Free space there, or set another folder with `--cache_dir` or $S3PRL_MTL_CACHE.",
            code="file-unwritable",
        ) from error
    entry = _read_source(folder)["splits"].get(split, {})
    if entry.get("manifest") == path.name and entry["skipped"]:
        logger.warning(
            "%s %s: skipping %d of %d utterances, listed in %s.",
            *(corpus.task, split, len(entry["skipped"]), entry["listed"], folder / "source.json"),
        )
    return manifest


def _list(corpus: Corpus, split: str) -> list[Utterance]:
    utterances = corpus.utterances(split)
    _check_utterances(corpus, split, utterances)
    note_audio(utterances)
    return utterances


def _open(path: Path) -> Manifest | None:
    """The manifest of a file; None if it does not exist or is damaged."""
    try:
        return Manifest(path)
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowInvalid) as error:
        logger.warning("%s is damaged (%s); scanning again.", path, error)
        return None


def _build(
    corpus: Corpus, split: str, utterances: Sequence[Utterance], path: Path, jobs: int | None
) -> None:
    found = scan(utterances, corpus.content_check(split), jobs, f"Scanning {corpus.title}, {split}")
    _report(corpus, split, len(utterances), found)
    with atomic_path(path) as partial:
        write_manifest(partial, found.cuts)
    source = _read_source(path.parent)
    source["title"] = corpus.title
    source["settings"] = corpus.settings
    source["splits"][split] = {
        "manifest": path.name,
        "listed": len(utterances),
        "utterances": len(found.cuts),
        "hours": round(sum(cut.duration for cut in found.cuts) / 3600, 4),
        "skipped": [f"{path}: {reason}" for path, reason in found.skipped],
        "left_out_by_rule": len(found.rejected),
    }
    _write_source(path.parent, source)


def _report(corpus: Corpus, split: str, total: int, found: Scan) -> None:
    for path, reason in found.skipped:
        logger.warning("%s %s: skipped %s: %s", corpus.task, split, path, reason)
    if found.rejected:
        logger.info(
            "%s %s: %d utterances are excluded by the definition of the task.",
            *(corpus.task, split, len(found.rejected)),
        )
    if len(found.skipped) > MAXIMUM_SKIPPED * total:
        listed = "; ".join(f"{path}: {reason}" for path, reason in found.skipped[:_LISTED])
        more = len(found.skipped) - _LISTED
        raise UserError(
            f"{corpus.task}: more than {MAXIMUM_SKIPPED:.0%} of the utterances of split {split!r} "
            f"of {corpus.title} cannot be used.",
            where=f"{len(found.skipped)} of {total} utterances: {listed}"
            + (f"; and {more} more" if more > 0 else ""),
            fix=_remedy(found.skipped),
            code="corpus-incomplete",
        )
    if not found.cuts:
        raise UserError(
            f"{corpus.task}: split {split!r} of {corpus.title} has no usable utterances.",
            where=json.dumps(corpus.settings),
            fix=f"Add others: the definition of the task excludes {len(found.rejected)} of {total}."
            if found.rejected
            else None,
            code="corpus-empty",
        )


def _remedy(skipped: Sequence[tuple[str, str]]) -> str:
    """The remedy for unusable files, by the reasons of the scan."""
    reasons = [reason for _, reason in skipped]
    undecodable = sum(UNDECODABLE in reason for reason in reasons)
    missing = sum(reason.startswith(MISSING) and UNDECODABLE not in reason for reason in reasons)
    remedies = []
    if missing:
        remedies.append(
            f"Add the {missing} missing files, remove their lines from the list, or correct the "
            "folder (`--data`) or the paths in the list."
        )
    if undecodable:
        remedies.append(
            f"Convert the {undecodable} files that cannot be read, such as with "
            "`ffmpeg -i 1.m4a 1.flac`."
        )
    if any(UNDECODABLE not in reason and not reason.startswith(MISSING) for reason in reasons):
        remedies.append("Replace damaged files, or remove them from the corpus and its lists.")
    return " ".join(remedies)


def _check_utterances(corpus: Corpus, split: str, utterances: Sequence[Utterance]) -> None:
    if not utterances:
        raise UserError(
            f"{corpus.task}: split {split!r} of {corpus.title} has no utterances.",
            where=json.dumps(corpus.settings),
            fix=" ".join(corpus.problems()) or "Check that the corpus is complete.",
            code="corpus-empty",
        )
    counts = Counter(utterance.id for utterance in utterances)
    twice = [identifier for identifier, count in counts.items() if count > 1]
    if twice:
        paths = [str(u.path) for u in utterances if u.id == twice[0]]
        raise UserError(
            f"{corpus.task}: {len(twice)} utterances of split {split!r} occur more than once, "
            f"first {twice[0]}.",
            where=", ".join(dict.fromkeys(paths)),
            fix="Keep one file, or one line of the list, per utterance.",
            code="corpus-malformed",
        )


def _read_source(folder: Path) -> dict[str, Any]:
    try:
        source = json.loads((folder / "source.json").read_text(encoding="utf-8"))
        if isinstance(source["splits"], dict):
            return dict(source)
    except (OSError, ValueError, KeyError, TypeError):
        pass  # missing or damaged: scan every split again
    return {"about": "Manifests of one corpus. This folder may be deleted.", "splits": {}}


def _write_source(folder: Path, source: dict[str, Any]) -> None:
    replace_text(folder / "source.json", json.dumps(source, indent=2, ensure_ascii=False))
