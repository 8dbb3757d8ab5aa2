"""The interface between a training step and the method that balances its tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class Balancer(nn.Module):
    """Turns the losses of several tasks into gradients.

    A run uses `Sum` unless another one is passed: `MultiTaskRunner(config, folder, balancer=...)`.
    A training step calls, on every rank and in this order::

        begin_step()                         # also when a step is attempted again
        backward(losses, shared, heads)      # for each micro-batch
        # the step sums over the ranks: `.grad` of all parameters, and `partial_sums()`
        combine(losses, shared)              # then the step clips and updates

    After `backward` and the sum over the ranks, `.grad` of a head's parameters is the gradient of
    its own task. After `combine`, `.grad` of the shared parameters is the combined gradient; None
    for a parameter that no task used, so that weight decay leaves it alone.

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
    step; a single one of them says little about it.

    **Tasks that are left out.** A task with a non-finite loss on any rank has no part in the step:
    it is in the losses of neither `backward` nor `combine`. When this shows in a later
    micro-batch, the step begins again without the task.

    **Attempts.** A step that runs out of memory begins again, in smaller micro-batches. Only
    `combine` may change the state that later steps depend on; it is called once a step.

    **State.** Buffers and parameters are saved in checkpoints and restored. Parameters, for example
    learned weights of the losses, are optimised together with the heads; `combine` has to set
    their `.grad`.

    Args:
        tasks: names of the tasks of the run, in its order.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__()
        self.tasks = list(tasks)

    def begin_step(self) -> None:
        """Discard what an abandoned attempt at this step has left."""

    def backward(
        self,
        losses: Mapping[str, Tensor],
        shared: Sequence[nn.Parameter],
        heads: Sequence[nn.Parameter],
    ) -> None:
        """Backpropagate the losses of one micro-batch on this rank.

        `.grad` of each parameter may be accumulated once in a call at most: its sum over the ranks
        may start as soon as it is.

        Args:
            losses: for each task of this micro-batch this rank's summand of the task's mean loss,
                a scalar that requires a gradient. Empty where this rank has none.
            shared: trained parameters of the encoder and the featurizer; may be empty.
            heads: trained parameters of this rank's heads; may be empty.
        """
        raise NotImplementedError

    def partial_sums(self) -> Sequence[Tensor]:
        """Tensors that the step sums over all ranks, in place, before `combine`.

        Of the same number, shapes and types on every rank.
        """
        return ()

    def combine(self, losses: Mapping[str, float], shared: Sequence[nn.Parameter]) -> None:
        """Complete the gradients of the shared parameters, and learn from the losses.

        Args:
            losses: for each task of the step its mean loss over all ranks and micro-batches, the
                same on all ranks.
            shared: as for `backward`.
        """

    def metrics(self) -> dict[str, float]:
        """Numbers to log, by name; for example ``{"weight_asr": 0.7}``."""
        return {}


class GradientBalancer(Balancer):
    """A balancer that combines the gradients of the tasks.

    A subclass implements :meth:`aggregate`. Each rank holds the gradient of the shared parameters
    for every task of the run, float32 (tasks, shared values): a step needs as many backward passes
    through the encoder as it has tasks.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__(tasks)
        self._gradients: Tensor | None = None
        self._uses: Tensor | None = None

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
        self,
        losses: Mapping[str, Tensor],
        shared: Sequence[nn.Parameter],
        heads: Sequence[nn.Parameter],
    ) -> None:
        self._allocate(shared)
        if losses and heads:
            torch.autograd.backward(list(losses.values()), inputs=list(heads), retain_graph=True)
        if self._gradients is None or self._uses is None:
            return
        last = len(losses) - 1
        for number, (task, loss) in enumerate(losses.items()):
            # Not through `.grad`, which would start the sum over the ranks after the first task.
            found = torch.autograd.grad(
                loss, list(shared), retain_graph=number < last, allow_unused=True
            )
            row = self._gradients[self.tasks.index(task)]
            for index, (values, gradient) in enumerate(
                zip(row.split([p.numel() for p in shared]), found, strict=True)
            ):
                if gradient is not None:
                    values.add_(gradient.reshape(-1))
                    self._uses[index] += 1

    def partial_sums(self) -> Sequence[Tensor]:
        if self._gradients is None or self._uses is None:
            return ()
        return self._gradients, self._uses

    def combine(self, losses: Mapping[str, float], shared: Sequence[nn.Parameter]) -> None:
        tasks = [task for task in self.tasks if task in losses]
        if self._gradients is None or self._uses is None or not tasks:
            return
        rows = self._gradients
        if tasks != self.tasks:
            rows = rows[[self.tasks.index(task) for task in tasks]]
        combined = self.aggregate(rows, tasks)
        parts = combined.split([p.numel() for p in shared])
        for parameter, part, uses in zip(shared, parts, self._uses.tolist(), strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype) if uses else None

    def _allocate(self, shared: Sequence[nn.Parameter]) -> None:
        if self._gradients is None and shared:
            values = sum(parameter.numel() for parameter in shared)
            device = shared[0].device
            self._gradients = torch.zeros(len(self.tasks), values, device=device)
            self._uses = torch.zeros(len(shared), dtype=torch.int32)
