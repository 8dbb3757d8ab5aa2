"""Download published checkpoints once into the cache."""

from __future__ import annotations

import http.client
import logging
import os
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock

from s3prl_mtl.errors import UserError, error_summary
from s3prl_mtl.fileio.cache import default_cache_dir
from s3prl_mtl.fileio.safe_torch import safe_load

logger = logging.getLogger(__name__)

OFFICIAL_URLS = {
    "hubert_base": "https://dl.fbaipublicfiles.com/hubert/hubert_base_ls960.pt",
    "hubert_large_ll60k": "https://dl.fbaipublicfiles.com/hubert/hubert_large_ll60k.pt",
}
TIMEOUT_SECONDS = 60
CHUNK_BYTES = 1 << 20
PARTIAL_CONTENT = 206
RANGE_NOT_SATISFIABLE = 416


def official_checkpoint(name: str, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The published file of ``hubert_base`` or ``hubert_large_ll60k``, downloaded if absent.

    Raises:
        UserError: the download failed, or the file is not a checkpoint.
    """
    return download(OFFICIAL_URLS[name], Path(cache_dir) if cache_dir else default_cache_dir())


def download(url: str, cache_dir: Path) -> Path:
    """Download a checkpoint to ``cache_dir/checkpoints`` unless it exists.

    Data is appended to ``<name>.part``; an interrupted download resumes if the server still has
    the same version of the file. The final name appears after the length and the checksums have
    been verified. Of several processes one downloads, and the others wait.

    Raises:
        UserError: no network, no such file, no space, or the file is not a checkpoint.
    """
    folder = cache_dir / "checkpoints"
    path = folder / Path(urlsplit(url).path).name
    if path.is_file():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{path.name}.lock"):
            if not path.is_file():
                _download(url, path)
    except (
        urllib.error.URLError,
        http.client.HTTPException,
        TimeoutError,
        ConnectionError,
    ) as error:
        raise UserError(
            f"The checkpoint {path.name} could not be downloaded ({error_summary(error)}).",
            where=url,
            fix=_advice(path),
            code="download-failed",
        ) from None
    except OSError as error:
        raise UserError(
            f"The checkpoint cannot be written to the cache: {error.strerror or error}.",
            where=str(folder),
            fix="Choose another folder with --cache_dir or $S3PRL_MTL_CACHE.",
            code="file-unwritable",
        ) from None
    return path


def _download(url: str, path: Path) -> None:
    logger.info("Downloading %s to %s", url, path)
    part, version = (path.with_name(f"{path.name}.{kind}") for kind in ("part", "version"))
    expected = _fetch(url, part, version)
    found = part.stat().st_size
    if expected is not None and found < expected:
        raise UserError(
            f"The connection was lost after {found} of {expected} bytes of {path.name}; the next "
            "attempt resumes there.",
            where=f"{url} ({found} of {expected} bytes)",
            fix=_advice(path),
            code="download-failed",
        )
    if (expected is not None and found > expected) or not _is_checkpoint(part):
        part.unlink()
        version.unlink(missing_ok=True)
        raise UserError(
            f"The downloaded file {path.name} ({found} bytes) is damaged or not a checkpoint and "
            "was removed.",
            where=url,
            fix=_advice(path),
            code="checkpoint-format",
        )
    os.replace(part, path)
    version.unlink(missing_ok=True)


def _fetch(url: str, part: Path, version: Path) -> int | None:
    """Append the missing bytes to ``part``; return the full length if the server states it.

    ``version`` contains the server's identifier of the file of which ``part`` is the beginning.
    """
    have = part.stat().st_size if part.is_file() else 0
    known = version.read_text() if version.is_file() else ""
    request = urllib.request.Request(url)
    if have and known:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", known)  # A file that has changed is sent whole.
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != RANGE_NOT_SATISFIABLE:
            raise
        part.unlink()  # No bytes are missing, but the file was never verified: start again.
        return _fetch(url, part, version)
    with response:
        resumed = response.status == PARTIAL_CONTENT
        if not resumed:
            have = 0
            version.write_text(_identification(response.headers))
        length = response.headers.get("Content-Length")
        expected = have + int(length) if length is not None else None
        with part.open("ab" if resumed else "wb") as file:
            next_report = have
            while chunk := response.read(CHUNK_BYTES):
                have += file.write(chunk)
                if have >= next_report:
                    next_report = have + max((expected or 0) // 10, 50 * CHUNK_BYTES)
                    total = f" of {expected / 1e6:.0f}" if expected else ""
                    logger.info("%s: %.0f%s MB", url, have / 1e6, total)
    return expected


def _identification(headers: http.client.HTTPMessage) -> str:
    """A strong ETag or the date: weak ETags must not join two parts (RFC 9110, 13.1.5)."""
    etag: str = headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")


def _is_checkpoint(path: Path) -> bool:
    try:
        safe_load(path, kind="checkpoint", verify=True)
    except UserError:
        return False
    return True


def _advice(path: Path) -> str:
    return f"Try again, or download it by hand and give it with -k PATH (or move it to {path})."
