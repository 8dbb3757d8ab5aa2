"""The order of IEMOCAP's dialogues in SUPERB's lists, which determines its train and dev splits.

SUPERB draws dev from the training utterances in the order in which the authors' file system listed
the label files. This order follows no rule; it is copied from the lists that s3prl publishes
(`downstream/emotion/meta_data`).
"""

from __future__ import annotations

_SUFFIXES = {
    1: (
        "F_script02_2 F_impro07 F_script03_2 M_impro02 F_impro06 F_script01_3 M_script02_1 "
        "M_impro04 M_script01_1 F_impro01 F_script01_1 F_impro05 M_script01_2 M_script02_2 "
        "F_script02_1 M_script03_2 M_impro05 M_impro01 F_impro03 M_impro03 M_script01_3 "
        "F_script03_1 M_impro07 F_impro02 M_impro06 M_script03_1 F_impro04 F_script01_2"
    ),
    2: (
        "F_impro03 F_script03_2 M_script03_2 M_impro04 M_impro05 F_script02_1 F_script02_2 "
        "M_script02_2 M_impro08 M_impro07 F_script03_1 M_script01_3 F_impro06 F_impro01 "
        "F_impro04 F_script01_2 M_impro02 M_impro03 F_script01_3 F_impro05 F_script01_1 "
        "M_impro06 M_script02_1 F_impro08 F_impro02 M_script01_1 M_impro01 M_script01_2 "
        "M_script03_1 F_impro07"
    ),
    3: (
        "F_script02_1 M_impro04 M_script03_2 M_impro05b M_impro02 F_impro05 M_script02_2 "
        "M_impro08b F_impro07 M_script01_1 M_script02_1 M_impro05a M_impro07 M_script03_1 "
        "F_script03_1 M_impro01 F_script01_1 F_impro04 F_script02_2 F_script01_3 M_script01_3 "
        "M_impro06 F_impro01 F_impro03 M_script01_2 M_impro08a M_impro03 F_script03_2 "
        "F_script01_2 F_impro08 F_impro06 F_impro02"
    ),
    4: (
        "F_script03_1 F_impro01 M_script02_1 M_script02_2 F_script01_3 M_impro05 F_script02_1 "
        "F_impro07 F_impro02 F_impro03 M_impro02 F_script01_1 M_script01_1 F_script03_2 "
        "M_impro06 F_script02_2 M_impro01 M_impro04 F_impro05 F_script01_2 F_impro08 "
        "F_impro06 M_impro03 M_script01_3 M_script01_2 M_script03_1 M_script03_2 M_impro07 "
        "F_impro04 M_impro08"
    ),
    5: (
        "M_script01_3 F_impro04 M_script02_2 F_script01_3 F_script01_2 F_impro06 M_impro06 "
        "M_impro01 F_script03_1 F_impro07 F_script03_2 M_script01_1b F_impro05 M_script01_1 "
        "F_impro08 M_script03_1 M_impro05 F_impro01 F_impro02 M_impro03 F_script01_1 "
        "M_impro04 M_script02_1 F_impro03 F_script02_2 F_script02_1 M_script03_2 M_impro08 "
        "M_impro02 M_impro07 M_script01_2"
    ),
}

DIALOGUES: tuple[str, ...] = tuple(
    f"Ses{session:02d}{suffix}"
    for session, suffixes in _SUFFIXES.items()
    for suffix in suffixes.split()
)
"""151 dialogues, such as `Ses01F_impro01`: `Ses`, session, actor with the markers, dialogue."""
