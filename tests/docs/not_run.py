"""Commands and blocks of the pages that no test runs, with the reason and the check instead."""

from __future__ import annotations

COMMANDS = {
    "bash run_scripts/demo.sh": "takes ten minutes; syntax check",
    "bash run_scripts/test.sh": "runs these tests; syntax check",
    "bash run_scripts/reproduce_paper.sh": "trains for weeks; syntax check, and "
    "tests/cli/test_study.py trains few steps",
    "s3prl-mtl study": "trains for weeks; parsed, and tests/cli/test_study.py trains few steps",
    "s3prl-mtl select": "needs a study; parsed, and run in tests/study/test_selection.py",
    "sbatch run_scripts/slurm.sh": "needs SLURM; tests/run_scripts/test_slurm.py runs the script",
    'pip install "s3prl-mtl[': "downloads packages; the extra exists",
    "pip install s3prl-mtl": "downloads packages",
    "export GLOO_SOCKET_IFNAME": "names an interface of another machine; syntax check",
    "torchrun --nnodes 2": "needs two machines; torchrun and s3prl-mtl parse the words, and "
    "tests/distributed starts several agents on one machine",
    "python run_downstream.py": "s3prl's program cannot be imported; its flags are compared with "
    "its source",
    "python -m pytest tests/faults": "runs tests",
    "s3prl-mtl study study -u hubert_tiny": "trains 165 times; tests/cli/test_study.py",
    "s3prl-mtl report paper": "needs a study; tests/study makes one",
    "s3prl-mtl report OUT": "needs a study; tests/study makes one",
    "s3prl-mtl train -u hf:microsoft/wavlm-base-plus@main": "downloads; parsed, and "
    "tests/export/test_push.py reads a revision",
    "s3prl-mtl train -u hf:marcoyang/spear": "downloads; parsed, and "
    "tests/export/test_push.py reads code of a repository",
    "s3prl-mtl report RUN": "needs a run; tests/study makes one",
    "s3prl-mtl train -u hubert_tiny -d ssl --data DIR": "needs classes below DIR; gives a config, "
    "and the page trains on those of its own folders",
    "s3prl-mtl train -u hubert -d asr,pr,ks,ssl --data DIR": "needs classes below DIR; gives a "
    "config, and tests/downstream_plugins trains ssl beside other tasks",
    "s3prl-mtl evaluate -e RUN -d asr -o": "needs a language model; parsed, and "
    "tests/inference/test_transcribing.py makes one",
    "s3prl-mtl predict RUN --task asr --decoder": "needs a language model; parsed, and "
    "tests/inference/test_transcribing.py makes one",
    "s3prl-mtl folds": "trains five times; tests/cli/test_folds.py",
    "s3prl-mtl predict RUN speech.wav": "needs a run; tests/inference/test_predict_files.py",
    "s3prl-mtl predict RUN --list": "needs a run; tests/inference/test_predict_files.py",
    "s3prl-mtl predict RUN recordings": "needs a run; tests/inference/test_predict_files.py",
    "s3prl-mtl export RUN --format transformers": "uploads; parsed, and tests/export/test_push.py",
    "ffmpeg": "is another program; tests/inference/test_predict_files.py reads a stream",
    "s3prl-mtl serve": "does not end; tests/serving",
    "curl": "needs a server; tests/serving",
    "python benchmarks/": "measures for minutes; the flags exist, tests/benchmarks runs the script",
}
"""Beginning of a command: reason."""

TEXTS = {
    ("docs/architecture.md", "entry points"): "a drawing",
    ("docs/export.md", "from fairseq.checkpoint_utils"): "needs fairseq, which needs Python 3.10; "
    "tests/export compares it with the script that made the fixtures",
    (
        "docs/export.md",
        "for-s3prl/upstream.pt",
    ): "a listing; compared with a folder in tests/export",
    (
        "docs/from-s3prl.md",
        "Training steps 1 to 40",
    ): "a log; its rows are compared in tests/cli/test_main.py",
}
"""(page, beginning of a block that is not Python, YAML, JSON or commands): reason."""
