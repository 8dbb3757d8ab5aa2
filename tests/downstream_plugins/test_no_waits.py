"""A training batch of the built-in tasks does not wait for the GPU.

The GPU is the device `meta`: its tensors have a shape and no values, and torch refuses every
operation that needs one on the CPU. Tensors on the CPU are real.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from s3prl_mtl.nn import SpecAugment, pad_features, to_cpu, to_device
from tests.downstream_plugins.test_goldens import EXPERTS, build


class NonBlocking(TorchFunctionMode):
    """Refuses copies to the GPU that the CPU would wait for."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and result.is_meta:
            copied = func is Tensor.to and not args[0].is_meta and not kwargs.get("non_blocking")
            assert not copied and func not in (torch.tensor, torch.as_tensor), f"{func} waits"
        return result


def ctc(log_probs: Tensor, targets: Tensor, *lengths: Tensor, **settings: Any) -> Tensor:
    """In place of torch's loss, which the device `meta` lacks and which waits on a GPU."""
    assert targets.device == log_probs.device
    assert all(length.device.type == "cpu" for length in lengths)
    return log_probs.sum()


CASES = [case for case in EXPERTS if case != "sv_eval"]


@pytest.mark.parametrize("case", CASES)
def test_a_training_batch_needs_no_value_of_the_gpu(
    case: str, golden: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(F, "ctc_loss", ctc)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    reference = golden(case)
    expert = build(case, reference, tmp_path).to("meta")
    features = [f.to("meta").requires_grad_() for f in reference["features"]]
    records: dict[str, list[Any]] = defaultdict(list)
    with NonBlocking():
        augmented = SpecAugment()(features)
        expert("train", augmented, *reference["others"], records=records).backward()
    assert all(feature.grad is not None for feature in features)
    assert records["loss"][0].is_meta and not records["loss"][0].requires_grad


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("case", CASES)
def test_torch_finds_no_wait_for_a_gpu(
    case: str, golden: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(F, "ctc_loss", ctc)
    reference = golden(case)
    expert = build(case, reference, tmp_path).cuda()
    features = [f.cuda().requires_grad_() for f in reference["features"]]
    records: dict[str, list[Any]] = defaultdict(list)
    torch.cuda.set_sync_debug_mode("error")
    try:
        augmented = SpecAugment()(features)
        expert("train", augmented, *reference["others"], records=records).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert to_cpu(records)["loss"][0].isfinite()


def test_waits_are_found() -> None:
    on_gpu = torch.zeros(3, device="meta")
    for wait in (Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.nonzero, bool):
        with pytest.raises((RuntimeError, NotImplementedError)):
            wait(on_gpu[:1])
    with NonBlocking():
        padded, lengths = pad_features([on_gpu[:, None], on_gpu[:2, None]])
        assert padded.is_meta and to_device(lengths, padded.device).is_meta
        for blocking in (
            lambda: lengths.to(padded.device),
            lambda: lengths.to(padded),
            lambda: torch.tensor([1], device="meta"),
        ):
            with pytest.raises(AssertionError):
                blocking()
