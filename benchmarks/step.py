"""Measure a training step of the encoder: nine tasks, lengths that vary from step to step.

    python benchmarks/step.py [--device cuda] [--size base] [--scale 1,4] [--quick]

Ways, in turns, on the same utterances:

    packed     this encoder: one pass for all tasks, without padding
    by task    the branch's way: a padded pass for each task, float32, with transformers

A step is forward, backward and AdamW; the rate is seconds of audio a second, the median over the
steps. The utilisation is relative to a large matrix product of the same precision in the same run.
`--quick` answers in under 3 minutes on a GPU.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from common import SIZES, append, machine, matrix_product, seconds_of, show_machine, table
from torch import Tensor, nn

from s3prl_mtl import Featurizer
from s3prl_mtl.upstreams.hubert.config import HubertConfig
from s3prl_mtl.upstreams.hubert.encoder import Hubert
from s3prl_mtl.upstreams.shared_encoder import SharedEncoder
from s3prl_mtl.upstreams.zoo.huggingface import import_transformers

# Utterances of a batch, and their shortest and longest duration in seconds: the branch's batches
# on SUPERB's corpora, about 100 s of audio.
BATCHES = {
    "asr": (2, 2.0, 16.0),
    "pr": (2, 2.0, 16.0),
    "sf": (2, 1.5, 5.0),
    "ks": (2, 1.0, 1.0),
    "ic": (2, 1.0, 4.0),
    "sid": (2, 4.0, 8.0),
    "er": (2, 1.0, 10.0),
    "sv": (2, 4.0, 8.0),
    "sd": (1, 12.0, 20.0),
}

# A GPU loads kernels and grows its memory in the first steps.
WARM_UP = 4

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}

Batches = list[list[Tensor]]
Step = Callable[[Batches], None]


def draw(generator: random.Random, tasks: Sequence[str], scale: float, vary: bool) -> Batches:
    """A batch of waveforms of every task."""
    batches = []
    for task in tasks:
        count, low, high = BATCHES[task]
        lengths = [
            generator.uniform(low, high) if vary else (low + high) / 2
            for _ in range(max(1, round(count * scale)))
        ]
        batches.append([0.1 * torch.randn(int(16_000 * seconds)) for seconds in lengths])
    return batches


def packed(config: HubertConfig, device: torch.device, dtype: torch.dtype) -> Step:
    """Steps of this encoder."""
    model = Hubert(config).to(device).train()
    featurizer = Featurizer(model).to(device)
    is_fused = device.type == "cuda"
    parameters = [*model.parameters(), *featurizer.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=is_fused)
    is_rounded = dtype == torch.bfloat16
    encoder = SharedEncoder(model, featurizer, device, freeze=False, bf16=is_rounded)

    def step(batches: Batches) -> None:
        optimizer.zero_grad(set_to_none=True)
        features = encoder.features([wav for batch in batches for wav in batch])
        torch.cat(features).square().mean().backward()
        optimizer.step()

    return step


def by_task(config: HubertConfig, device: torch.device) -> Step:
    """Steps of transformers' HuBERT: a padded float32 pass for each task."""
    transformers = import_transformers("the benchmark")
    is_large = config.layer_norm_first
    settings = transformers.HubertConfig(
        hidden_size=config.encoder_embed_dim,
        num_hidden_layers=config.encoder_layers,
        num_attention_heads=config.encoder_attention_heads,
        intermediate_size=config.encoder_ffn_embed_dim,
        conv_dim=[width for width, _, _ in config.conv_feature_layers],
        conv_kernel=[kernel for _, kernel, _ in config.conv_feature_layers],
        conv_stride=[stride for _, _, stride in config.conv_feature_layers],
        conv_bias=config.conv_bias,
        num_conv_pos_embeddings=config.conv_pos,
        num_conv_pos_embedding_groups=config.conv_pos_groups,
        feat_extract_norm="layer" if is_large else "group",
        do_stable_layer_norm=is_large,
        hidden_dropout=config.dropout,
        attention_dropout=config.attention_dropout,
        activation_dropout=config.activation_dropout,
        feat_proj_dropout=config.dropout_input,
        layerdrop=0.0,
        apply_spec_augment=False,
    )
    model = transformers.HubertModel(settings).to(device).train()
    weights = nn.Parameter(torch.zeros(config.encoder_layers + 1, device=device))
    optimizer = torch.optim.AdamW([*model.parameters(), weights], lr=1e-5)

    def step(batches: Batches) -> None:
        optimizer.zero_grad(set_to_none=True)
        for batch in batches:
            mask = nn.utils.rnn.pad_sequence([torch.ones(len(wav)) for wav in batch], True)
            padded = nn.utils.rnn.pad_sequence(batch, True).to(device)
            states = model(
                padded, attention_mask=mask.to(device), output_hidden_states=True
            ).hidden_states
            shares = torch.softmax(weights, dim=0)
            features = torch.tensordot(shares, torch.stack(states), dims=1)
            (features.square().mean() / len(batches)).backward()
        optimizer.step()

    return step


