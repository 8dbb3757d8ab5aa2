"""The author's side of a task: base classes, metrics, settings, the contract."""
