"""Cached results of reading the folders of a corpus, valid until one of these changes.

A corpus with `cacheable` reads its folders and metadata files by the functions of :mod:`.folders`
only. These record what they read (:func:`.folders.record_reads`), so that a later start compares
the sizes and times of folders and files (one `stat` each) instead of listing and parsing them
again. The source files of the corpus' package are compared, too.

Audio that is overwritten in place does not change its folder: such changes are noticed in up to
`SAMPLED_FILES` files of a split only. `--rescan` lists every corpus anew (:func:`forget_listings`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from s3prl_mtl.data.corpus import Corpus
from s3prl_mtl.data.folders import absolute, note_read, record_reads, stamp
from s3prl_mtl.data.utterance import Utterance
from s3prl_mtl.fileio.atomic import replace_text
from s3prl_mtl.fileio.cache import default_cache_dir

logger = logging.getLogger(__name__)

SAMPLED_FILES = 1000
"""Audio files of a split whose size and time are compared."""

_LISTING = "listing.json"
# File systems count time in steps of up to 2 s: a later change may leave the time as it is.
_TIME_STEP_SECONDS = 2.0


def corpus_folder(corpus: Corpus, cache_dir: str | os.PathLike[str] | None) -> Path:
    """The cache folder of a corpus, `<cache_dir>/manifests/<corpus>-<hash of its settings>`."""
    identity = json.dumps([type(corpus).__qualname__, corpus.settings], sort_keys=True)
    name = "".join(c if c.isalnum() or c in "._" else "-" for c in corpus.title.lower())
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    return _manifests(cache_dir) / f"{name}-{digest}"


def cached(
    corpus: Corpus,
    cache_dir: str | os.PathLike[str] | None,
    key: str,
    compute: Callable[[], Any],
) -> Any:
    """A result of reading the folders of a corpus, from the cache if they have not changed.

    Args:
        corpus: the corpus.
        cache_dir: default: :func:`default_cache_dir`.
        key: name of the result.
        compute: reads the folders; returns plain JSON.

    Raises:
        UserError: as `compute`.
    """
    # A task may have a corpus that is not a `Corpus`.
    sources = list(_source_files(type(corpus))) if getattr(corpus, "cacheable", False) else []
    if not sources:
        return compute()
    path = corpus_folder(corpus, cache_dir) / _LISTING
    reads, values = _read_current(path, sources)
    if key in values:
        return values[key]
    began_ns = time.time_ns()
    with record_reads() as new_reads:
        for source in sources:
            note_read(source)
        values[key] = json.loads(json.dumps(compute()))
    reads.update(new_reads)
    settled_ns = began_ns - int(_TIME_STEP_SECONDS * 1e9)
    if all(read is None or read[1] < settled_ns for read in new_reads.values()):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_text(path, json.dumps({"reads": reads, "values": values}))
        except OSError as error:  # for example a cache that is read-only
            logger.debug("%s cannot be written: %s", path, error)
    return values[key]


def note_audio(utterances: Sequence[Utterance]) -> None:
    """Note the folders of all audio, and some of the files, as read by a corpus."""
    for folder in {os.path.dirname(utterance.path) for utterance in utterances}:
        note_read(folder)
    for utterance in utterances[:: max(1, len(utterances) // SAMPLED_FILES)]:
        note_read(utterance.path)


def forget_listings(cache_dir: str | os.PathLike[str] | None) -> None:
    """Make every corpus be listed at its next use. Its audio is scanned again only if it changed.

    Args:
        cache_dir: default: :func:`default_cache_dir`.
    """
    for path in _manifests(cache_dir).glob(f"*/{_LISTING}"):
        path.unlink(missing_ok=True)


def _manifests(cache_dir: str | os.PathLike[str] | None) -> Path:
    return (default_cache_dir() if cache_dir is None else absolute(cache_dir)) / "manifests"


def _read_current(path: Path, sources: Sequence[Path]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The reads and values of a listing; empty if something that was read has changed.

    Also if other source files have read it: a corpus of another package may have the same name.
    """
    try:
        listing = json.loads(path.read_text(encoding="utf-8"))
        reads: dict[str, Any] = listing["reads"]
        same_code = all(os.fspath(source) in reads for source in sources)
        if same_code and all(stamp(name) == read for name, read in reads.items()):
            return reads, listing["values"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # missing or damaged
    return {}, {}


def _source_files(corpus_type: type) -> Iterator[Path]:
    """The source files of the packages that define a corpus; none for one of a notebook."""
    for kind in corpus_type.__mro__:
        if not issubclass(kind, Corpus):
            continue
        file = getattr(sys.modules.get(kind.__module__), "__file__", None)
        if file is None:
            return
        folder = Path(file).parent
        yield from sorted(folder.glob("*.py"))
        while (folder / "__init__.py").is_file() and (folder.parent / "__init__.py").is_file():
            folder = folder.parent
            yield from sorted(folder.glob("*.py"))
