"""One job of a job array that shares a run: its shards are every n-th one."""

from __future__ import annotations

from dataclasses import dataclass

from dori_fast.errors import UsageError


@dataclass(frozen=True)
class Job:
    """Job ``job_id`` of ``num_jobs``: scores the shards with ``index % num_jobs == job_id``.

    The rows of a shard do not depend on it. The default is one job that scores everything.

    Raises:
        UsageError: no such job.
    """

    job_id: int = 0
    num_jobs: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.job_id < self.num_jobs:
            raise UsageError(
                f"scan: job_id={self.job_id} of num_jobs={self.num_jobs};"
                f" number the jobs from 0 to {self.num_jobs - 1}"
            )

    @property
    def alone(self) -> bool:
        """Whether there is no other job."""
        return self.num_jobs == 1

    def has(self, index: int) -> bool:
        """Whether shard ``index`` is this job's."""
        return index % self.num_jobs == self.job_id

    def __str__(self) -> str:
        return f"{self.job_id}-of-{self.num_jobs}"
