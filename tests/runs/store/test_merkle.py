"""The Merkle tree hash against RFC 6962's recursive definition and published roots."""

from __future__ import annotations

import hashlib

from dori_fast.runs.store.manifest import merkle_root


def defined(leaves: list[bytes]) -> bytes:
    """Section 2.1, word for word."""
    n = len(leaves)
    if n == 0:
        return hashlib.sha256().digest()
    if n == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 1 << (n - 1).bit_length() - 1
    return hashlib.sha256(b"\x01" + defined(leaves[:k]) + defined(leaves[k:])).digest()


def test_every_small_tree() -> None:
    for n in range(70):
        leaves = [bytes([i]) * (i % 5) for i in range(n)]
        assert merkle_root(leaves) == defined(leaves), n


def test_a_published_root() -> None:
    """The eight leaves that Certificate Transparency's reference implementation is tested with."""
    leaves = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657"]
    leaves.append("606162636465666768696a6b6c6d6e6f")
    root = merkle_root([bytes.fromhex(leaf) for leaf in leaves])
    assert root.hex() == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"


def test_a_node_cannot_pass_for_a_leaf() -> None:
    left, right = (hashlib.sha256(b"\x00" + leaf).digest() for leaf in (b"a", b"b"))
    assert merkle_root([b"a", b"b"]) != merkle_root([left + right])
