"""Outputs of metrics: metrics.jsonl, results.json, trackers, the terminal."""

from s3prl_mtl.tracking.trackers import TrackedRun, Tracker

__all__ = ["TrackedRun", "Tracker"]
