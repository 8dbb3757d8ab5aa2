"""Several processes that train one encoder: their communication, data placement and health."""
