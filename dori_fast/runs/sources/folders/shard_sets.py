"""Check of shards named NAME-00000-of-00003: every shard of one set, once."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from dori_fast.errors import UsageError

_SHARD = re.compile(r"(?P<stem>.*?)(?P<number>\d+)-of-(?P<total>\d+)(?!\d)")


def check_shard_sets(paths: Sequence[Path], *, whole: bool) -> None:
    """Check that files whose names say ``number-of-total`` form one set per folder and stem.

    Args:
        paths: the files of an input.
        whole: True to require whole sets, as in a folder; a pattern may choose some shards.

    Raises:
        UsageError: shards of two totals, or two of one number, so that rows would be read twice; or
            a shard is missing.
    """
    sets: dict[tuple[Path, str], dict[str, dict[int, Path]]] = defaultdict(dict)
    for path in paths:
        if found := _SHARD.match(path.name):
            by_number = sets[path.parent, found["stem"]].setdefault(found["total"], {})
            other = by_number.setdefault(int(found["number"]), path)
            if other is not path:
                raise UsageError(
                    f"{path}: the same shard as {other.name}; keep one of them, or choose the files"
                    " by a pattern"
                )
    for by_total in sets.values():
        first, *others = ([*shards.values()][0] for shards in by_total.values())
        if others:
            raise UsageError(
                f"{others[0]}: of another set of shards than {first.name} beside it, so one of the"
                " sets is stale; remove it, or choose the files by a pattern"
            )
        for total, by_number in by_total.items():
            if whole:
                _check_whole(int(total), by_number)


def _check_whole(total: int, by_number: dict[int, Path]) -> None:
    # numbered from 0, or from 1
    start = 0 if 0 in by_number or total not in by_number else 1
    missing = [n for n in range(start, start + total) if n not in by_number]
    if missing:
        one = next(iter(by_number.values()))
        raise UsageError(
            f"{one}: {len(missing)} of its set of {total} shards are missing, the first is number"
            f" {missing[0]}; get them, or choose the files by a pattern"
        )
