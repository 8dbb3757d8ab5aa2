"""Compare balancers by the metrics of short trainings with several seeds.

    python benchmarks/combining.py [--balancers sum,uncertainty,pcgrad] [--steps 300] [--jobs 2]

Trains nine tasks of the mini corpus with the settings of the demo, with each balancer and seed, and
as many steps. The table has the first metric of each dev split after the last step: mean and
standard deviation over the seeds.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from common import append, corpora, machine, show_machine, table
from short_runs import Found, add_arguments, folder_of_runs, short_runs


def cell(runs: list[Found], key: tuple[str, str]) -> str:
    found = [run.values[key] for run in runs]
    spread = f" ± {statistics.stdev(found):.3f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.3f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--balancers", default="sum,uncertainty,pcgrad,upgrad,famo")
    add_arguments(parser)
    arguments = parser.parse_args()
    found = machine(torch.device(arguments.device))
    show_machine(found)
    with folder_of_runs(arguments.folder) as folder:
        arguments.data = corpora(arguments.data, folder)
        variants = {kind: ["--balancer", kind] for kind in arguments.balancers.split(",")}
        runs = short_runs(arguments, variants, folder)
    keys = [key for key in next(iter(runs.values()))[0].values if key[1] != "training loss"]
    lines = [[*key, *(cell(runs[kind], key) for kind in runs)] for key in keys]
    print(table(["task", "value", *runs], lines))
    if arguments.log:
        record = {"benchmark": "combining", "steps": arguments.steps, "tasks": arguments.tasks}
        values = {
            kind: [{" ".join(key): value for key, value in run.values.items()} for run in of_kind]
            for kind, of_kind in runs.items()
        }
        append(arguments.log, {**record, **found, "values": values})


if __name__ == "__main__":
    main()
