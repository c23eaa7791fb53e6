"""A text format reduced to wanted rows and columns, with its folder's partition columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from operator import and_
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from dori_fast.errors import UsageError
from dori_fast.runs.sources.rows import Rows, passed_names, rechunk
from dori_fast.runs.sources.text import TextReader
from dori_fast.runs.sources.where import Condition, Selection


class Filtered:
    """The wanted rows of another reader. Conditions name columns as the file does.

    Unparsable rows are filtered only on columns they still have (partition values, say), never on
    the prompt. They stay in quarantine. Rows whose prompt alone is unreadable are filtered on all
    columns but the prompt.
    """

    def __init__(
        self,
        reader: TextReader,
        path: Path,
        selection: Selection,
        partition: Mapping[str, pa.Scalar],
    ) -> None:
        self._reader, self._partition = reader, partition
        self.column = reader.column
        fields = [pa.field(passed_names([name])[0], v.type) for name, v in partition.items()]
        for field in fields:
            if field.name in reader.schema.names:
                raise UsageError(
                    f"{path}: column {field.name!r} is in the file and in its folder's name"
                )
        whole = pa.schema([*reader.schema, *fields])
        inside = Selection(
            tuple(Condition(self._output_name(c.column), c.op, c.value) for c in selection.where),
            None if selection.keep is None else tuple(map(self._output_name, selection.keep)),
            selection.header,
        )
        inside.check([*whole.names, *([self.column] if self.column else [])], path)
        known = {*reader.known, *(field.name for field in fields)}
        each = [self._condition(condition, whole, known, path) for condition in inside.where]
        self._where = reduce(and_, each) if each else None
        self.schema = pa.schema([whole.field(name) for name in inside.kept(whole.names)])

    def _output_name(self, name: str) -> str:
        return name if name == self.column else passed_names([name])[0]

    def _condition(
        self, condition: Condition, whole: pa.Schema, known: set[str], path: Path
    ) -> pc.Expression:
        """The condition, true also for rows that lack its column."""
        if condition.column == self.column:
            return condition.expression(_PROMPT, pa.string(), path) | pc.field(_UNREAD)
        holds = condition.expression(condition.column, whole.field(condition.column).type, path)
        return holds if condition.column in known else holds | pc.field(_UNPARSED)

    def chunks(self, size: int) -> Iterator[Rows]:
        """The wanted rows, ``size`` at a time (the last chunk may be shorter)."""
        return rechunk((self._wanted(*part) for part in self._reader.parts(size)), size)

    def _wanted(self, rows: Rows, parsed: Sequence[bool]) -> Rows:
        # a table needs a column before any is appended, or it has no rows
        table = pa.table({_PLACE: pa.array(range(len(rows)), pa.int64())})
        for field, column in zip(rows.extra.schema, rows.extra.columns, strict=True):
            table = table.append_column(field, column)
        for name, value in self._partition.items():
            column = pa.repeat(value, len(rows))
            table = table.append_column(pa.field(passed_names([name])[0], value.type), column)
        if self._where is not None:
            table = self._with_facts(table, rows, parsed).filter(self._where)
        places = table[_PLACE].to_pylist()
        return Rows(
            first=0,
            prompts=[rows.prompts[i] for i in places],
            errors=[rows.errors[i] for i in places],
            extra=table.select(self.schema.names),
            fraction=rows.fraction,
        )

    def _with_facts(self, table: pa.Table, rows: Rows, parsed: Sequence[bool]) -> pa.Table:
        """The table with the prompt, and columns that say which rows are unreadable."""
        unread = [error is not None and not error.startswith("null:") for error in rows.errors]
        more = {
            _PROMPT: pa.array(rows.prompts, pa.string()),
            _UNREAD: pa.array(unread, pa.bool_()),
            _UNPARSED: pa.array([not one for one in parsed], pa.bool_()),
        }
        for name, column in more.items():
            table = table.append_column(name, column)
        return table


# names that no passed-through column can have
_PLACE, _PROMPT, _UNREAD, _UNPARSED = "row_id", "prompt", "error", "status"
