"""The cache folder."""

from __future__ import annotations

from s3prl_mtl.fileio.cache import default_cache_dir


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("S3PRL_MTL_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("S3PRL_MTL_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache_dir() == tmp_path / "home" / ".cache" / "s3prl_mtl"
