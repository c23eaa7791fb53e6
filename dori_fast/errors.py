"""Errors for callers to catch; each message says what is wrong, where, and what to do."""

from __future__ import annotations


class DoriError(Exception):
    """Base of every error that dori_fast raises on purpose."""


class UsageError(DoriError, ValueError):
    """Request that cannot be carried out as given: bad configuration, input or kind of model."""


class NonFiniteError(UsageError):
    """Result that is NaN or infinite: the model's arithmetic failed on this input in its dtype."""


class UnavailableError(DoriError):
    """Service that is unavailable now; the same call may succeed later."""


class IntegrityError(DoriError):
    """Data that contradicts its record: damaged weights, another configuration, a checksum."""
