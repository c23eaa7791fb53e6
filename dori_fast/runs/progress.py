"""The progress of a run, as its ``on_progress`` callback gets it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """The progress of a scan, row run, dedup or fine-tuning.

    Attributes:
        done: rows (fine-tuning: steps) that are done, those of earlier calls included.
        quarantined: quarantined rows among them; a scan counts those of committed shards.
        computed: rows or steps done by this call.
        seconds: duration of this call so far.
        total: number of rows or steps in the end; None if unknown.
        remaining: estimated seconds to the end; None while unknown.
    """

    done: int
    quarantined: int
    computed: int
    seconds: float
    total: int | None = None
    remaining: float | None = None

    @property
    def rate(self) -> float:
        """Rows or steps per second of this call."""
        return self.computed / self.seconds if self.seconds > 0 else 0.0