def measure(
    way: Callable[[], Step], draws: Sequence[Batches], device: torch.device
) -> tuple[list[float], float] | None:
    """Seconds of audio a second of each draw after the warm-up; peak memory in GB.

    None if the GPU's memory is too small.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    try:
        step = way()
        rates = []
        for batches in draws:
            audio = sum(len(wav) for batch in batches for wav in batch) / 16_000
            rates.append(audio / seconds_of(lambda batches=batches: step(batches), device))  # type: ignore[misc]
    except torch.cuda.OutOfMemoryError:
        return None
    peak = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0
    return rates[WARM_UP:], peak


def operations_per_second_of_audio(config: HubertConfig) -> float:
    """Multiplications and additions of matrix products, forward and backward.

    Attention's products are left out: they depend on the lengths, and are under 5 % for 10 s.
    """
    rate, width_in, total = 16_000.0, 1, 0.0
    for width, kernel, stride in config.conv_feature_layers:
        rate /= stride
        total += rate * kernel * width_in * width
        width_in = width
    width, inner = config.encoder_embed_dim, config.encoder_ffn_embed_dim
    total += rate * width_in * width
    total += rate * config.conv_pos * width * width / config.conv_pos_groups
    total += rate * config.encoder_layers * (4 * width * width + 2 * width * inner)
    return 3 * 2 * total


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", default="base", choices=sorted(SIZES))
    parser.add_argument("--scale", default="1", help="multiples of the branch's batches: 1,4,16")
    parser.add_argument("--tasks", default=",".join(BATCHES), help="fewer for a CPU")
    parser.add_argument("--precision", default="fp32,bf16", help="of the packed passes")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="3 steps of each way")
    parser.add_argument("--log", type=Path, help="append a JSON line for each row to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    config = SIZES[arguments.size]
    repeats = 3 if arguments.quick else arguments.repeats
    tasks = arguments.tasks.split(",")
    work = operations_per_second_of_audio(config)
    found = machine(device)
    show_machine(found)
    dtypes = [PRECISIONS[name] for name in arguments.precision.split(",")]
    limits = {dtype: matrix_product(device, dtype) for dtype in {torch.float32, *dtypes}}
    rows = []
    for scale in map(float, arguments.scale.split(",")):
        generator = random.Random(0)
        varying, constant = (
            [draw(generator, tasks, scale, vary) for _ in range(WARM_UP + repeats)]
            for vary in (True, False)
        )
        base: float | None = None
        ways = [("by task", torch.float32, varying, partial(by_task, config, device))]
        for name, draws in (("packed", varying), ("same length", constant)):
            ways += [(name, kind, draws, partial(packed, config, device, kind)) for kind in dtypes]
        for name, dtype, draws, way in ways:
            result = measure(way, draws, device)
            precision = str(dtype).removeprefix("torch.")
            row = [f"{scale:g}", name, precision]
            if result is None:
                rows.append([*row, "out of memory", "", "", ""])
                continue
            rates, peak = result
            rate = statistics.median(rates)
            base = rate if name == "by task" else base
            use = rate * work / limits[dtype]
            against = f"{rate / base:.2f}" if base else ""
            rows.append([*row, f"{rate:.2f}", against, f"{use:.2f}", f"{peak:.1f}"])
            if arguments.log:
                measured = {"scale": scale, "way": name, "precision": precision, "rates": rates}
                settings = {"benchmark": "step", "size": arguments.size, "tasks": tasks}
                append(arguments.log, {**settings, **found, **measured, "peak_gb": peak})
    head = ["scale", "way", "precision", "s of audio / s", "by task = 1", "utilisation", "peak GB"]
    print(table(head, rows))


if __name__ == "__main__":
    main()
