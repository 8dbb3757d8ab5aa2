"""Published checkpoints, downloaded once into a cache."""

from __future__ import annotations

import http.client
import logging
import os
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.safe_torch import LEGACY_MAGIC, ZIP_MAGIC

logger = logging.getLogger(__name__)

OFFICIAL_URLS = {
    "hubert_base": "https://dl.fbaipublicfiles.com/hubert/hubert_base_ls960.pt",
    "hubert_large_ll60k": "https://dl.fbaipublicfiles.com/hubert/hubert_large_ll60k.pt",
}
TIMEOUT_SECONDS = 60
CHUNK_BYTES = 1 << 20
PARTIAL_CONTENT = 206
RANGE_NOT_SATISFIABLE = 416


def default_cache_dir() -> Path:
    """``$S3PRL_MTL_CACHE``, or ``~/.cache/s3prl_mtl``."""
    named = os.environ.get("S3PRL_MTL_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "s3prl_mtl"


def official_checkpoint(name: str, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The published file of ``hubert_base`` or ``hubert_large_ll60k``, downloaded if need be.

    Raises:
        UserError: the download failed, or gave no checkpoint.
    """
    return download(OFFICIAL_URLS[name], Path(cache_dir) if cache_dir else default_cache_dir())


def download(url: str, cache_dir: Path) -> Path:
    """Fetch a checkpoint into ``cache_dir/checkpoints`` unless it is there.

    What arrives goes to ``<name>.part``; an interrupted download goes on from there if the server
    still has the same file. The final name appears only once the length is the announced one and
    the file is a readable one of ``torch.save``.

    Raises:
        UserError: no network, no such file there, no space, or a file that is no checkpoint.
    """
    folder = cache_dir / "checkpoints"
    path = folder / Path(urlsplit(url).path).name
    if path.is_file():
        return path
    part = path.with_name(path.name + ".part")
    logger.info("downloading %s to %s", url, path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        expected = _fetch(url, part)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as e:
        reason = getattr(e, "reason", None) or str(e) or type(e).__name__
        raise _failed(url, path, f"could not be downloaded ({reason})") from None
    except OSError as error:
        raise UserError(
            f"The checkpoint cannot be kept in the cache: {error.strerror or error}.",
            where=str(folder),
            fix="Name another folder with --cache_dir or $S3PRL_MTL_CACHE.",
        ) from None
    found = part.stat().st_size
    if expected is not None and found < expected:
        raise _failed(
            url,
            path,
            f"broke off after {found} of {expected} bytes; the next attempt goes on from there",
        )
    if (expected is not None and found != expected) or not _is_checkpoint(part):
        _forget(part)
        raise _failed(url, path, f"is damaged or no checkpoint ({found} bytes; removed)")
    os.replace(part, path)
    _validator_path(part).unlink(missing_ok=True)
    return path


def _fetch(url: str, part: Path) -> int | None:
    """Append to ``part`` what is missing; the full length if the server announces one."""
    have = part.stat().st_size if part.is_file() else 0
    validator = _read_validator(part)
    request = urllib.request.Request(url)
    if have and validator:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", validator)  # A changed file comes whole instead.
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != RANGE_NOT_SATISFIABLE:
            raise
        _forget(part)  # Nothing is left to send: start over rather than trust it.
        return _fetch(url, part)
    with response:
        length = response.headers.get("Content-Length")
        resumed = response.status == PARTIAL_CONTENT
        if not resumed:
            have = 0
            _write_validator(part, response.headers)
        expected = have + int(length) if length is not None else None
        with part.open("ab" if resumed else "wb") as file:
            _copy(response, file, url, have, expected)
    return expected


def _copy(
    response: http.client.HTTPResponse, file: IO[bytes], url: str, have: int, expected: int | None
) -> None:
    report_every = max((expected or 0) // 10, 50 * CHUNK_BYTES)
    reported = have
    while chunk := response.read(CHUNK_BYTES):
        file.write(chunk)
        have += len(chunk)
        if have - reported >= report_every:
            reported = have
            total = f" of {expected / 1e6:.0f}" if expected else ""
            logger.info("%s: %.0f%s MB", url, have / 1e6, total)


def _is_checkpoint(path: Path) -> bool:
    """Whether the file is whole: every record of a zip archive has its checksum."""
    with path.open("rb") as file:
        beginning = file.read(len(LEGACY_MAGIC))
    if not beginning.startswith(ZIP_MAGIC):
        return beginning == LEGACY_MAGIC
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError):
        return False


def _validator_path(part: Path) -> Path:
    return part.with_name(part.name + ".version")


def _read_validator(part: Path) -> str | None:
    """What the server said about the version of the file that ``part`` is a piece of."""
    path = _validator_path(part)
    return path.read_text().strip() or None if path.is_file() else None


def _write_validator(part: Path, headers: http.client.HTTPMessage) -> None:
    etag = headers.get("ETag", "")
    # A weak ETag may not be used to join two pieces (RFC 9110, 13.1.5).
    version = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")
    _validator_path(part).write_text(version or "")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _validator_path(part).unlink(missing_ok=True)


def _failed(url: str, path: Path, what: str) -> UserError:
    return UserError(
        f"The checkpoint {path.name} {what}.",
        where=url,
        fix=f"Try again, or download it by hand and give it with -k PATH (or put it at {path}).",
    )
