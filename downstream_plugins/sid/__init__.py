"""Speaker identification on VoxCeleb1."""

from __future__ import annotations

from downstream_plugins.sid.corpus import VoxCeleb1Identification
from downstream_plugins.sid.table import SpeakerTable
from s3prl_mtl import ClassificationExpert


class SpeakerIdentification(ClassificationExpert):
    """SUPERB's `sid`: one class for each of the 1251 speakers."""

    name = "sid"
    corpus_type = VoxCeleb1Identification
    table_type = SpeakerTable
