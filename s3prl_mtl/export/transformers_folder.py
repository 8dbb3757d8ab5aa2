"""`--format transformers`: a folder for `AutoModel.from_pretrained`.

    config.json               the architecture
    model.safetensors         the parameters under transformers' names
    preprocessor_config.json  whether waveforms are normalised
    README.md                 the model card

The parameters of pre-training (`final_proj`, `label_embs_concat`, `target_glu`) do not exist in
transformers' class and are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from s3prl_mtl.errors import UserError
from s3prl_mtl.export.formats import Options
from s3prl_mtl.export.model_card import CARD, model_card
from s3prl_mtl.export.saved_run import SavedRun
from s3prl_mtl.upstreams.hubert.transformers_format import their_parameters, their_settings
from s3prl_mtl.upstreams.zoo.huggingface import TransformersUpstream, import_transformers


def write(run: SavedRun, out: Path, options: Options) -> None:
    """Write the encoder as a folder of transformers, with a model card.

    Args:
        run: its encoder is HuBERT, or came from transformers.
        out: the folder, created here.
        options: the name of the repository, for the card.

    Raises:
        UserError: transformers is not installed, or has no class for the encoder alone.
    """
    import_transformers("--format transformers")
    with _without_bars():
        states = _write_theirs(run, out) if run.kind == "transformers" else _write_hubert(run, out)
    card = model_card(run, states, options.repository)
    (out / CARD).write_text(card, encoding="utf-8")


@contextmanager
def _without_bars() -> Iterator[None]:
    """Hide transformers' progress bars of a write that takes a second."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _write_hubert(run: SavedRun, out: Path) -> int:
    """Write our HuBERT; returns its number of hidden states."""
    from transformers import HubertConfig as TheirConfig
    from transformers import HubertModel, Wav2Vec2FeatureExtractor

    model = run.hubert()
    theirs = HubertModel(TheirConfig(**their_settings(model.config)))
    theirs.load_state_dict(their_parameters(model.config, model.state_dict()))
    theirs.eval().save_pretrained(out)
    Wav2Vec2FeatureExtractor(
        sampling_rate=16_000,
        do_normalize=model.config.normalize,
        # As in published models: GroupNorm includes the padding whatever a mask says.
        return_attention_mask=model.config.extractor_mode == "layer_norm",
    ).save_pretrained(out)
    return model.num_hidden_states


def _write_theirs(run: SavedRun, out: Path) -> int:
    """Write an encoder that came from transformers; returns its number of hidden states."""
    upstream = run.upstream()
    if not isinstance(upstream, TransformersUpstream):
        raise TypeError(f"{type(upstream).__name__} did not come from transformers")
    model: Any = upstream.model
    if getattr(model.config, "is_encoder_decoder", False):
        raise UserError(
            f"{run.upstream_name} is the encoder of a model with a decoder, which is not in the "
            "run; transformers has no class for the encoder alone.",
            where=str(run.path),
            fix="Use the run with s3prl-mtl itself.",
            code="not-supported",
        )
    model.save_pretrained(out)
    if upstream.preprocessing:
        settings = json.dumps(upstream.preprocessing, indent=2, sort_keys=True)
        (out / "preprocessor_config.json").write_text(settings + "\n", encoding="utf-8")
    return upstream.num_hidden_states
