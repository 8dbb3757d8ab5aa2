"""Language identification: which language is spoken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from lid_task.corpus import LanguageFolders
from s3prl_mtl import ClassificationExpert


class LanguageIdentification(ClassificationExpert):
    """One of the languages of the training folder; the head is that of SUPERB's utterance tasks."""

    name = "lid"
    corpus_type = LanguageFolders
    questions: ClassVar[Mapping[str, str]] = {"language": "languages"}
