"""`--format fairseq`: one file, as fairseq 0.12.2 writes them."""

from __future__ import annotations

from pathlib import Path

from s3prl_mtl.errors import UserError
from s3prl_mtl.export.saved_run import SavedRun
from s3prl_mtl.upstreams import Hubert, write_fairseq_checkpoint


def write(run: SavedRun, out: Path) -> None:
    """Write the encoder as a fairseq checkpoint.

    Args:
        run: its encoder is HuBERT.
        out: the file.

    Raises:
        UserError: the encoder lacks what fairseq's HuBERT always has.
    """
    model = run.hubert()
    require_pretraining_parts(model, run)
    write_fairseq_checkpoint(out, model)


def require_pretraining_parts(model: Hubert, run: SavedRun) -> None:
    """fairseq's class, which s3prl copied, has the layers of pre-training, used or not.

    Raises:
        UserError: the encoder has none.
    """
    if model.config.final_proj_dim and model.config.label_embeddings[0]:
        return
    raise UserError(
        "The encoder has no final_proj or no label_embs_concat, the parameters of pre-training, "
        "without which fairseq does not load a HuBERT.",
        where=str(run.path),
        fix="Use --format transformers or onnx, or train from a complete HuBERT checkpoint.",
    )
