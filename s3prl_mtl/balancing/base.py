"""The interface between a training step and the method that balances its tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

KEPT = ("float32", "bfloat16", "cpu")
"""How the gradients of the tasks can be kept until they are combined."""

Heads = Mapping[str, Sequence[nn.Parameter]]
"""Trained parameters of this rank's heads, by task."""


class Balancer(nn.Module):
    """Turns the losses of several tasks into gradients.

    `--balancer` or the section `balancer` of the config chooses one; `MultiTaskRunner(config,
    folder, balancer=...)` takes any other. A training step calls, on every rank and in this order::

        begin_step()                          # also when a step is attempted again
        backward(losses, shared, heads)       # for each micro-batch
        # the step sums over the ranks: `.grad` of all parameters, and `partial_sums()`
        combine(losses, shared, heads)        # then the step clips and updates

    After `combine`, `.grad` of the shared parameters is the combined gradient; None for a parameter
    that no task used, so that weight decay leaves it alone. `.grad` of a head's parameters is the
    gradient of its own task, times the weight of its loss if the balancer weights losses.

    There are two kinds of balancers. Those that weight losses override `backward` to
    backpropagate one weighted sum, and adapt their weights in `combine`. Those that combine the
    gradients of the tasks inherit from :class:`GradientBalancer`.

    **Ranks.** Every rank has its own instance, and all instances must stay equal. `backward`
    differs between ranks: a rank has losses of its own utterances, and in task parallel not of
    every task. `combine` gets the same losses on all ranks and must do the same on all of them. A
    balancer never communicates: the step sums what `partial_sums` gives. Random draws come from a
    generator of its own, seeded alike on all ranks and kept in its state.

    **Micro-batches.** A step may call `backward` several times, also with no losses. The losses
    of a task over all micro-batches and ranks add up to its mean loss over all utterances of the
    step; a single one of them says little about it. With `one_task_at_a_time`, every micro-batch
    of a rank has utterances of one task.

    **Tasks that are left out.** A task with a non-finite loss on any rank has no part in the step:
    its loss is not given to `combine`. This shows after `backward`, which may get such losses: the
    step then begins again without the task.

    **Attempts.** A step that runs out of memory begins again, too, in smaller micro-batches. Only
    `combine` may change the state that later steps depend on; it is called once a step.

    **State.** Buffers, parameters and the extra state of the module are saved in checkpoints and
    restored; all of it must be tensors and plain values. Parameters, for example learned weights of
    the losses, are optimised together with the heads; `combine` has to set their `.grad`.

    Args:
        tasks: names of the tasks of the run, in its order.
    """

    one_task_at_a_time: ClassVar[bool] = False
    """Whether a step encodes the tasks one after the other instead of together."""

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__()
        self.tasks = list(tasks)

    def begin_step(self) -> None:
        """Discard what an abandoned attempt at this step has left."""

    def backward(
        self, losses: Mapping[str, Tensor], shared: Sequence[nn.Parameter], heads: Heads
    ) -> None:
        """Backpropagate the losses of one micro-batch on this rank.

        `.grad` of each parameter may be accumulated once in a call at most: its sum over the ranks
        may start as soon as it is.

        Args:
            losses: for each task of this micro-batch this rank's summand of the task's mean loss,
                a scalar that requires a gradient. Empty where this rank has none.
            shared: trained parameters of the encoder and the featurizer; may be empty.
            heads: trained parameters of this rank's heads, by task; may be empty.
        """
        raise NotImplementedError

    def partial_sums(self) -> Sequence[Tensor]:
        """Tensors that the step sums over all ranks, in place, before `combine`.

        Of the same number, shapes and types on every rank.
        """
        return ()

    def combine(
        self, losses: Mapping[str, float], shared: Sequence[nn.Parameter], heads: Heads
    ) -> None:
        """Complete the gradients of the shared parameters, and learn from the losses.

        Args:
            losses: for each task of the step its mean loss over all ranks and micro-batches, the
                same on all ranks.
            shared: as for `backward`.
            heads: as for `backward`.
        """

    def metrics(self) -> dict[str, float]:
        """Numbers to log since the last call, by name; for example ``{"weight_asr": 0.7}``.

        Called on the first rank.
        """
        return {}


