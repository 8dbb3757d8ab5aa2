"""Tables as text."""

from __future__ import annotations

import csv

from s3prl_mtl.fileio.text_tables import csv_text, markdown_table


def test_csv_is_read_back_by_another_reader() -> None:
    records = [{"task": "a,b", "value": 0.5}, {"task": 'say "c"', "value": None}]
    read = list(csv.DictReader(csv_text(["task", "value"], records).splitlines()))
    assert read == [{"task": "a,b", "value": "0.5"}, {"task": 'say "c"', "value": ""}]


def test_a_cell_of_a_markdown_table_stays_one_cell() -> None:
    lines = markdown_table(["name", "value"], [["a|b", "two\nlines"]]).splitlines()
    assert lines == ["| name | value |", "| --- | --- |", "| a\\|b | two lines |"]
