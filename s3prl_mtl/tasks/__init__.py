"""Base classes of tasks, their metrics and settings, and checks of an expert's class."""
