"""Audio, corpora and batches, for the authors of tasks."""

from s3prl_mtl.data.audio import (
    MINIMUM_SAMPLES,
    SAMPLE_RATE,
    UnreadableAudio,
    apply_gain,
    load_waveform,
    random_crop,
    read_audio,
    resample,
)
from s3prl_mtl.data.batching import item_generator, make_loader
from s3prl_mtl.data.corpus import Corpus, Finding, Official
from s3prl_mtl.data.folders import (
    AudioIndex,
    MovedFiles,
    absolute,
    audio_stem,
    is_audio,
    is_file,
    list_audio,
    list_files,
    list_folders,
    listed_once,
    note_read,
    read_lines,
    walk_files,
)
from s3prl_mtl.data.manifest import Manifest
from s3prl_mtl.data.manifest_cache import load_cuts
from s3prl_mtl.data.sampling import inverse_class_weights
from s3prl_mtl.data.silence import trim_silence
from s3prl_mtl.data.table_corpus import ClassTable, TableCorpus, files_by_split, listed_values
from s3prl_mtl.data.table_formats import Row, seconds, texts_of
from s3prl_mtl.data.tables import Table
from s3prl_mtl.data.text_rule import TextRule
from s3prl_mtl.data.unit_labels import read_dictionary, read_unit_labels
from s3prl_mtl.data.utterance import Utterance
from s3prl_mtl.fileio.cache import default_cache_dir

__all__ = [
    "MINIMUM_SAMPLES",
    "SAMPLE_RATE",
    "AudioIndex",
    "ClassTable",
    "Corpus",
    "Finding",
    "Manifest",
    "MovedFiles",
    "Official",
    "Row",
    "Table",
    "TableCorpus",
    "TextRule",
    "UnreadableAudio",
    "Utterance",
    "absolute",
    "apply_gain",
    "audio_stem",
    "default_cache_dir",
    "files_by_split",
    "inverse_class_weights",
    "is_audio",
    "is_file",
    "item_generator",
    "list_audio",
    "list_files",
    "list_folders",
    "listed_once",
    "listed_values",
    "load_cuts",
    "load_waveform",
    "make_loader",
    "note_read",
    "random_crop",
    "read_audio",
    "read_dictionary",
    "read_lines",
    "read_unit_labels",
    "resample",
    "seconds",
    "texts_of",
    "trim_silence",
    "walk_files",
]
