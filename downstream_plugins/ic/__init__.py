"""Intent classification: what a command of Fluent Speech Commands wants done, to what, where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from downstream_plugins.ic.corpus import SLOTS, FluentSpeechCommands
from s3prl_mtl import ClassificationExpert


class IntentClassification(ClassificationExpert):
    """SUPERB's `ic`: an intent is right if its action, object and location all are."""

    name = "ic"
    corpus_type = FluentSpeechCommands
    dev_split = "valid"
    questions: ClassVar[Mapping[str, str]] = {slot: slot for slot in SLOTS}
