"""A text format with only the wanted rows and columns, and those of its folder's name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from dori_fast.errors import UsageError
from dori_fast.scan.chunks import rechunk
from dori_fast.scan.rows import Reader, Rows, passed_names
from dori_fast.scan.select import Condition, Selection


class Selected:
    """Another reader's rows. Names of columns are the file's own.

    A row that could not be parsed has no columns to be judged by; it is kept, in quarantine.
    """

    def __init__(
        self,
        reader: Reader,
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
            tuple(Condition(self._inside(c.column), c.op, c.value) for c in selection.where),
            None if selection.keep is None else tuple(map(self._inside, selection.keep)),
        )
        asked = [*whole.names, *([self.column] if self.column else [])]
        inside.check(asked, path)
        types = dict(zip(whole.names, whole.types, strict=True)) | {self.column: pa.string()}
        self._where = inside.expression(types, path)
        self._judged = [c.column for c in inside.where if c.column != self.column]
        self.schema = pa.schema([whole.field(name) for name in inside.kept(whole.names)])

    def _inside(self, name: str) -> str:
        return name if name == self.column else passed_names([name])[0]

    def chunks(self, size: int) -> Iterator[Rows]:
        """The wanted rows, ``size`` at a time (the last chunk may be shorter)."""
        return rechunk(map(self._wanted, self._reader.chunks(size)), size)

    def _wanted(self, rows: Rows) -> Rows:
        table = rows.extra
        for name, value in self._partition.items():
            column = pa.repeat(value, len(rows))
            table = table.append_column(pa.field(passed_names([name])[0], value.type), column)
        places = np.arange(len(rows))
        if self._where is not None:
            asked = table
            if self.column is not None:
                asked = asked.append_column(self.column, pa.array(rows.prompts, pa.string()))
            asked = asked.append_column(_PLACE, pa.array(places))
            held = asked.filter(self._where)[_PLACE].to_numpy()
            places = np.union1d(held, self._unparsed(rows)).astype(np.int64)
        return Rows(
            first=0,
            prompts=[rows.prompts[i] for i in places],
            errors=[rows.errors[i] for i in places],
            extra=table.select(self.schema.names).take(pa.array(places)),
            fraction=rows.fraction,
        )

    def _unparsed(self, rows: Rows) -> list[int]:
        return [
            i
            for i, error in enumerate(rows.errors)
            if error is not None
            and not error.startswith("null:")
            and all(column[i].as_py() is None for column in rows.extra.columns)
        ]


# no name that a passed-through column can have
_PLACE = "row_id"
