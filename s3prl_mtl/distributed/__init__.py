"""Several processes train one encoder: who they are, what each reads, how they agree."""
