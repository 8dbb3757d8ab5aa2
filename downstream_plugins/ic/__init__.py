"""Intent classification: the action, object and location of a spoken command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from downstream_plugins.ic.corpus import SLOTS, FluentSpeechCommands
from s3prl_mtl import ClassificationExpert


class IntentClassification(ClassificationExpert):
    """SUPERB's `ic`: an intent is correct if its action, object and location all are."""

    name = "ic"
    corpus_type = FluentSpeechCommands
    dev_split = "valid"
    questions: ClassVar[Mapping[str, str]] = {slot: slot for slot in SLOTS}
