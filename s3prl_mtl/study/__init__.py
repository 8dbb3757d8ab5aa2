"""The paper's experiments: scenarios, their runs, and what follows from the results."""
