"""Atomic writes, YAML files and torch files that never execute code."""
