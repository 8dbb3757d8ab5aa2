"""``hubert_tiny``: a HuBERT of 0.35 M parameters, small enough to train on two CPU cores.

The layout is that of Base (GroupNorm, post-norm). `run_scripts/pretrain_tiny.sh` pre-trains it on
synthetic speech; the package has the result. Its initial weights are random except in the front
end, which is initialised as a filter bank: a random first convolution of ten taps extracts little
of the spectrum, even after a few minutes of training.

    python -m s3prl_mtl.upstreams.hubert.tiny OUT      # the initial weights
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from s3prl_mtl.upstreams.hubert.config import HubertConfig
from s3prl_mtl.upstreams.hubert.encoder import Hubert
from s3prl_mtl.upstreams.hubert.fairseq_file import write_fairseq_checkpoint

TINY_WEIGHTS = Path(__file__).parent / "weights" / "hubert_tiny.pt"
"""The pre-trained weights."""
BANDS = 40
PHASES = 4
WINDOW = 240  # 15 ms
CONFIG = HubertConfig(
    # Stride 80 * 4 = 320, receptive field 240 + 2 * 80 = 400, as HuBERT's seven convolutions.
    conv_feature_layers=((BANDS * PHASES, WINDOW, 80), (96, 3, 4)),
    encoder_layers=3,
    encoder_embed_dim=96,
    encoder_ffn_embed_dim=192,
    encoder_attention_heads=4,
    conv_pos=32,
    conv_pos_groups=8,
    dropout=0.05,
    attention_dropout=0.0,
    final_proj_dim=32,
    label_embeddings=(104, 32),
)


def make_tiny(seed: int = 0) -> Hubert:
    """Build the encoder with its initial weights, reproducible from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Hubert(CONFIG)
        _init_convolutions(model)
        _init_encoder(model)
    return model


@torch.no_grad()
def _init_convolutions(model: Hubert) -> None:
    """Initialise a filter bank: windowed tones in four phases, rectified and summed per band.

    GELU(x) + GELU(-x) is about x^2 for small and |x| for large x, so the sum over the phases 0, 90,
    180 and 270 degrees approximates the magnitude in the band, independent of the phase.
    """
    parameters = dict(model.feature_extractor.named_parameters())
    parameters["conv_layers.0.0.weight"].copy_(_filter_bank()[:, None])
    # Well above 1, so that most of the signal is in the range where GELU rectifies.
    parameters["conv_layers.0.2.weight"].fill_(2.0)
    pooling = parameters["conv_layers.1.0.weight"]
    pooling.mul_(0.3)
    for band in range(BANDS):
        channels = slice(band * PHASES, (band + 1) * PHASES)
        pooling[band, channels] += 1.0 / PHASES
        change = torch.tensor([-1.0, 0.0, 1.0])
        pooling[BANDS + band, channels] += change / PHASES


def _filter_bank() -> Tensor:
    """``(BANDS * PHASES, WINDOW)``: Hann-windowed tones at mel-spaced frequencies, norm 1."""
    mel = torch.linspace(_to_mel(80.0), _to_mel(7400.0), BANDS, dtype=torch.float64)
    hertz = 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    spacing = torch.gradient(hertz)[0]
    time = (torch.arange(WINDOW, dtype=torch.float64) - (WINDOW - 1) / 2) / 16_000
    # A Hann window of length w has a bandwidth of about 2 / w to each side: wide bands need short
    # windows.
    seconds = (2.0 / spacing).clamp(0.003, WINDOW / 16_000)
    inside = time.abs()[None] < seconds[:, None] / 2
    window = inside * (1 + torch.cos(2 * math.pi * time[None] / seconds[:, None])) / 2
    phases = torch.arange(PHASES, dtype=torch.float64) * (2 * math.pi / PHASES)
    angle = 2 * math.pi * hertz[:, None] * time[None]
    tones = torch.cos(angle[:, None] + phases[None, :, None]) * window[:, None]
    tones = tones / tones.norm(dim=-1, keepdim=True)
    return tones.reshape(BANDS * PHASES, WINDOW).float()


def _to_mel(hertz: float) -> float:
    return 2595.0 * math.log10(1.0 + hertz / 700.0)


def _init_encoder(model: Hubert) -> None:
    """Preserve the variance through the layers, with residual branches weaker than their inputs."""
    for name, parameter in model.encoder.layers.named_parameters():
        if name.endswith(("out_proj.weight", "fc2.weight")):
            nn.init.xavier_uniform_(parameter, gain=0.5)
        elif name.endswith(("proj.weight", "fc1.weight")):
            nn.init.xavier_uniform_(parameter)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the initial weights of hubert_tiny.")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_fairseq_checkpoint(arguments.out, make_tiny())


if __name__ == "__main__":
    main()
