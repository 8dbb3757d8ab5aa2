"""The command line: argument parsing and one module a command."""
