"""The files that s3prl's zoo builds an upstream from, kept without their weights.

s3prl downloads in one place: a file lies under the hash of its URL in the folder of
`s3prl.util.download`. What was put there before is not downloaded.
"""

from __future__ import annotations

import importlib
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from s3prl_mtl.upstreams.zoo.skeleton import emptied, skeleton_of, write_skeleton

logger = logging.getLogger(__name__)

KEPT_BYTES = 1 << 20
"""Files that are none of PyTorch's are kept whole up to this size: settings, dictionaries."""


def keep_files(files: Mapping[str, Path]) -> dict[str, Any]:
    """Plain values from which :func:`write_kept` writes the files again, weights aside.

    Args:
        files: where each lies, by the URL or the path that it is asked for by. One that can
            neither be emptied nor is small is left out, and a warning says so.
    """
    kept: dict[str, Any] = {}
    for asked, path in files.items():
        content = _keep(path)
        if content is None:
            logger.warning(
                "%s is no file of PyTorch and too large to be kept in checkpoints: resuming, "
                "evaluating and predicting will need it again.",
                asked,
            )
        else:
            kept[asked] = content
    return kept


def keep_transformers(expert: Any) -> dict[str, Any]:
    """The same for the folder of an encoder of transformers that s3prl wraps."""
    with tempfile.TemporaryDirectory() as folder:
        expert.model.config.save_pretrained(folder)
        expert.extracter.save_pretrained(folder)
        files: dict[str, Any] = {path.name: _keep(path) for path in Path(folder).iterdir()}
    weights = emptied(dict(expert.model.state_dict()))
    return {"folder": {**files, "pytorch_model.bin": {"skeleton": weights}}}


def write_kept(kept: Mapping[str, Any], path: Path) -> None:
    """Write a file or a folder as it was kept; large tensors are all zeros."""
    if "folder" in kept:
        path.mkdir()
        for name, held in kept["folder"].items():
            write_kept(held, path / Path(name).name)  # A run of others may name any path.
    elif "bytes" in kept:
        path.write_bytes(kept["bytes"].numpy().tobytes())
    else:
        write_skeleton(kept["skeleton"], path)


@contextmanager
def downloads(
    folder: Path | None = None, kept: Mapping[str, Any] | None = None
) -> Iterator[dict[str, Path]]:
    """While this holds, s3prl downloads to a folder, and takes what was kept from there.

    Args:
        folder: None for s3prl's own choice.
        kept: files by their URL, see :func:`keep_files`. One that is not among them is looked for
            where s3prl looks, and downloaded.

    Yields:
        what s3prl asked for so far: the path of each file by its URL.
    """
    download: Any = importlib.import_module("s3prl.util.download")
    theirs, their_folder = download._download, Path(download._download_dir)
    asked: dict[str, Path] = {}

    def provide(filepath: Path, url: str, *rest: Any, **more: Any) -> None:
        if kept is None:
            theirs(filepath, url, *rest, **more)
        elif url in kept:
            write_kept(kept[url], filepath)
        else:
            lies = their_folder / filepath.name
            theirs(lies, url, *rest, **more)
            filepath.symlink_to(lies.resolve())
        asked[url] = filepath

    download._download = provide
    if folder is not None:
        download.set_dir(folder)
    try:
        yield asked
    finally:
        download._download = theirs
        download.set_dir(their_folder)


def _keep(path: Path) -> dict[str, Any] | None:
    skeleton = skeleton_of(path)
    if skeleton is not None:
        return {"skeleton": skeleton}
    if path.stat().st_size > KEPT_BYTES:
        return None
    # A tensor, because `torch.load(weights_only=True)` refuses Python's bytes in older versions.
    return {"bytes": torch.tensor(list(path.read_bytes()), dtype=torch.uint8)}