class GradientBalancer(Balancer):
    """A balancer that combines the gradients of the tasks.

    A subclass implements :meth:`aggregate`. Each rank holds the gradient of the shared parameters
    for every task of the run, float32 (tasks, shared values). A step encodes one task at a time:
    the gradient of a task comes from a pass through its own utterances, so that a step costs about
    the compute of a plain one.

    The metric `conflicting_pairs` is the share of pairs of tasks whose gradients have a negative
    cosine, the mean over the steps since the last call of :meth:`metrics`.

    Attributes:
        gramian: inner products of the gradients of the step, (tasks, tasks); set before
            :meth:`aggregate`.
        sizes: number of values of each shared parameter.
    """

    one_task_at_a_time = True

    kept: str = "float32"
    """How the gradients of the tasks are kept: one of `KEPT`. In bfloat16 they need half of the
    memory until they are combined, on the CPU none of a GPU's; they are then combined there."""

    gramian: Tensor

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__(tasks)
        self.sizes: list[int] = []
        self._gradients: Tensor | None = None
        self._uses: Tensor | None = None
        self._conflicts: Tensor | None = None
        self._steps = 0

    def aggregate(self, gradients: Tensor, tasks: Sequence[str]) -> Tensor:
        """Combine the gradients of the tasks into one.

        Args:
            gradients: of each task's mean loss over all ranks, float32 (tasks, shared values). May
                be changed in place.
            tasks: names of the rows. Tasks that are left out of the step are absent.

        Returns:
            the gradient to descend, (shared values,).
        """
        raise NotImplementedError

    def begin_step(self) -> None:
        if self._gradients is not None and self._uses is not None:
            self._gradients.zero_()
            self._uses.zero_()

    def backward(
        self, losses: Mapping[str, Tensor], shared: Sequence[nn.Parameter], heads: Heads
    ) -> None:
        self._allocate(shared)
        last = len(losses) - 1
        for number, (task, loss) in enumerate(losses.items()):
            head = heads.get(task, ())
            # Not through `.grad` of the shared parameters: after the first task, their sum over the
            # ranks would start.
            found = torch.autograd.grad(
                loss, [*shared, *head], retain_graph=number < last, allow_unused=True
            )
            for parameter, gradient in zip(head, found[len(shared) :], strict=True):
                if gradient is not None and parameter.grad is not None:
                    parameter.grad.add_(gradient)
                elif gradient is not None:
                    # In the layout of the parameter, which fused optimizers require.
                    parameter.grad = torch.empty_like(parameter).copy_(gradient)
            self._add(task, found[: len(shared)])

    def partial_sums(self) -> Sequence[Tensor]:
        if self._gradients is None or self._uses is None:
            return ()
        return self._gradients, self._uses

    def combine(
        self, losses: Mapping[str, float], shared: Sequence[nn.Parameter], heads: Heads
    ) -> None:
        tasks = [task for task in self.tasks if task in losses]
        rows = self.gradients_of(tasks)
        if rows is None or self._uses is None or not tasks:
            return
        self.gramian = rows @ rows.T
        if self.gramian.isfinite().all():
            self._count_conflicts()
            combined = self.aggregate(rows, tasks)
        else:
            # Not finite either, so that the step is skipped. Solvers would fail, and averages
            # would never be finite again.
            combined = rows.sum(dim=0)
        parts = combined.split(self.sizes)
        for parameter, part, uses in zip(shared, parts, self._uses.tolist(), strict=True):
            parameter.grad = part.view_as(parameter).to(parameter) if uses else None

    def gradients_of(self, tasks: Sequence[str]) -> Tensor | None:
        """The gradients of some tasks, float32 (tasks, shared values); None without shared
        parameters.

        Between the sum over the ranks and :meth:`combine`, those of the mean losses over all ranks.
        """
        rows = self._gradients
        if rows is not None and tasks != self.tasks:
            rows = rows[[self.tasks.index(task) for task in tasks]]
        return None if rows is None else rows.float()

    def metrics(self) -> dict[str, float]:
        if self._conflicts is None:
            return {}
        share = self._conflicts.item() / self._steps
        self._conflicts = None
        return {"conflicting_pairs": share}

    def _count_conflicts(self) -> None:
        """Add the share of conflicting pairs of this step, on the device of the gradients."""
        pairs = len(self.gramian) * (len(self.gramian) - 1) / 2
        if pairs:
            share = (self.gramian < 0).float().triu(1).sum() / pairs
            self._steps = 1 if self._conflicts is None else self._steps + 1
            self._conflicts = share if self._conflicts is None else self._conflicts + share

    def _allocate(self, shared: Sequence[nn.Parameter]) -> None:
        if self._gradients is None and shared:
            self.sizes = [parameter.numel() for parameter in shared]
            device = torch.device("cpu") if self.kept == "cpu" else shared[0].device
            dtype = torch.bfloat16 if self.kept == "bfloat16" else torch.float32
            shape = len(self.tasks), sum(self.sizes)
            self._gradients = torch.zeros(shape, device=device, dtype=dtype)
            self._uses = torch.zeros(len(shared), dtype=torch.int32)

    def _add(self, task: str, gradients: Sequence[Tensor | None]) -> None:
        """Add to the gradient of a task."""
        if self._gradients is None or self._uses is None:
            return
        row = self._gradients[self.tasks.index(task)]
        for index, (values, gradient) in enumerate(
            zip(row.split(self.sizes), gradients, strict=True)
        ):
            if gradient is not None:
                values.add_(gradient.reshape(-1).to(values))
                self._uses[index] += 1
