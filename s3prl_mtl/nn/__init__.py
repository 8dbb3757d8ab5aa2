"""Heads of the nine SUPERB tasks, their losses, SpecAugment, and span masks.

Heads take a padded batch (B, T, D) and lengths (B,), both from `pad_features`.
"""

from s3prl_mtl.nn.am_softmax import AMSoftmaxLoss
from s3prl_mtl.nn.ctc import ctc_loss
from s3prl_mtl.nn.diarization import DiarizationHead, match_length
from s3prl_mtl.nn.frame_level import FrameLevel
from s3prl_mtl.nn.head_settings import head_from_settings
from s3prl_mtl.nn.padding import frame_mask, pad_features
from s3prl_mtl.nn.permutation_invariant import permutation_invariant_bce
from s3prl_mtl.nn.recurrent import RNNs
from s3prl_mtl.nn.span_masks import SpanMasking
from s3prl_mtl.nn.spec_augment import SpecAugment
from s3prl_mtl.nn.transfer import start_to_cpu, to_cpu, to_device
from s3prl_mtl.nn.utterance_level import MeanPooling, UtteranceLevel
from s3prl_mtl.nn.xvector import XVector, statistics_pooling

__all__ = [
    "AMSoftmaxLoss",
    "DiarizationHead",
    "FrameLevel",
    "MeanPooling",
    "RNNs",
    "SpanMasking",
    "SpecAugment",
    "UtteranceLevel",
    "XVector",
    "ctc_loss",
    "frame_mask",
    "head_from_settings",
    "match_length",
    "pad_features",
    "permutation_invariant_bce",
    "start_to_cpu",
    "statistics_pooling",
    "to_cpu",
    "to_device",
]
