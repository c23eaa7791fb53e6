"""The errors that a caller is meant to catch; each says what is wrong, where, and what to do."""

from __future__ import annotations


class DoriError(Exception):
    """Base of every error that dori_fast raises on purpose."""


class UsageError(DoriError, ValueError):
    """A request that cannot be carried out as given: bad configuration, input or model kind."""


class UnavailableError(DoriError):
    """A service that does not answer now; the same call may be answered later."""


class IntegrityError(DoriError):
    """Data that is not what it claims to be: damaged weights, another configuration, a checksum."""
