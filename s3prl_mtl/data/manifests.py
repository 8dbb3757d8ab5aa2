"""Manifests: scan each split once, and again if its folder changes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from lhotse import CutSet

from s3prl_mtl.data.corpus import Corpus
from s3prl_mtl.data.folders import absolute
from s3prl_mtl.data.scanning import MISSING, UNDECODABLE, Scan, scan
from s3prl_mtl.data.utterance import Utterance
from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.atomic import atomic_path, replace_text
from s3prl_mtl.fileio.cache import default_cache_dir

logger = logging.getLogger(__name__)

MAXIMUM_SKIPPED = 0.01
"""Largest fraction of unusable utterances of a split; more is an error."""

_FORMAT = 2  # increment when the format changes: older caches are then rebuilt
_LISTED = 10  # paths in an error


def load_cuts(
    corpus: Corpus,
    split: str,
    cache_dir: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
) -> CutSet:
    """The usable utterances of a split as lhotse cuts.

    The first call opens every audio file (:func:`scan`) and writes
    `<cache_dir>/manifests/<corpus>-<hash of its settings>/<split>.jsonl.gz`; later calls read
    this file until :meth:`Corpus.fingerprint` changes. `source.json` beside it records the folder
    of the corpus and the skipped files. The cache may be deleted at any time. If several processes
    call this at once, the first scans and the others wait.

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
    utterances = corpus.utterances(split)
    _check_utterances(corpus, split, utterances)
    fingerprint = f"{_FORMAT}-{corpus.fingerprint(split, utterances)}"
    root = default_cache_dir() if cache_dir is None else absolute(cache_dir)
    folder = root / "manifests" / _folder_name(corpus)
    manifest = folder / f"{split}.jsonl.gz"
    try:
        entry = _current_entry(manifest, split, fingerprint)
        if entry is None:  # no lock file otherwise: a valid cache may be read-only
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(str(folder / ".lock")):
                entry = _current_entry(manifest, split, fingerprint)
                if entry is None:
                    return _build(corpus, split, utterances, fingerprint, manifest, jobs)
    except OSError as error:
        raise UserError(
            f"The manifests of {corpus.title} cannot be written: {error.strerror or error}.",
            where=str(folder),
            fix="Free space there, or set another folder with `--cache_dir` or $S3PRL_MTL_CACHE.",
            code="file-unwritable",
        ) from error
    if entry["skipped"]:
        logger.warning(
            "%s %s: skipping %d of %d utterances, listed in %s.",
            *(corpus.task, split, len(entry["skipped"]), len(utterances), folder / "source.json"),
        )
    try:
        return CutSet.from_file(manifest).to_eager()
    except Exception as error:  # damaged files raise gzip, JSON, key and other errors
        logger.warning("%s is damaged (%s); scanning again.", manifest, error)
        manifest.unlink(missing_ok=True)
        return load_cuts(corpus, split, cache_dir, jobs)


def _build(
    corpus: Corpus,
    split: str,
    utterances: Sequence[Utterance],
    fingerprint: str,
    manifest: Path,
    jobs: int | None,
) -> CutSet:
    found = scan(utterances, corpus.content_check(split), jobs, f"Scanning {corpus.title}, {split}")
    _report(corpus, split, len(utterances), found)
    cuts = CutSet.from_cuts(found.cuts)

    source = _read_source(manifest.parent)
    source["title"] = corpus.title
    source["settings"] = corpus.settings
    # A crash between the next two writes must not pair a new manifest with an old fingerprint.
    source["splits"].pop(split, None)
    _write_source(manifest.parent, source)
    with atomic_path(manifest) as partial:
        cuts.to_file(partial)
    source["splits"][split] = {
        "fingerprint": fingerprint,
        "utterances": len(found.cuts),
        "hours": round(sum(cut.duration for cut in found.cuts) / 3600, 4),
        "skipped": [f"{path}: {reason}" for path, reason in found.skipped],
        "left_out_by_rule": len(found.rejected),
    }
    _write_source(manifest.parent, source)
    return cuts


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
            code="corpus-empty",
        )


def _remedy(skipped: Sequence[tuple[str, str]]) -> str:
    """What to do about unusable files, by the reasons of the scan."""
    reasons = [reason for _, reason in skipped]
    missing = sum(reason.startswith(MISSING) for reason in reasons)
    undecodable = sum(UNDECODABLE in reason for reason in reasons)
    remedies = []
    if missing:
        remedies.append(
            f"Add the {missing} missing files, remove their lines from the list, or name the "
            "folder that has them (`--data`)."
        )
    if undecodable:
        remedies.append(
            f"Convert the {undecodable} files that cannot be read, such as with "
            "`ffmpeg -i 1.m4a 1.flac`."
        )
    if missing + undecodable < len(reasons):
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


def _current_entry(manifest: Path, split: str, fingerprint: str) -> dict[str, Any] | None:
    """The entry of a split in `source.json` if its manifest is up to date, otherwise None."""
    entry: dict[str, Any] = _read_source(manifest.parent)["splits"].get(split, {})
    current = entry.get("fingerprint") == fingerprint and manifest.is_file()
    return entry if current else None


def _folder_name(corpus: Corpus) -> str:
    identity = json.dumps([type(corpus).__qualname__, corpus.settings], sort_keys=True)
    name = "".join(c if c.isalnum() or c in "._" else "-" for c in corpus.title.lower())
    return f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


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
