"""What the pages show and no test runs, and why. Each is checked in the way that is said here."""

from __future__ import annotations

COMMANDS = {
    "bash run_scripts/demo.sh": "takes ten minutes; its syntax is checked",
    "bash run_scripts/test.sh": "runs these tests; its syntax is checked",
    "sbatch run_scripts/slurm.sh": "no SLURM here; tests/run_scripts/test_slurm.py runs the script",
    "pip install -c constraints.txt -e .": "what is tested is what it installed; the files exist",
    'pip install "s3prl-mtl[': "the extra exists",
    "export GLOO_SOCKET_IFNAME": "names an interface of another machine; the shell takes the line",
    "torchrun --nnodes 2": "needs two machines; the words are parsed by torchrun and by us, "
    "and tests/distributed starts several agents on one machine",
    "python run_downstream.py": "s3prl's program does not import any longer; its flags are "
    "compared with its source",
    "python -m pytest tests/faults": "these are tests themselves",
}
"""The beginning of a line to type, and the reason."""

TEXTS = {
    ("docs/architecture.md", "entry points"): "a drawing",
    ("docs/export.md", "from fairseq.checkpoint_utils"): "needs fairseq, which needs Python 3.10: "
    "tests/export compares it with the script whose results are fixtures",
    ("docs/export.md", "for-s3prl/upstream.pt"): "a folder: tests/export compares it with one",
}
"""Page and beginning of a block that is neither Python, YAML, JSON nor to be typed."""
