"""`--format fairseq`: a checkpoint file of fairseq 0.12.2."""

from __future__ import annotations

from pathlib import Path

from s3prl_mtl.export.formats import Options
from s3prl_mtl.export.pretraining_head import with_head_of_fairseq, with_pretraining_head
from s3prl_mtl.export.saved_run import SavedRun
from s3prl_mtl.upstreams import write_fairseq_checkpoint


def write(run: SavedRun, out: Path, options: Options) -> None:
    """Write the encoder as a fairseq checkpoint, with the head of the run's `ssl` if it has one.

    Args:
        run: its encoder is HuBERT.
        out: the file.
        options: not used.
    """
    model = with_head_of_fairseq(with_pretraining_head(run.hubert(), run))
    write_fairseq_checkpoint(out, model)
