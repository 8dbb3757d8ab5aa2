"""Pure functions that score hypotheses against references. Rates are fractions, not percent."""

from s3prl_mtl.metrics.accuracy import accuracy
from s3prl_mtl.metrics.ctc_decoding import align_ctc, collapse_ctc
from s3prl_mtl.metrics.diarization import (
    DiarizationErrors,
    diarization_error_rate,
    diarization_errors,
    frame_accuracy,
    frame_diarization_errors,
)
from s3prl_mtl.metrics.edit_distance import (
    character_error_rate,
    token_error_rate,
    word_error_rate,
)
from s3prl_mtl.metrics.equal_error_rate import EqualErrorRate, equal_error_rate
from s3prl_mtl.metrics.slots import (
    find_slots,
    slot_edit_f1_full,
    slot_edit_f1_part,
    slot_type_f1,
    slot_value_cer,
    slot_value_wer,
    without_slots,
)
from s3prl_mtl.metrics.speech_decision import SpeechDecision, best_decision, decide_speech

__all__ = [
    "DiarizationErrors",
    "EqualErrorRate",
    "SpeechDecision",
    "accuracy",
    "align_ctc",
    "best_decision",
    "character_error_rate",
    "collapse_ctc",
    "decide_speech",
    "diarization_error_rate",
    "diarization_errors",
    "equal_error_rate",
    "find_slots",
    "frame_accuracy",
    "frame_diarization_errors",
    "slot_edit_f1_full",
    "slot_edit_f1_part",
    "slot_type_f1",
    "slot_value_cer",
    "slot_value_wer",
    "token_error_rate",
    "without_slots",
    "word_error_rate",
]
