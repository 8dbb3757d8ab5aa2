"""Metadata, dependencies and entry points of s3prl-mtl."""

from pathlib import Path

from setuptools import find_packages, setup

SUPERB_TASKS = {
    "asr": "SpeechRecognition",
    "pr": "PhonemeRecognition",
    "sf": "SlotFilling",
    "ks": "KeywordSpotting",
    "ic": "IntentClassification",
    "sid": "SpeakerIdentification",
    "er": "EmotionRecognition",
    "sv": "SpeakerVerification",
    "sd": "SpeakerDiarization",
}
OTHER_TASKS = {"ssl": "MaskedPrediction"}
TASKS = [
    f"{name} = downstream_plugins.{name}:{expert}"
    for name, expert in {**SUPERB_TASKS, **OTHER_TASKS}.items()
]

UPSTREAMS = [
    "hubert = s3prl_mtl.upstreams.builtin:hubert",
    "hubert_base = s3prl_mtl.upstreams.builtin:hubert",
    "hubert_large_ll60k = s3prl_mtl.upstreams.builtin:hubert_large_ll60k",
    "hubert_tiny = s3prl_mtl.upstreams.builtin:hubert_tiny",
]

DEMO = ["espeakng-loader>=0.2.4"]
S3PRL = ["s3prl>=0.4.18", "torchaudio>=2.11"]
TRANSFORMERS = ["transformers>=5"]
HUB = ["huggingface_hub>=1.0"]
ONNX = ["onnx>=1.19", "onnxruntime>=1.23", "onnxscript>=0.5"]
BALANCERS = [
    "torchjd[cagrad,fairgrad,quadprog_projector]>=0.18",
    'torchjd[nash_mtl]>=0.18; python_version < "3.13"',  # no wheel of ecos for 3.13
]
SERVE = ["fastapi>=0.115", "python-multipart>=0.0.18", "uvicorn>=0.30"]
TRACKERS = ["mlflow-skinny>=3.5", "wandb>=0.22"]
LM = ["ufal.flashlight-text>=0.0.7.1"]  # flashlight-text with KenLM, also for Python 3.13
DOCS = ["mkdocs-material>=9.7", "mkdocstrings[python]>=1"]
DEV = [
    "mypy",
    "playwright",
    "pre-commit",
    "pytest",
    "pytest-timeout",
    "pytest-xdist",
    "rapidfuzz",
    "ruff",
    "setuptools>=77",
    "types-PyYAML",
]

setup(
    name="s3prl-mtl",
    version="0.1.0",
    description="One self-supervised speech encoder, tuned on many tasks at once",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["s3prl_mtl*", "downstream_plugins*"]),
    package_data={
        "s3prl_mtl": [
            "config/*.yaml",
            "settings/**/*.yaml",
            "serving/*.html",
            "study/*.css",
            "study/*.json",
            "py.typed",
            "upstreams/hubert/weights/*",
            "authoring/templates/*",
        ],
        "downstream_plugins": ["*/*.yaml"],
    },
    install_requires=[
        "torch>=2.11",
        "numpy",
        "scipy",
        'editdistance; python_version < "3.13"',  # no wheel for 3.13
        'rapidfuzz; python_version >= "3.13"',
        "filelock",
        "fsspec",
        "lhotse>=1.33",
        "matplotlib>=3.9",
        "omegaconf>=2.3",
        "pillow>=10.1",
        "pyannote.metrics>=4",
        "pyarrow>=18",
        "pyyaml",
        "rich>=14.1",
        "scikit-learn>=1.6",
        "soundfile",
        "tensorboard",
        "torchjd>=0.18",
        "urllib3",  # lhotse imports it without declaring it
    ],
    extras_require={
        "demo": DEMO,
        "s3prl": S3PRL,
        "transformers": TRANSFORMERS,
        "onnx": ONNX,
        "balancers": BALANCERS,
        "serve": SERVE,
        "trackers": TRACKERS,
        "hub": HUB,
        "lm": LM,
        "hf": ["datasets>=4.0"],  # those before execute scripts of data sets
        "docs": DOCS,
        "dev": [
            *DEV,
            *DEMO,
            *DOCS,
            *S3PRL,
            *TRANSFORMERS,
            *HUB,
            *ONNX,
            *BALANCERS,
            *SERVE,
            *TRACKERS,
            *LM,
        ],
    },
    entry_points={
        "console_scripts": ["s3prl-mtl = s3prl_mtl.cli.main:main"],
        "s3prl_mtl.tasks": [*TASKS, "asv = downstream_plugins.sv:SpeakerVerification"],
        "s3prl_mtl.upstreams": UPSTREAMS,
    },
)
