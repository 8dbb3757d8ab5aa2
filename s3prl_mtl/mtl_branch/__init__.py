"""The configs of s3prl's multi-task branch."""
