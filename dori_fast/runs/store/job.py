"""The part of a run that is one job's: every n-th shard."""

from __future__ import annotations

from dataclasses import dataclass

from dori_fast.errors import UsageError


@dataclass(frozen=True)
class Part:
    """Of ``jobs`` jobs on one run, ``job`` does the shards whose index leaves that remainder.

    Which rows make a shard does not depend on it. By default one job does all: a whole run.

    Raises:
        UsageError: no such job.
    """

    job: int = 0
    jobs: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.job < self.jobs:
            raise UsageError(
                f"scan: shard_id={self.job} of num_shards={self.jobs}"
                f" — jobs are numbered from 0 to {self.jobs - 1}"
            )

    @property
    def whole(self) -> bool:
        """Whether there is no other job."""
        return self.jobs == 1

    def has(self, index: int) -> bool:
        """Whether shard ``index`` is this job's."""
        return index % self.jobs == self.job

    def __str__(self) -> str:
        return f"{self.job}-of-{self.jobs}"
