"""The wanted rows and columns of an input: conditions such as ``similarity > 0.3``."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dori_fast.errors import UsageError

_COMPARISONS = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_FORM = re.compile(
    r"\s*(?:`(?P<quoted>[^`]+)`|(?P<plain>[^\s<>=!`]+))"
    r"\s*(?P<op><=|>=|==|!=|<|>|\bin\b|\bis\s+null\b|\bis\s+not\s+null\b)\s*(?P<value>.*?)\s*",
    re.DOTALL,
)
_NUMBER = r"^-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"


@dataclass(frozen=True)
class Condition:
    """One comparison of a column; null, so not kept, where the column is null."""

    column: str
    op: str
    value: Any = None

    @classmethod
    def parse(cls, text: str) -> Condition:
        """The condition written as ``COLUMN OP VALUE``.

        OP is one of ``< <= > >= == !=``, ``in``, ``is null`` and ``is not null``. VALUE is JSON
        (``0.3``, ``"en"``, ``true``, ``["en", "de"]`` after ``in``), or text in single quotes.
        Backticks enclose a column name with spaces.

        Raises:
            UsageError: the text has another form.
        """
        form = _FORM.fullmatch(text)
        if form is None:
            raise UsageError(f"where {text!r}: not COLUMN OP VALUE, such as 'similarity > 0.3'")
        column, op = form["quoted"] or form["plain"], " ".join(form["op"].split())
        if op.startswith("is"):
            if form["value"]:
                raise UsageError(f"where {text!r}: {op!r} takes no value")
            return cls(column, op)
        value = _literal(text, form["value"])
        items = value if op == "in" else [value]
        if not isinstance(items, list) or not all(isinstance(v, str | int | float) for v in items):
            wanted = (
                'a list such as ["en", "de"]' if op == "in" else "a number, text, true or false"
            )
            raise UsageError(f"where {text!r}: {op!r} needs {wanted} after it")
        return cls(column, op, value)

    def __str__(self) -> str:
        value = "" if self.op.startswith("is") else f" {json.dumps(self.value)}"
        return f"{self.column} {self.op}{value}"

    def expression(self, name: str, kind: pa.DataType, path: Path) -> pc.Expression:
        """The condition on the column ``name`` of type ``kind``.

        Text is compared with a number as the number that it spells; other text is null.

        Raises:
            UsageError: the type cannot be compared with the value.
        """
        if self.op.startswith("is"):
            null = pc.field(name).is_null()
            return null if self.op == "is null" else ~null
        values = self.value if self.op == "in" else [self.value]
        column, plain = pc.field(name), _plain(kind)
        if pa.types.is_null(plain):
            return column.is_valid()
        numbers = all(isinstance(value, int | float) for value in values)
        if numbers and _is_text(plain) and not any(isinstance(v, bool) for v in values):
            text = pc.utf8_trim_whitespace(column.cast(pa.string()))
            spelled = pc.match_substring_regex(text, _NUMBER)
            column = pc.if_else(spelled, text, pa.scalar(None, pa.string())).cast(pa.float64())
            plain = pa.float64()
        elif pa.types.is_integer(plain) and any(isinstance(value, float) for value in values):
            # round an integer that float64 cannot hold, do not reject it
            column, plain = column.cast(pa.float64(), safe=False), pa.float64()
        elif plain != kind:
            column = column.cast(plain)
        try:
            fitting = [_scalar(value, plain) for value in values]
        except (pa.ArrowException, TypeError, OverflowError) as error:
            raise UsageError(
                f"{path}: column {self.column!r} is {kind}, which cannot be compared by {self};"
                " give a value of that type"
            ) from error
        if self.op == "in":
            return column.isin(pa.array([value.as_py() for value in fitting], plain))
        return _COMPARISONS[self.op](column, fitting[0])


@dataclass(frozen=True)
class Selection:
    """The part of an input that is read.

    Attributes:
        where: conditions, all of which a wanted row meets.
        keep: columns that pass through besides the prompt, None for all.
        header: True if the first line of .csv and .tsv files has the names of the columns, False if
            it is a row. None means True, except that a prompt column whose name reads like a prompt
            is refused.
    """

    where: tuple[Condition, ...] = ()
    keep: tuple[str, ...] | None = None
    header: bool | None = None

    @classmethod
    def of(
        cls,
        where: Sequence[str] = (),
        keep: Sequence[str] | None = None,
        header: bool | None = None,
    ) -> Selection:
        """The selection in text form; UsageError if a condition has another form."""
        for name, given in (("where", where), ("keep", keep)):
            if isinstance(given, str):
                raise UsageError(f"{name}: must be a list of str, got one str; use [{given!r}]")
        if not isinstance(header, bool | None):
            raise UsageError(f"header must be True, False or None, got {header!r}")
        kept = None if keep is None else tuple(keep)
        return cls(tuple(map(Condition.parse, where)), kept, header)

    def __bool__(self) -> bool:
        return bool(self.where) or self.keep is not None

    def config(self) -> dict[str, Any]:
        """The selection as plain JSON, empty if it is everything.

        ``header`` is in it only if false: rows that a header gives do not depend on the others.
        """
        where = {"where": [str(condition) for condition in self.where]} if self.where else {}
        keep = {} if self.keep is None else {"keep": list(self.keep)}
        return where | keep | ({"header": False} if self.header is False else {})

    def kept(self, names: Iterable[str]) -> list[str]:
        """The columns among ``names`` that pass through, in order."""
        return [name for name in names if self.keep is None or name in self.keep]

    def check(self, names: Sequence[str], path: Path) -> None:
        """Raise UsageError if a file lacks a wanted column or has it twice."""
        for name in [*(condition.column for condition in self.where), *(self.keep or ())]:
            if names.count(name) != 1:
                shown = ", ".join(repr(name) for name in names[:20])
                what = "occurs twice in" if name in names else "is not among"
                raise UsageError(f"{path}: column {name!r} {what} {shown}")

    def decided_by_statistics(self, columns: Mapping[str, pa.DataType]) -> Selection:
        """The conditions that a column's minimum and maximum can decide.

        ``!=`` on floats is not among them: statistics leave out NaN, which differs from any number.
        """
        where = [c for c in self.where if c.op != "!=" or not _is_floating(columns[c.column])]
        return Selection(tuple(where), self.keep, self.header)

    def expression(self, columns: Mapping[str, pa.DataType], path: Path) -> pc.Expression | None:
        """All conditions on a table with these columns, None if there are none."""
        each = [c.expression(c.column, columns[c.column], path) for c in self.where]
        return reduce(operator.and_, each) if each else None


EVERYTHING = Selection()


def _literal(text: str, value: str) -> Any:
    if len(value) > 1 and value[0] == value[-1] == "'":
        return value[1:-1]
    try:
        return json.loads(value, parse_constant=_infinite)
    except ValueError:
        raise UsageError(f"where {text!r}: {value!r} is no value; put text in quotes") from None


def _infinite(name: str) -> float:
    if name == "NaN":
        # NaN equals nothing; pyarrow's ``in`` knows that, statistics of row groups do not
        raise ValueError(name)
    return float(name)


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_floating(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(_plain(kind)))


def _is_text(kind: pa.DataType) -> bool:
    return kind in (pa.string(), pa.large_string(), pa.string_view())


def _scalar(value: Any, kind: pa.DataType) -> pa.Scalar:
    """The value in the column's type, or as a number if the column is numeric."""
    if isinstance(value, bool) and not pa.types.is_boolean(kind):
        raise TypeError(f"{kind} is no boolean")
    if pa.types.is_boolean(kind):
        return pa.scalar(value, kind)
    if pa.types.is_floating(kind) and isinstance(value, int | float):
        return pa.scalar(float(value), pa.float64())
    if pa.types.is_integer(kind):
        # pyarrow would cast a uint64 column to int64 beside an int64 value
        return pa.scalar(value, kind if pa.types.is_uint64(kind) else pa.int64())
    return pa.scalar(value).cast(kind)
