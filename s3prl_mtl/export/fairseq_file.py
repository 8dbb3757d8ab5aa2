"""`--format fairseq`: a checkpoint file of fairseq 0.12.2."""

from __future__ import annotations

from pathlib import Path

from s3prl_mtl.errors import UserError
from s3prl_mtl.export.pretraining_head import with_pretraining_head
from s3prl_mtl.export.saved_run import SavedRun
from s3prl_mtl.upstreams import Hubert, write_fairseq_checkpoint


def write(run: SavedRun, out: Path) -> None:
    """Write the encoder as a fairseq checkpoint, with the head of the run's `ssl` if it has one.

    Args:
        run: its encoder is HuBERT.
        out: the file.

    Raises:
        UserError: the encoder has no parameters of pre-training.
    """
    model = with_pretraining_head(run.hubert(), run)
    require_pretraining_parts(model, str(run.path))
    write_fairseq_checkpoint(out, model)


def require_pretraining_parts(model: Hubert, where: str) -> None:
    """Check for the parameters of pre-training, which fairseq and s3prl load strictly.

    Raises:
        UserError: the encoder has none.
    """
    if model.config.final_proj_dim and model.config.label_embeddings[0]:
        return
    raise UserError(
        "The encoder has no parameters of pre-training, without which fairseq does not load a "
        "HuBERT.",
        where=f"final_proj, label_embs_concat of {where}",
        fix="Use --format transformers or onnx, or train from a complete HuBERT checkpoint.",
        code="checkpoint-incomplete",
    )
