"""From a name on the command line to a class: entry points and task names."""
