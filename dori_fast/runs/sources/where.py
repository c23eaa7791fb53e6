"""Which rows and columns of an input are wanted: conditions such as ``similarity > 0.3``."""

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
    """One comparison of a column; null where the column is null, and then the row is not kept."""

    column: str
    op: str
    value: Any = None

    @classmethod
    def parse(cls, text: str) -> Condition:
        """From ``COLUMN OP VALUE``.

        OP is one of ``< <= > >= == !=``, ``in``, ``is null`` and ``is not null``; VALUE is JSON
        (``0.3``, ``"en"``, ``true``, ``["en", "de"]`` after ``in``), or text in single quotes.
        A column whose name has spaces stands in backticks.
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
            raise UsageError(f"where {text!r}: {wanted} was expected after {op!r}")
        return cls(column, op, value)

    def __str__(self) -> str:
        value = "" if self.op.startswith("is") else f" {json.dumps(self.value)}"
        return f"{self.column} {self.op}{value}"

    def expression(self, name: str, kind: pa.DataType, path: Path) -> pc.Expression:
        """For a column of a table; UsageError if its type cannot be compared with the value.

        Text is compared with a number as the number that it spells; other text is null.
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
            # an integer that float64 cannot hold is rounded, not refused
            column, plain = column.cast(pa.float64(), safe=False), pa.float64()
        elif plain != kind:
            column = column.cast(plain)
        try:
            fitting = [_scalar(value, plain) for value in values]
        except (pa.ArrowException, TypeError, OverflowError) as error:
            raise UsageError(
                f"{path}: column {self.column!r} is {kind}, which {self} cannot be asked of"
            ) from error
        if self.op == "in":
            return column.isin(pa.array([value.as_py() for value in fitting], plain))
        return _COMPARISONS[self.op](column, fitting[0])


@dataclass(frozen=True)
class Selection:
    """What is read of an input.

    Attributes:
        where: rows for which all of these hold.
        keep: columns that are carried along besides the prompt; None: all.
    """

    where: tuple[Condition, ...] = ()
    keep: tuple[str, ...] | None = None

    @classmethod
    def of(cls, where: Sequence[str] = (), keep: Sequence[str] | None = None) -> Selection:
        """Raises UsageError if a condition cannot be read."""
        return cls(tuple(map(Condition.parse, where)), None if keep is None else tuple(keep))

    def __bool__(self) -> bool:
        return bool(self.where) or self.keep is not None

    def config(self) -> dict[str, Any]:
        """What tells this selection from others, as plain JSON; empty if all is read."""
        where = {"where": [str(condition) for condition in self.where]} if self.where else {}
        return where | ({} if self.keep is None else {"keep": list(self.keep)})

    def kept(self, names: Iterable[str]) -> list[str]:
        """Those of ``names`` that are carried along, in their order."""
        return [name for name in names if self.keep is None or name in self.keep]

    def check(self, names: Sequence[str], path: Path) -> None:
        """Raises UsageError if a wanted column is not among a file's, or is there twice."""
        for name in [*(condition.column for condition in self.where), *(self.keep or ())]:
            if names.count(name) != 1:
                shown = ", ".join(repr(name) for name in names[:20])
                what = "occurs twice in" if name in names else "is not among"
                raise UsageError(f"{path}: column {name!r} {what} {shown}")

    def told_by_statistics(self, columns: Mapping[str, pa.DataType]) -> Selection:
        """Those conditions for which it is enough to know the smallest and the largest value.

        Statistics leave NaN out, which is unlike any number.
        """
        where = [c for c in self.where if c.op != "!=" or not _is_floating(columns[c.column])]
        return Selection(tuple(where), self.keep)

    def expression(self, columns: Mapping[str, pa.DataType], path: Path) -> pc.Expression | None:
        """All conditions on a table with these columns, or None if there are none."""
        each = [c.expression(c.column, columns[c.column], path) for c in self.where]
        return reduce(operator.and_, each) if each else None


EVERYTHING = Selection()


def _literal(text: str, value: str) -> Any:
    if len(value) > 1 and value[0] == value[-1] == "'":
        return value[1:-1]
    try:
        return json.loads(value, parse_constant=_infinite)
    except ValueError:
        raise UsageError(f"where {text!r}: {value!r} is no value — put text in quotes") from None


def _infinite(name: str) -> float:
    if name == "NaN":
        # nothing equals it, but pyarrow's ``in`` says so, statistics of row groups do not
        raise ValueError(name)
    return float(name)


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_floating(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(_plain(kind)))


def _is_text(kind: pa.DataType) -> bool:
    return kind in (pa.string(), pa.large_string(), pa.string_view())


def _scalar(value: Any, kind: pa.DataType) -> pa.Scalar:
    """The value as the column's type, or as a number where the column is one."""
    if isinstance(value, bool) or pa.types.is_boolean(kind):
        return pa.scalar(value, kind) if pa.types.is_boolean(kind) else _refused()
    if pa.types.is_floating(kind) and isinstance(value, int | float):
        return pa.scalar(float(value), pa.float64())
    if pa.types.is_integer(kind):
        # beside an int64, a uint64 would be cast to one
        return pa.scalar(value, kind if pa.types.is_uint64(kind) else pa.int64())
    return pa.scalar(value).cast(kind)


def _refused() -> pa.Scalar:
    raise TypeError("no boolean")
