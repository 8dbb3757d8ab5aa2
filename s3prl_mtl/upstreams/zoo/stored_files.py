"""Store the files that s3prl builds an upstream from in run checkpoints, without the weights.

A checkpoint of PyTorch is stored as its *skeleton*: plain values, with large tensors replaced by
their shapes. Small files of any other kind are stored whole.

s3prl downloads in one place: `s3prl.util.download` writes a file under the hash of its URL and
does not download what is already there.
"""

from __future__ import annotations

import importlib
import logging
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.safe_torch import NamingPickle, from_plain, safe_load, to_plain

logger = logging.getLogger(__name__)

MAX_STORED_BYTES = 1 << 20
"""Files of other formats are stored up to this size: settings, dictionaries."""
MAX_STORED_ELEMENTS = 4096
"""Tensors up to this size are stored: statistics and tables need not be parameters."""

_SHAPE = "__shape__"


def store_files(files: Mapping[str, Path]) -> dict[str, Any]:
    """Plain values from which :func:`write_stored` writes the files again, without weights.

    Args:
        files: paths by the URL or path that s3prl asks for. A file that is neither a PyTorch file
            nor small is left out with a warning.
    """
    stored: dict[str, Any] = {}
    for requested, path in files.items():
        content = _store(path)
        if content is None:
            logger.warning(
                "%s is not a PyTorch file and too large to be stored in checkpoints: resuming, "
                "evaluating and predicting will need it again.",
                requested,
            )
        else:
            stored[requested] = content
    return stored


def store_transformers_folder(expert: Any) -> dict[str, Any]:
    """Like :func:`store_files`, for the folder of a transformers model wrapped by s3prl."""
    with tempfile.TemporaryDirectory() as folder:
        expert.model.config.save_pretrained(folder)
        expert.extracter.save_pretrained(folder)
        files: dict[str, Any] = {path.name: _store(path) for path in Path(folder).iterdir()}
    weights = _without_weights(dict(expert.model.state_dict()))
    return {"folder": {**files, "pytorch_model.bin": {"skeleton": weights}}}


def write_stored(stored: Mapping[str, Any], path: Path) -> None:
    """Write a stored file or folder; large tensors become zeros."""
    if "folder" in stored:
        path.mkdir()
        for name, content in stored["folder"].items():
            write_stored(content, path / Path(name).name)  # A checkpoint may name any path.
    elif "bytes" in stored:
        path.write_bytes(stored["bytes"].numpy().tobytes())
    else:
        content = from_plain(_with_zeros(stored["skeleton"]))
        torch.save(content, path, pickle_module=NamingPickle)


@contextmanager
def s3prl_downloads(
    folder: Path | None = None, stored: Mapping[str, Any] | None = None
) -> Iterator[dict[str, Path]]:
    """While active, s3prl downloads to a folder and uses stored files instead of downloading.

    Args:
        folder: None for s3prl's own folder.
        stored: files by URL, see :func:`store_files`. Any other file is looked up in s3prl's own
            folder and downloaded there if absent.

    Yields:
        the path of each file requested so far, by URL.
    """
    download: Any = importlib.import_module("s3prl.util.download")
    original, original_folder = download._download, Path(download._download_dir)
    requested: dict[str, Path] = {}

    def provide(filepath: Path, url: str, *rest: Any, **more: Any) -> None:
        if stored is None:
            original(filepath, url, *rest, **more)
        elif url in stored:
            write_stored(stored[url], filepath)
        else:
            cached = original_folder / filepath.name
            original(cached, url, *rest, **more)
            filepath.symlink_to(cached.resolve())
        requested[url] = filepath

    download._download = provide
    if folder is not None:
        download.set_dir(folder)
    try:
        yield requested
    finally:
        download._download = original
        download.set_dir(original_folder)


def _store(path: Path) -> dict[str, Any] | None:
    try:
        loaded = to_plain(safe_load(path, kind="checkpoint"))
    except UserError:
        if path.stat().st_size > MAX_STORED_BYTES:
            return None
        # Older versions of `torch.load(weights_only=True)` refuse `bytes` but accept a tensor.
        return {"bytes": torch.tensor(list(path.read_bytes()), dtype=torch.uint8)}
    return {"skeleton": _without_weights(loaded)}


def _without_weights(value: Any) -> Any:
    """Replace large tensors by their shapes."""
    if isinstance(value, Tensor):
        if value.numel() <= MAX_STORED_ELEMENTS:
            return value.clone()
        return {_SHAPE: list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    return _map_values(value, _without_weights)


def _with_zeros(value: Any) -> Any:
    """Replace shapes by tensors of zeros."""
    if isinstance(value, Mapping) and _SHAPE in value:
        shape = list(value[_SHAPE])
        # A single stored zero for all elements keeps the file small.
        zero = torch.zeros(1, dtype=getattr(torch, value["dtype"]))
        return zero.as_strided(shape, [0] * len(shape))
    return _map_values(value, _with_zeros)


def _map_values(value: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(value, OrderedDict):
        return OrderedDict((key, function(held)) for key, held in value.items())
    if isinstance(value, Mapping):
        return {key: function(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(function(held) for held in value)
    return value
