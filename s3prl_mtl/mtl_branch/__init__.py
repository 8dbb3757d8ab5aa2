"""The files of s3prl's multi-task branch: its config and its checkpoints."""
