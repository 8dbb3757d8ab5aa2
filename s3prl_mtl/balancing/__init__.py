"""How the losses of several tasks become one update."""

from s3prl_mtl.balancing.base import Balancer, GradientBalancer
from s3prl_mtl.balancing.factory import check_steps, make_balancer
from s3prl_mtl.balancing.sum import Sum

__all__ = ["Balancer", "GradientBalancer", "Sum", "check_steps", "make_balancer"]
