"""Several processes that train one encoder: their communication, data placement and health."""

DEFAULT_TIMEOUT_SECONDS = 1800.0
"""How long a rank waits for the others before it gives up; torch's own default for gloo."""
