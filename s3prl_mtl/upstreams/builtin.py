"""Factories of the built-in upstreams (entry points in ``s3prl_mtl.upstreams``)."""

from __future__ import annotations

import os
from pathlib import Path

from s3prl_mtl.errors import UserError
from s3prl_mtl.upstreams.download import official_checkpoint
from s3prl_mtl.upstreams.hubert.encoder import Hubert
from s3prl_mtl.upstreams.hubert.fairseq_file import load_hubert
from s3prl_mtl.upstreams.hubert.tiny import TINY_WEIGHTS


def hubert(
    ckpt: str | os.PathLike[str] | None = None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    layerdrop: float = 0.0,
    feature_grad_mult: float | None = None,
) -> Hubert:
    """HuBERT Base (LibriSpeech 960 h), or a HuBERT of fairseq or transformers.

    Args:
        ckpt: a local fairseq file or folder of transformers; None downloads the official one.
        cache_dir: where downloads are kept (``$S3PRL_MTL_CACHE``, else ``~/.cache/s3prl_mtl``).
        layerdrop: probability of skipping a layer in training.
        feature_grad_mult: scale of the gradient into the convolutions; None keeps the checkpoint's.

    Raises:
        UserError: no such file, not a HuBERT checkpoint, or the download failed.
    """
    path = Path(ckpt) if ckpt is not None else official_checkpoint("hubert_base", cache_dir)
    return load_hubert(path, layerdrop=layerdrop, feature_grad_mult=feature_grad_mult)


def hubert_large_ll60k(
    ckpt: str | os.PathLike[str] | None = None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    layerdrop: float = 0.0,
    feature_grad_mult: float | None = None,
) -> Hubert:
    """HuBERT Large (Libri-Light 60 000 h); arguments and errors as :func:`hubert`."""
    path = Path(ckpt) if ckpt is not None else official_checkpoint("hubert_large_ll60k", cache_dir)
    return load_hubert(path, layerdrop=layerdrop, feature_grad_mult=feature_grad_mult)


def hubert_tiny(
    ckpt: str | os.PathLike[str] | None = None,
    *,
    layerdrop: float = 0.0,
    feature_grad_mult: float | None = None,
) -> Hubert:
    """A small HuBERT with weights included in the package; arguments as :func:`hubert`.

    Raises:
        UserError: the installed package lacks the weights.
    """
    path = Path(ckpt) if ckpt is not None else TINY_WEIGHTS
    if ckpt is None and not path.is_file():
        raise UserError(
            "The weights of hubert_tiny are missing from the installed package.",
            where=str(path),
            fix="Create them with `python -m s3prl_mtl.upstreams.hubert.tiny`, or reinstall.",
            code="file-missing",
        )
    return load_hubert(path, layerdrop=layerdrop, feature_grad_mult=feature_grad_mult)
