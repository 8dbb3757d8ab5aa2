"""Several processes that train one encoder: their communication, data placement and health."""

DEFAULT_TIMEOUT_SECONDS = 1800.0
"""Timeout of a rank that waits for the others; torch's own default for gloo."""
