"""Promises about bits say on which device they hold, and the page about them names real tests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "integrity.md"
PROMISE = re.compile(r"to the bit|bit-equal|bitwise|bit for bit|same bits", re.IGNORECASE)
PLACE = re.compile(r"\b(CPUs?|GPUs?|devices?|machine)\b")
# where such words promise nothing about arithmetic, or where another place says it
EXCEPTIONS = {
    "docs/drop_in.md": "cells of a table; a sentence below it has the device",
    "docs/integrity.md": "the heading of the section about bits",
    "dori_fast/integrations/rows.py": "rows of a batch are compared",
    "dori_fast/models/in_place.py": "saved values are copied back",
    "dori_fast/ops/wanda_mask.py": "saved values are copied back",
    "dori_fast/report/pages/prune.py": "numpy.bitwise_count",
    "dori_fast/runs/verify/checks.py": "stored rows are compared",
    "dori_fast/runs/verify/rescore.py": "stored rows are compared",
}


def paragraphs(path: Path) -> Iterator[str]:
    yield from re.split(r"\n\s*\n", path.read_text(encoding="utf-8"))


def sources() -> list[Path]:
    return [*sorted((ROOT / "dori_fast").rglob("*.py")), *sorted((ROOT / "docs").glob("*.md"))]


def without_a_place(text: str) -> bool:
    return bool(PROMISE.search(text)) and not PLACE.search(text)


def test_a_promise_says_on_which_device() -> None:
    found = {
        str(path.relative_to(ROOT))
        for path in sources()
        if any(map(without_a_place, paragraphs(path)))
    }
    # an exception that is not needed any more goes
    assert found == set(EXCEPTIONS)
    assert without_a_place("Rows are equal, to the bit.")
    assert not without_a_place("On a CPU rows are equal, to the bit.")


def test_the_page_about_bits_names_tests_that_exist() -> None:
    section = (
        PAGE.read_text(encoding="utf-8").split('## What "to the bit" means')[1].split("\n## ")[0]
    )
    named = re.findall(r"\w+(?:/\w+)*/test_\w+\.py", section)
    assert len(named) > 10
    assert [name for name in named if not (ROOT / "tests" / name).is_file()] == []
