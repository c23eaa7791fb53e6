"""Errors that end a run early although request and data are fine."""

from __future__ import annotations

from dori_fast.errors import DoriError, UsageError


class StorageError(DoriError):
    """The disk refused a write (full, quota, input/output error); what is committed is intact."""


class OverBudgetError(UsageError):
    """More rows of an input failed than ``max_errors`` allows, so that there is no result."""


class WorkerError(DoriError):
    """Worker processes kept dying or hanging; what is committed is intact."""


class ScanInterrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM arrived; the open shard was dropped and the run can be resumed.

    A KeyboardInterrupt, so that a notebook or a caller's own handling of Ctrl-C still works.
    """
