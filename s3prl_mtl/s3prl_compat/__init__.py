"""Use experts written for s3prl as tasks, and import torchaudio where it needs help."""
