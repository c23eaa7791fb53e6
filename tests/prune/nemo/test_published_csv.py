"""NeMo's table: written as its released code reads it, and read as it writes it."""

from __future__ import annotations

import csv
import io
import re

import pytest

from dori_fast.errors import IntegrityError
from dori_fast.prune.nemo.published_csv import read_nemo_csv, write_nemo_csv

ROWS = [
    ('a "quoted"; prompt\nof two lines', [[1, 2], []], 0.25, [[2], []], 0.4),
    ("not memorized", [[], []], None, [[], []], None),
]


def str_to_list(cell):
    """As in the released 4_generate_images.py."""
    return [list(map(int, re.findall(r"\d+", part))) for part in re.findall(r"\[.*?\]", cell)]


def test_what_is_written_is_what_the_released_code_reads():
    file = io.StringIO()
    write_nemo_csv(ROWS, file)
    table = list(csv.DictReader(io.StringIO(file.getvalue()), delimiter=";"))
    assert table[0]["Caption"] == ROWS[0][0]
    assert str_to_list(table[0]["Initial Neurons"]) == [[1, 2], []]
    assert float(table[0]["Refined SSIM"]) == 0.4
    assert str_to_list(table[1]["Refined Neurons"]) == [[], []]
    assert float(table[1]["Refined SSIM"]) == 0


def test_masks_come_back():
    file = io.StringIO()
    write_nemo_csv(ROWS, file)
    prompts, masks = read_nemo_csv(io.StringIO(file.getvalue()), ["a", "b"], {"a": 3, "b": 2})
    assert prompts == [row[0] for row in ROWS]
    assert masks.neurons(0) == {"a": [2], "b": []} and masks.neurons(1) == {"a": [], "b": []}


@pytest.mark.parametrize(
    "cell",
    ["[[1, 'x']]", "__import__('os')", "[[1]", "7", "[[" * 2000, "[[1.7]]", "[[1e999]]", "'12'"],
)
def test_a_cell_that_is_no_list_of_neurons_is_named(cell):
    file = io.StringIO(f'Caption;Refined Neurons\np;"{cell}"\n')
    with pytest.raises(IntegrityError, match="row 1: not lists of neurons"):
        read_nemo_csv(file, ["a"], {"a": 3})


def test_other_numbers_of_lists_rows_that_are_cut_off_and_endless_cells_are_named():
    for rows, why in [
        ("p;[[1],[2]]\n", "row 1: 2 lists of neurons for 1 layers"),
        ("p;[[1]]\nq\n", "row 2: cut off"),
        ("p;[[1]]\nq;" + "x" * 200_000 + "\n", "row 2: (field larger|not lists)"),
    ]:
        with pytest.raises(IntegrityError, match=why):
            read_nemo_csv(io.StringIO(f"Caption;Refined Neurons\n{rows}"), ["a"], {"a": 3})
    rows = "Caption;Refined Neurons\np;[]\nq;\n"
    assert read_nemo_csv(io.StringIO(rows), ["a"], {"a": 3})[0] == ["p", "q"]


def test_a_missing_column_is_named():
    with pytest.raises(IntegrityError, match="no column 'Refined Neurons'; columns are Caption"):
        read_nemo_csv(io.StringIO("Caption;x\n"), ["a"], {"a": 3})
