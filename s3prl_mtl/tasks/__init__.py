"""For authors of tasks: base classes, metrics, settings, checks of an expert's class."""
