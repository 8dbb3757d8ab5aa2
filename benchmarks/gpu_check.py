"""Check on a GPU what the tests show on a CPU, and print the errors that were measured.

    python benchmarks/gpu_check.py [--device cuda]

The encoder against fairseq's hidden states in float32 and bfloat16, its gradients against double
precision with kept and recomputed activations, dropout in the attention kernel, and training in
bfloat16. Exit code 1 if a check fails.
"""

from __future__ import annotations

import argparse
import copy
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from common import SIZES, machine, show_machine, table
from torch import Tensor

from s3prl_mtl import Featurizer
from s3prl_mtl.upstreams.hubert.attention import attend_by_offsets, rounded_probability
from s3prl_mtl.upstreams.hubert.encoder import Hubert
from s3prl_mtl.upstreams.hubert.fairseq_file import load_hubert
from s3prl_mtl.upstreams.hubert.segments import Segments

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures" / "hubert"
CASES = ("base_style", "large_style", "odd_base", "odd_large", "odd_frozen")
ABSOLUTE = 1e-4
"""Largest difference from fairseq in float32."""
ROUNDED = 0.05
"""Largest relative difference from fairseq in bfloat16."""

Check = tuple[str, float, float]
"""What was compared, the error, the largest allowed one."""


def hidden_states(case: str, device: torch.device) -> list[Check]:
    """All utterances in one batch, in both precisions, against fairseq's for each alone."""
    model = load_hubert(FIXTURES / f"{case}.pt").eval().to(device)
    truth = torch.load(FIXTURES / f"{case}.expected.pt", weights_only=True)
    wavs = [wav.to(device) for wav in truth["wavs"]]
    wanted = [states.to(device) for states in truth["hidden_states"]]
    checks = []
    for precision, limit in (("float32", ABSOLUTE), ("bfloat16", ROUNDED)):
        is_rounded = precision == "bfloat16"
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=is_rounded):
            found = [states.float() for states in model(wavs).split()]
        pairs = list(zip(found, wanted, strict=True))
        error = (
            max(float((one - other).norm() / other.norm()) for one, other in pairs)
            if is_rounded
            else max(float((one - other).abs().max()) for one, other in pairs)
        )
        checks.append((f"hidden states of {case}, {precision}", error, limit))
    return checks


def gradients(case: str, device: torch.device) -> list[Check]:
    """The gradients of a batch against those of each utterance alone on the CPU, in double."""
    truth = torch.load(FIXTURES / f"{case}.expected.pt", weights_only=True)
    model = load_hubert(FIXTURES / f"{case}.pt").eval()

    def gradients_of(encoder: Hubert, wavs: list[list[Tensor]]) -> dict[str, Tensor]:
        encoder.zero_grad()
        for batch in wavs:
            for states in encoder(batch).split():
                weights = torch.arange(states.numel(), device=states.device).cos()
                (states * weights.view(states.shape)).sum().backward(retain_graph=True)
        return {
            n: p.grad.double().cpu() for n, p in encoder.named_parameters() if p.grad is not None
        }

    exact = copy.deepcopy(model).double()
    wanted = gradients_of(exact, [[wav.double()] for wav in truth["wavs"]])
    checks = []
    for recompute in (False, True):
        one = copy.deepcopy(model).to(device)
        one.feature_extractor.recompute = one.encoder.recompute = recompute
        found = gradients_of(one, [[wav.to(device) for wav in truth["wavs"]]])
        # Keys' biases have no effect: their gradients are rounding errors.
        largest = max(float(gradient.norm()) for gradient in wanted.values())
        error = max(
            float((found[name] - gradient).norm() / (gradient.norm() + 1e-4 * largest))
            for name, gradient in wanted.items()
        )
        how = "recomputed" if recompute else "kept"
        checks.append((f"gradients of {case}, activations {how}", error, 1e-2))
    return checks


def attention_dropout(device: torch.device) -> list[Check]:
    """The share of attention weights that the kernel keeps, in standard errors from the wanted."""
    if device.type != "cuda":
        return []
    lengths = [1500, 900, 50]
    query = torch.zeros(sum(lengths), 12, 64, device=device, dtype=torch.bfloat16)
    value = torch.ones_like(query)
    out = attend_by_offsets(query, query, value, Segments(lengths, device), 0.1)[..., 0].double()
    wanted = 1 - rounded_probability(0.1)
    checks = []
    for rows, length in zip(out.split(lengths), lengths, strict=True):
        kept = rows * wanted
        variance = wanted * (1 - wanted) / length
        # bfloat16 rounds each output by up to 2^-9 of it.
        error = (variance / kept.numel()) ** 0.5 + 2**-9 / kept.numel() ** 0.5
        checks.append(
            (f"attention dropout, {length} frames", abs(float(kept.mean()) - wanted) / error, 5)
        )
        spread = float(kept.var()) / variance
        checks.append((f"spread of attention dropout, {length} frames", abs(spread - 1), 0.5))
    return checks


def training(device: torch.device) -> list[Check]:
    """Ten steps in bfloat16 of a small encoder against float32: the loss falls alike."""
    losses = {}
    for enabled in (False, True):
        torch.manual_seed(0)
        model = Hubert(SIZES["tiny"]).to(device)
        featurizer = Featurizer(model).to(device)
        optimizer = torch.optim.AdamW([*model.parameters(), *featurizer.parameters()], lr=1e-4)
        wavs = [
            0.1 * torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (9000, 7000)
        ]
        for _ in range(10):
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
                hidden = model([wav.to(device) for wav in wavs])
            loss = torch.cat(featurizer(hidden)).square().mean()
            loss.backward()
            optimizer.step()
        losses[enabled] = loss.item()
    error = abs(losses[True] / losses[False] - 1)
    return [("loss after 10 steps, bfloat16 against float32", error, 0.05)]


def completed(run: Callable[[], list[Check]]) -> list[Check]:
    """The checks of a run; a failed one, with the traceback, if it raises an error."""
    try:
        return run()
    except Exception as error:
        traceback.print_exc()
        return [(f"{type(error).__name__}, see above", float("inf"), 0.0)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda")
    device = torch.device(parser.parse_args().device)
    torch.manual_seed(0)
    show_machine(machine(device))
    runs: list[Callable[[], list[Check]]] = [
        *(lambda case=case: hidden_states(case, device) for case in CASES),  # type: ignore[misc]
        *(lambda case=case: gradients(case, device) for case in CASES),  # type: ignore[misc]
        lambda: attention_dropout(device),
        lambda: training(device),
    ]
    checks = [check for run in runs for check in completed(run)]
    rows = [
        [what, f"{error:.2e}", f"{limit:g}", "ok" if error <= limit else "FAILED"]
        for what, error, limit in checks
    ]
    print(table(["check", "error", "limit", ""], rows))
    sys.exit(any(error > limit for _, error, limit in checks))


if __name__ == "__main__":
    main()
