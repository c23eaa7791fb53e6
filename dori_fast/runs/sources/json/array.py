"""A JSON document as prompts: an array of objects or of texts, or the captions of COCO."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dori_fast.errors import UsageError
from dori_fast.runs.sources.jsonl import JsonColumns, Survey
from dori_fast.runs.sources.lines import is_wide, unreadable, without_marks
from dori_fast.runs.sources.rows import check_prompt, find_column, missing_column
from dori_fast.runs.sources.text import Record, TextReader

# read whole, since the prompts' captions come before or after the images that they name
_BYTES = 1_000_000_000
_LINES = "write one object per line to a .jsonl file"


class JsonArray(TextReader):
    """Rows of a JSON array, or captions of a COCO file with ``images`` and ``annotations``.

    A value in an array without objects is a row with the key ``prompt``. A row of COCO is an
    annotation with the ``file_name`` of its image. Keys become columns as those of JSON lines do.

    The document is read whole: it needs several times its size of memory, at most 1 GB of it.

    Raises:
        UsageError: another kind of document, more than 1 GB, or no such key.
    """

    def __init__(self, path: Path, column: str | None) -> None:
        survey = Survey()
        for number, row in enumerate(_rows(path)):
            survey.add(row if isinstance(row, dict) else {}, path, f"row {number}")
        found = find_column(survey.kinds, column)
        if found is None and (column is not None or survey.kinds):
            missing = f"no key {column!r}" if column else "no prompt key"
            raise missing_column(path, missing, list(survey.kinds))
        self._columns: JsonColumns = survey.columns(found)
        super().__init__(path, found, self._columns.schema)

    def records(self) -> Iterator[Record]:
        rows = _rows(self.path)
        empty, size = (None,) * len(self.schema), self.end()
        for number, row in enumerate(rows, 1):
            end = size * number // len(rows)
            if not isinstance(row, dict):
                error = f"malformed: {type(row).__name__} where an object was expected"
                yield Record(None, error, empty, end, parsed=False)
                continue
            prompt, problem = check_prompt(row.get(self.column or ""))
            yield Record(prompt, problem, self._columns.cells(row), end)


def _rows(path: Path) -> list[Any]:
    document = _document(path)
    if isinstance(document, dict):
        return _captions(path, document)
    if not isinstance(document, list):
        raise UsageError(f"{path}: a JSON {type(document).__name__}, no array of rows; {_LINES}")
    if any(isinstance(row, dict) for row in document):
        return document
    return [{"prompt": row} for row in document]


def _document(path: Path) -> Any:
    try:
        if path.stat().st_size > _BYTES:
            raise UsageError(f"{path}: more than {_BYTES:,} bytes of JSON; {_LINES}")
        raw = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    if is_wide(raw[:4096]):
        raise UsageError(f"{path}: UTF-16 or UTF-32 text; convert it to UTF-8 first")
    try:
        return json.loads(without_marks(raw).decode())
    except (ValueError, RecursionError) as error:
        if str(error).startswith("Extra data"):
            raise UsageError(f"{path}: several JSON documents; name the file .jsonl") from error
        raise UsageError(f"{path}: not JSON ({error}); get the file again") from error


def _captions(path: Path, document: dict[str, Any]) -> list[Any]:
    """The annotations of COCO's captions, each with its image's file name."""
    annotations, images = document.get("annotations"), document.get("images")
    if not isinstance(annotations, list) or not any(
        isinstance(row, dict) and "caption" in row for row in annotations
    ):
        shown = ", ".join(repr(key) for key in [*document][:20]) or "no keys"
        raise UsageError(
            f"{path}: an object with {shown}, neither an array of rows nor COCO's captions (images,"
            f" annotations with a caption); {_LINES}"
        )
    names = {
        image.get("id"): image.get("file_name")
        for image in (images if isinstance(images, list) else [])
        if isinstance(image, dict) and isinstance(image.get("id"), str | int)
    }
    return [
        {**row, "file_name": names[row["image_id"]]}
        if isinstance(row, dict) and _hashable(row.get("image_id")) in names
        else row
        for row in annotations
    ]


def _hashable(value: object) -> object:
    return value if isinstance(value, str | int) else None
