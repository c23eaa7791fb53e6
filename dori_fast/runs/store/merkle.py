"""The Merkle tree hash of RFC 6962, section 2.1, with SHA-256."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """The root over N >= 0 leaves, 32 bytes.

    A leaf is hashed as ``sha256(0x00 + leaf)``, an inner node as ``sha256(0x01 + left + right)``,
    so that neither can pass for the other; the left subtree has the largest power of two of leaves
    that is smaller than N. The root of no leaves is the hash of nothing.
    """
    if not leaves:
        return hashlib.sha256().digest()
    level = [hashlib.sha256(b"\x00" + leaf).digest() for leaf in leaves]
    # pairing from the left and carrying an odd last node up gives the same tree as the splits
    while len(level) > 1:
        pairs = [
            hashlib.sha256(b"\x01" + left + right).digest()
            for left, right in zip(level[::2], level[1::2], strict=False)
        ]
        level = pairs + level[len(level) & ~1 :]
    return level[0]
