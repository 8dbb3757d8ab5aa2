"""How the losses of several tasks become one update."""

from s3prl_mtl.balancing.sum import sum_of_losses

__all__ = ["sum_of_losses"]
