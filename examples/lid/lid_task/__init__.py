"""Language identification: classification of the spoken language."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from lid_task.corpus import LanguageFolders
from s3prl_mtl import ClassificationExpert


class LanguageIdentification(ClassificationExpert):
    """Classify the language of an utterance with the head of SUPERB's utterance tasks."""

    name = "lid"
    corpus_type = LanguageFolders
    questions: ClassVar[Mapping[str, str]] = {"language": "languages"}
