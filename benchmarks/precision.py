"""Compare training in bfloat16 with training in float32, by the spread of several seeds.

    python benchmarks/precision.py [--device cuda] [--data DIR] [--steps 300] [--seeds 0,1,2]

Trains nine tasks of the mini corpus with the settings of the demo, in both precisions with each
seed, all side by side. The table has the mean loss of each task over the last third of the steps,
and the first metric of its dev split after the last step: in float32 the smallest and the largest
of the seeds, in bfloat16 their median.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence

import torch
from common import append, corpora, machine, show_machine, table
from short_runs import Found, add_arguments, folder_of_runs, short_runs


def rows(single: Sequence[Found], half: Sequence[Found]) -> list[list[str]]:
    """A line for each value: of float32 the smallest and largest, the median of bfloat16, within
    them?"""
    lines = []
    for key in half[0].values:
        found = [run.values[key] for run in single]
        low, high = min(found), max(found)
        value = statistics.median(run.values[key] for run in half)
        inside = "yes" if low <= value <= high else f"{max(low - value, value - high):+.3g}"
        lines.append([*key, f"{low:.4g}", f"{high:.4g}", f"{value:.4g}", inside])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    arguments = parser.parse_args()
    found = machine(torch.device(arguments.device))
    show_machine(found)
    with folder_of_runs(arguments.folder) as folder:
        arguments.data = corpora(arguments.data, folder)
        variants = {kind: ["--precision", kind] for kind in ("fp32", "bf16")}
        runs = short_runs(arguments, variants, folder)
    head = ["task", "value", "float32 from", "to", "bfloat16", "within"]
    print(table(head, rows(runs["fp32"], runs["bf16"])))
    if arguments.log:
        every = [*runs["fp32"], *runs["bf16"]]
        by_value = {" ".join(key): [run.values[key] for run in every] for key in every[0].values}
        losses = {kind: [run.losses for run in of_kind] for kind, of_kind in runs.items()}
        record = {"benchmark": "precision", "steps": arguments.steps, **found}
        append(arguments.log, {**record, **by_value, "losses": losses})


if __name__ == "__main__":
    main()
