"""Run checkpoints: files, contents, compatibility."""
