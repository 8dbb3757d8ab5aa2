"""The paper's experiments: scenarios, their runs, their results, and relations between tasks."""
