"""A trained run in use: what its heads say of audio, in Python and as `predict`."""
