"""docs/faults.md names an existing test for every fault and bad input."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROWS = {"Faults": 28, "Bad inputs": 32}


def named(page: str) -> dict[tuple[str, int], list[str]]:
    """The tests of every row, by section and number."""
    rows, section = {}, ""
    for line in page.splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        elif line.startswith("| ") and (cells := line.split("|"))[1].strip().isdigit():
            tests = [name.strip() for name in cells[-2].split(",")]
            rows[section, int(cells[1])] = [name for name in tests if name != "—"]
    return rows


PAGE = named((TESTS.parent / "docs" / "faults.md").read_text())


@cache
def functions(file: str) -> set[str]:
    if not (TESTS / file).is_file():
        return set()
    tree = ast.parse((TESTS / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_row_is_there() -> None:
    assert set(PAGE) == {(name, i) for name, n in ROWS.items() for i in range(1, n + 1)}


def test_all_but_one_are_shown_by_a_test() -> None:
    assert sum(map(bool, PAGE.values())) >= sum(ROWS.values()) - 1


def test_the_tests_exist() -> None:
    listed = [(row, name, *name.split("::")) for row, names in PAGE.items() for name in names]
    assert [(row, name) for row, name, file, test in listed if test not in functions(file)] == []
