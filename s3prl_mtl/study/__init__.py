"""The paper's experiments: scenarios, their results, and relations between tasks."""
