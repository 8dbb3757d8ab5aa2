"""Tasks and upstreams by name: entry points of installed packages, and the tasks of a run."""
